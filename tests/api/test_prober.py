"""Quiet links are probed: which, when, with how much, and what comes of it. No link, no stage."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import permutations

import pytest

from diffusion_edge.api import prober as module
from diffusion_edge.api.prober import Prober
from diffusion_edge.errors import StageLost
from diffusion_edge.request import Done, HopRecord
from diffusion_edge.routing.links.probes import QUIET_S, SHARE, SMALL
from diffusion_edge.routing.links.taken import Links, Pair
from diffusion_edge.view import Link
from tests.fakes import FakeClock
from tests.routing.test_taken import PICTURE, SPANS

NAMES = ("phone", "tower", "hall")
RATE = 1e6


@dataclass
class Stages:
    """Links of RATE and 30 ms, and stages that send probes over them."""

    clock: FakeClock = field(default_factory=FakeClock)
    sent: list[tuple[Pair, int]] = field(default_factory=list)
    closed: set[Pair] = field(default_factory=set)
    error: Exception | None = None
    in_use: bool = False

    def __post_init__(self) -> None:
        pairs = list(permutations(NAMES, 2))
        self.links = Links(dict.fromkeys(pairs), self.clock.now)
        self.prober = Prober(self.links, lambda: set(pairs) - self.closed, self.probe)

    async def probe(self, source: str, target: str, nbytes: int) -> float | None:
        self.sent.append(((source, target), nbytes))
        if self.error:
            raise self.error
        return None if self.in_use else Link(RATE, 0.03).transfer_s(nbytes)

    async def looked(self, *sources: str) -> list[tuple[Pair, int]]:
        """The probes that one look from each brings."""
        before = len(self.sent)
        for source in sources or NAMES:
            await self.prober.look(source)
        return self.sent[before:]


async def test_every_quiet_link_is_probed_in_turn_and_then_measured() -> None:
    stages = Stages()
    assert await stages.looked() == []
    stages.clock.advance(QUIET_S)
    first, second, third = [await stages.looked() for _ in range(3)]
    assert {pair[0] for pair, _ in first} == {pair[0] for pair, _ in second} == set(NAMES)
    assert {pair for pair, _ in first + second} == set(permutations(NAMES, 2))
    assert third == []
    for pair in stages.links.pairs:
        told = stages.links.view(pair)
        assert (told.known, told.hops, stages.links.probes(pair)) == ("measured", 1, 1)


async def test_a_link_that_pictures_cross_is_not_probed() -> None:
    stages = Stages()
    stages.clock.advance(QUIET_S)
    hop = HopRecord("tower", "hall", 3_000, 0.033, "exact")
    stages.links.arrived(Done(PICTURE, SPANS[1:2] * 2, (hop,)), 0.1)
    await stages.looked("tower")
    assert [pair for pair, _ in await stages.looked("tower")] == []
    assert ("tower", "hall") not in [pair for pair, _ in stages.sent]
    assert stages.links.probes(("tower", "hall")) == 0


async def test_only_links_that_are_open_are_probed() -> None:
    stages = Stages(closed={("tower", "hall"), ("tower", "phone")})
    stages.clock.advance(QUIET_S)
    assert await stages.looked("tower") == []
    stages.closed.clear()
    assert len(await stages.looked("tower")) == 1


async def test_probes_are_small_and_large_as_the_packets_are_and_one_percent_at_most() -> None:
    stages = Stages(closed={pair for pair in permutations(NAMES, 2) if pair != ("tower", "hall")})
    stages.links.expect(263_000)
    for _ in range(300):
        stages.clock.advance(2.0)
        await stages.looked("tower")
    sizes = {nbytes for _, nbytes in stages.sent}
    assert min(sizes) == SMALL
    assert max(sizes) == 263_000
    assert len(stages.sent) > 10
    assert sum(nbytes for _, nbytes in stages.sent) <= SHARE * RATE * 600.0


async def test_what_fails_is_logged_once_and_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stages = Stages(error=StageLost("the stage 'hall' was lost"))
    before = {pair: stages.links.link(pair) for pair in stages.links.pairs}
    tries = 0
    for _ in range(60):
        stages.clock.advance(2.0)
        tries += len(await stages.looked("tower"))
    assert 6 <= tries <= 2 * 120 / QUIET_S
    assert len(caplog.records) == 2
    assert all("the stage 'hall' was lost" in record.message for record in caplog.records)
    assert {pair: stages.links.link(pair) for pair in stages.links.pairs} == before
    assert {stages.links.view(pair).known for pair in stages.links.pairs} == {"guessed"}

    stages.error = None
    for _ in range(20):
        stages.clock.advance(2.0)
        await stages.looked("tower")
    assert stages.links.view(("tower", "hall")).known == "measured"
    stages.error = StageLost("again")
    for _ in range(40):
        stages.clock.advance(2.0)
        await stages.looked("tower")
    assert len(caplog.records) == 4


async def test_a_link_in_use_is_no_failure_and_no_measure(caplog: pytest.LogCaptureFixture) -> None:
    stages = Stages(in_use=True)
    stages.clock.advance(QUIET_S)
    assert len(await stages.looked()) == 3
    assert not caplog.records
    assert {stages.links.view(pair).known for pair in stages.links.pairs} == {"guessed"}


async def test_one_at_a_time_from_a_stage_and_none_when_it_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its looks go on by themselves; probes that never end hold up the same stage alone."""
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    stages, all_at_it = Stages(), asyncio.Event()
    running: list[str] = []

    async def hangs(source: str, target: str, nbytes: int) -> float | None:
        running.append(source)
        if set(running) == set(NAMES):
            all_at_it.set()
        try:
            await asyncio.Event().wait()
        finally:
            running.remove(source)
        return 0.0

    stages.clock.advance(QUIET_S)
    prober = Prober(stages.links, lambda: stages.links.pairs, hangs)
    prober.start()
    async with asyncio.timeout(10):
        await all_at_it.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert sorted(running) == sorted(NAMES)
        await prober.stop()
    assert running == []
