"""The same arrivals go to a server and to a simulation, and what came of them is compared. The
server is one of the test's own, which answers what it is told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from diffusion_edge.bench.routing import agree, live
from diffusion_edge.bench.routing.agree import Pair, Seen, checked, links_of, measure, page_lines
from diffusion_edge.bench.routing.live import Live
from diffusion_edge.config import Settings
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.sim.build import Family
from diffusion_edge.sim.scenario import Scenario
from tests.api.fakes import settings
from tests.routing.views import request, symmetric
from tests.sim.worlds import carriage

ARRIVALS = {"rate": 500.0}
REQUESTS = {"count": 12, "steps": 20, "deadline_s": 9.0, "quality_floor": 0.0}


def a_scenario(**changes: Any) -> Scenario:
    told = {"title": "short", "arrivals": ARRIVALS, "requests": REQUESTS, "policies": ["tower:20"]}
    return Scenario.model_validate(told | changes)


class Server:
    """Every third request is refused, the others have their pictures at once."""

    def __init__(self) -> None:
        self.bodies: list[Mapping[str, Any]] = []
        self.changes: list[Mapping[str, Any]] = []

    @asynccontextmanager
    async def __call__(self, changes: Mapping[str, Any]) -> AsyncIterator[Live]:
        self.changes.append(changes)
        transport = httpx.MockTransport(self.answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield Live(http)

    def answer(self, asked: httpx.Request) -> httpx.Response:
        if asked.url.path == "/ready":
            stage = {"queued": 0, "held": [], "steps_run": 1, "parts_run": 1, "overruns": 0}
            return httpx.Response(200, json={"stages": {"tower": stage}})
        if asked.url.path != "/v1/images/generations":
            told = {"emulated": {"links": []}, "stages": {"tower": {}}, "links": []}
            return httpx.Response(200, json=told)
        body = json.loads(asked.content)
        if body["diffusion_edge"]["deadline_ms"] < 1e3 * live.QUIET_S:  # not one that warms it up
            self.bodies.append(body)
            if len(self.bodies) % 3 == 0:
                return httpx.Response(503, json={"error": {"code": "queue_full"}})
        made = {"plan": "tower:20", "images": [{"spans": []}], "emulated": {"stages": ["tower"]}}
        return httpx.Response(200, json={"diffusion_edge": made})


def configured(changes: Mapping[str, Any]) -> Settings:
    return settings(**changes)


FAMILY = Family(asked=request(), cells=64, quality=symmetric(), carriage=carriage)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SETTLE_S", 0.0)


async def measured(server: Server, ledger: Path, **changes: Any) -> Pair:
    scenario = a_scenario(**changes)
    (pair,) = await measure([scenario], FAMILY, configured, server, ledger, {}, lambda _: None)
    return pair


async def test_both_are_asked_the_same(tmp_path: Path) -> None:
    server = Server()
    pair = await measured(server, tmp_path / "agree.jsonl")
    assert (pair.live.requests, pair.live.served, pair.live.in_time) == (12, 8, 8)
    assert pair.live.shares == {"tower": 1.0} == pair.simulated.shares
    assert pair.simulated.requests == 12
    assert pair.simulated.mean_s > 20 * 0.2  # of one at a time
    assert not pair.agrees
    for body in server.bodies:
        assert body["num_inference_steps"] == 20
        assert body["diffusion_edge"]["deadline_ms"] == 9000.0
        assert (body["diffusion_edge"]["plan"], body["diffusion_edge"]["late"]) == (
            "tower:20",
            "serve",
        )


async def test_what_was_measured_is_not_asked_again(tmp_path: Path) -> None:
    ledger = tmp_path / "agree.jsonl"
    first = await measured(Server(), ledger)
    again = Server()
    assert await measured(again, ledger) == first
    assert again.bodies == []


def test_links_of_a_scenario_stand_in_place_of_the_configs() -> None:
    own = {"between": ["phone", "tower"], "kind": "constant", "bytes_per_s": 5e5, "delay_s": 0.25}
    found = links_of(a_scenario(links=[own]), settings())
    by_ends = {frozenset(link["between"]): link for link in found}
    assert len(found) == len(by_ends) == len(settings().links)
    told = by_ends[frozenset(("phone", "tower"))]
    assert (told["bytes_per_s"], told["delay_s"], told["emulate"]) == (5e5, 0.25, True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sites": {"count": {"tower": 2}}}, "no other sites"),
        ({"requests": REQUESTS | {"late": {"serve": 1, "refuse": 1}}}, "one kind of request"),
        ({"requests": {"count": 3}}, "needs requests.steps"),
        (
            {
                "links": [
                    {
                        "between": ["phone", "tower"],
                        "kind": "outage",
                        "bytes_per_s": 1e6,
                        "every_s": 9.0,
                        "for_s": 1.0,
                    }
                ]
            },
            "not 'outage'",
        ),
    ],
)
def test_what_a_server_cannot_be_asked_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        checked(a_scenario(**changes))


SEEN = Seen(100, 90, 80, mean_s=4.0, p95_s=8.0, shares={"edge": 0.6, "cloud": 0.4})


@pytest.mark.parametrize(
    ("changes", "agrees"),
    [
        ({}, True),
        ({"mean_s": 4.59}, True),
        ({"mean_s": 4.61}, False),
        ({"p95_s": 6.7}, False),
        ({"shares": {"edge": 0.64, "cloud": 0.36}}, True),
        ({"shares": {"edge": 0.54, "cloud": 0.4, "device": 0.06}}, False),
    ],
)
def test_how_far_apart_they_may_be(changes: dict[str, Any], agrees: bool) -> None:
    pair = Pair("short", "elastic", SEEN, replace(SEEN, **changes), overruns=0.0)
    assert pair.agrees == agrees
    page = "\n".join(page_lines([pair], agree.COMMAND))
    assert ("does not agree" in page) != agrees
    assert f"{int(agrees)} of 1 agree" in page
