"""A server is quiet when every stage reports that it has nothing to do."""

from __future__ import annotations

import httpx
import pytest

from diffusion_edge.bench.routing import live
from diffusion_edge.bench.routing.live import Live
from diffusion_edge.errors import EdgeError


def reporting(queued: int, held: list[int], status: int = 200) -> httpx.Response:
    stage = {"queued": queued, "held": held, "steps_run": 7, "overruns": 1}
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
