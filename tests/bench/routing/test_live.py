"""A server is quiet when every stage reports that it has nothing to do."""

from __future__ import annotations

import json

import httpx
import pytest

from diffusion_edge.bench.routing import live
from diffusion_edge.bench.routing.live import Live
from diffusion_edge.errors import EdgeError


def reporting(queued: int, held: list[int], status: int = 200) -> httpx.Response:
    stage = {"queued": queued, "held": held, "steps_run": 5, "parts_run": 7, "overruns": 1}
    return httpx.Response(status, json={"stages": {"hall": stage}})


async def asked(*answers: httpx.Response) -> tuple[int, dict[str, tuple[int, int]]]:
    """How many answers it takes until the server is quiet, and its counters then."""
    left = list(answers)
    transport = httpx.MockTransport(lambda _: left.pop(0) if len(left) > 1 else left[0])
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        server = Live(http)
        await server.quiet()
        return len(answers) - len(left), await server.counters()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SETTLE_S", "EVERY_S"):
        monkeypatch.setattr(live, name, 0.0)


async def test_what_waits_and_what_is_held_is_waited_for() -> None:
    quiet = reporting(0, [])
    taken, counters = await asked(reporting(1, []), reporting(0, [1]), quiet)
    assert (taken, counters) == (2, {"hall": (7, 1)})


async def test_a_stage_that_is_silent_for_a_moment_is_waited_for() -> None:
    taken, _ = await asked(reporting(0, [], 503), reporting(0, [], 503), reporting(0, []))
    assert taken == 2


async def test_one_that_stays_silent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "QUIET_S", 0.0)
    with pytest.raises(EdgeError, match="answered 503"):
        await asked(reporting(0, [], 503))
    with pytest.raises(EdgeError, match="still has work"):
        await asked(reporting(1, []))


def answering(overruns: int, refuses: str = "") -> tuple[list[str], httpx.MockTransport]:
    """Two stages and a way from one to the other; the plans that they are asked for."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/ready":
            idle = {"queued": 0, "held": [], "parts_run": 50, "overruns": overruns}
            return httpx.Response(200, json={"stages": {"phone": idle, "hall": idle}})
        plan = json.loads(request.content)["diffusion_edge"]["plan"]
        if request.url.path == "/v1/plan":
            link = {"source": "phone", "target": "hall"}
            return httpx.Response(200, json={"stages": {"phone": {}, "hall": {}}, "links": [link]})
        asked.append(plan)
        if plan == refuses:
            return httpx.Response(503, json={"error": {"code": "stage_lost"}})
        made = {"plan": plan, "images": [], "emulated": {}}
        return httpx.Response(200, json={"diffusion_edge": made})

    return asked, httpx.MockTransport(answer)


async def test_a_server_is_warm_when_every_stage_and_link_was_used() -> None:
    asked, transport = answering(overruns=2)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        assert await Live(http).warm(21) == pytest.approx(0.04)
    assert asked == ["phone:21", "hall:21", "phone:10,hall:11"]


async def test_a_server_that_cannot_be_warmed_up_is_told() -> None:
    _, transport = answering(overruns=0, refuses="phone:10,hall:10")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        with pytest.raises(EdgeError, match="phone:10,hall:10: stage_lost"):
            await Live(http).warm(20)
