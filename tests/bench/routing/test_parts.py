"""All parts against a server of the test's own, without Ray or torch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from diffusion_edge.api.http import create_app
from diffusion_edge.bench.report import Machine
from diffusion_edge.bench.routing import live
from diffusion_edge.bench.routing.decision import Decisions
from diffusion_edge.bench.routing.live import Live
from diffusion_edge.bench.routing.parts import Size, Task, measure
from diffusion_edge.bench.routing.report import Report, page_lines, summary
from diffusion_edge.bench.routing.split import OFFLINE, Split
from diffusion_edge.view import StageStatus
from tests.api.fakes import FakeBoard, service, settings
from tests.routing.views import MODEL

TINY = Size(
    search=4,
    probes=2,
    steady=(2, 3),
    fixed=1,
    over=(1.2, 2.0),
    over_arrivals=4,
    burst=3,
    bursts=1,
    forecast={0.4: 4},
    links=(1, 3),
)
TASK = Task(
    bound=lambda plan: 0.5 if len(plan.spans) == 1 else 0.0,
    floor=0.1,
    links=[],
    size=TINY,
    steps=20,
    seed=5,
    in_turn=("hall", "tower"),
)


SPLITS = (
    Split("elastic", 8, 2.0, 20.0, 19.0, 1.0, 9, 9),
    Split("elastic", 8, 1.1, 11.0, 10.4, 1.5, 9, 8),
    Split(OFFLINE, 8, 0.0, 0.0, 10.0, 2.0, 0, 0),
)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SETTLE_S", 0.0)


def emulated(name: str) -> dict[str, Any]:
    """A picture takes two seconds, and a hundred take no longer: so the deadline is far, and many
    come a second."""
    steps = {1: 0.1, 100: 0.1}
    return {
        "tier": MODEL[name],
        "model": MODEL[name],
        "capacity": 200,
        "emulate": {"step_s": steps},
    }


class Batching(FakeBoard):
    def statuses(self) -> Mapping[str, StageStatus]:
        return {n: replace(status, batches=True) for n, status in super().statuses().items()}


class Opened:
    """Servers whose pictures are there at once. changes: of the settings
    of each; restarts: links that were let begin anew."""

    def __init__(self) -> None:
        self.changes: list[Mapping[str, Any]] = []
        self.restarts: list[tuple[str, str]] = []

    @asynccontextmanager
    async def __call__(self, changes: Mapping[str, Any]) -> AsyncIterator[Live]:
        self.changes.append(changes)

        async def throttle(source: str, target: str, factor: float, restart: bool) -> None:
            assert (factor, restart) == (1.0, True)
            self.restarts.append((source, target))

        config = settings(stages={name: emulated(name) for name in ("phone", "tower", "hall")})
        app = create_app(service(config=config, board=Batching(config), throttle=throttle))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield Live(http)


async def test_all_parts_are_measured_and_kept(tmp_path: Path) -> None:
    """The second time there is nothing left to ask a server for."""
    opened, told = Opened(), []
    ledger = tmp_path / "routing.jsonl"
    found = await measure(TASK, opened, ledger, {"a": 1}, told.append)
    assert "minutes" in told[0]
    assert [ran.arm for ran in found.steady[:3]] == ["elastic", "earliest", "in-turn"]
    assert len(found.steady) == 4
    assert {len(ran.answers) for ran in found.steady} == {6}
    assert len({tuple(each.due_s for each in ran.answers) for ran in found.steady}) == 1
    assert [ran.rate_per_s for ran in found.overload] == pytest.approx(
        [1.2 * found.capacity.per_s, 2 * found.capacity.per_s]
    )
    assert all(each.ok for ran in found.steady for each in ran.answers), found.steady
    assert {ran.arm for ran in found.links} == {"links as measured", "links as stated"}
    assert [each.get("measure_links") for each in opened.changes] == [None, True, False]
    assert len(opened.restarts) % 6 == 0  # three links, both ways
    assert found.wanted.deadline_s == pytest.approx(2 * found.unloaded_s["tower"])

    again = await measure(TASK, Opened(), ledger, {"a": 1}, told.append)
    assert again == found
    other, alone = Opened(), replace(TASK, parts=("burst",))
    burst = await measure(alone, other, ledger, {"a": 2}, told.append)
    assert other.changes == [{}]  # what was measured with other settings does not count
    assert burst.steady == burst.overload == burst.forecast == burst.links == ()
    assert {len(ran.answers) for ran in burst.bursts} == {3}

    at = Machine("cpu", 2, 2, 2, "")
    decided = Decisions((0.001,) * 200, (0.004,) * 200)
    report = Report("c", "f", 2.5, "bus", "e", "2026-01-01", at, {"t": "1"}, found, SPLITS, decided)
    page = "\n".join(page_lines(report))
    assert page.count("|---|") > 6
    assert "C: `in-turn`" in page
    assert len(list(summary(report))) == len(report.as_json()["targets"])
    assert "| 5 ms | 1 ms | 1.0 ms | reached, the aim too |" in page
    assert "| 8 | 11.00 s (1.1) | `elastic` | 10.40 s | 1.040 | 1.50 | 9 | 8 |" in page
    assert "| 1.10 | 1.05 | 1.040 | reached, the aim too |" in page
