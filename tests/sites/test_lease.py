"""Work ends when its caller falls silent, and only then. Ticks are given by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import pytest

from diffusion_edge.errors import QueueFull, StageLost
from diffusion_edge.request import Accepted, Event, Progress
from diffusion_edge.sites.lease import RENEW_S, SILENCE, Leases, Renewing


class Ticks:
    """A sleep that ends when the test says so."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self._waiting: list[asyncio.Future[None]] = []

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting

    async def pass_(self, count: int = 1) -> None:
        for _ in range(count):
            ended, self._waiting = self._waiting, []
            for waiting in ended:
                if not waiting.done():
                    waiting.set_result(None)
            await settled()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Work:
    """Accepts, and then works for ever; or plays what it is given."""

    def __init__(self, *then: Event | Exception) -> None:
        self._then = then
        self.ended = False

    async def run(self) -> AsyncGenerator[Event, None]:
        try:
            yield Accepted("edge")
            for event in self._then:
                if isinstance(event, Exception):
                    raise event
                yield event
            if not self._then:
                await asyncio.Event().wait()
        finally:
            self.ended = True


async def read(events: AsyncGenerator[Event, None]) -> list[Event]:
    async with aclosing(events):
        return [event async for event in events]


# ---------------------------------------------------------------------------- the stage's side


async def test_work_ends_when_its_caller_is_silent() -> None:
    ticks, work = Ticks(), Work()
    leases = Leases("edge", ticks.sleep)
    reading = asyncio.create_task(read(leases.held("one", work.run())))
    await settled()
    await ticks.pass_(SILENCE)
    assert not work.ended
    await ticks.pass_()
    assert work.ended
    with pytest.raises(StageLost, match="'edge' gave the work up") as caught:
        await reading
    assert caught.value.stage == "edge"
    assert set(ticks.asked) == {RENEW_S}
    assert RENEW_S * (SILENCE + 1) <= 6, "a few seconds, as the module says"


async def test_work_ends_also_where_nobody_reads_its_events() -> None:
    ticks, work = Ticks(), Work()
    events = Leases("edge", ticks.sleep).held("one", work.run())
    assert await anext(events) == Accepted("edge")
    await ticks.pass_(SILENCE + 1)
    assert work.ended
    await events.aclose()


async def test_a_caller_that_speaks_up_keeps_its_work_and_no_other() -> None:
    ticks, kept, left = Ticks(), Work(), Work()
    leases = Leases("edge", ticks.sleep)
    readers = [
        asyncio.create_task(read(leases.held(name, work.run())))
        for name, work in (("kept", kept), ("left", left))
    ]
    await settled()
    for _ in range(3):
        await ticks.pass_(SILENCE)
        leases.renew(["kept", "over long ago"])
    await ticks.pass_()
    assert (kept.ended, left.ended) == (False, True)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    assert kept.ended


async def test_what_runs_to_its_end_is_passed_on_as_it_is() -> None:
    ticks = Ticks()
    leases = Leases("edge", ticks.sleep)
    assert await read(leases.held("a", Work(Progress("edge", 3)).run())) == [
        Accepted("edge"),
        Progress("edge", 3),
    ]
    with pytest.raises(QueueFull, match="full"):
        await read(leases.held("b", Work(QueueFull("full")).run()))
    await ticks.pass_()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_closing_ends_the_work_before_it_returns() -> None:
    work = Work()
    events = Leases("edge").held("one", work.run())
    await anext(events)
    await events.aclose()
    assert work.ended


# ---------------------------------------------------------------------------- the caller's side


class Told:
    """A way to a stage; `refuses` is raised, or it never answers."""

    def __init__(self, refuses: Exception | None = None, hangs: bool = False) -> None:
        self.leases: list[tuple[str, ...]] = []
        self._refuses, self._hangs = refuses, hangs

    async def __call__(self, leases: Sequence[str]) -> None:
        self.leases.append(tuple(leases))
        if self._refuses:
            raise self._refuses
        if self._hangs:
            await asyncio.Event().wait()


async def test_one_word_renews_all_that_is_held_on_a_stage() -> None:
    ticks, edge, cloud = Ticks(), Told(), Told()
    renewing = Renewing({"edge": edge, "cloud": cloud}, ticks.sleep)
    with renewing.hold("edge") as first:
        with renewing.hold("edge") as second:
            await settled()
            await ticks.pass_()
            assert [set(told) for told in edge.leases] == [{first, second}]
        await ticks.pass_()
        assert edge.leases[1:] == [(first,)]
    await ticks.pass_(2)
    assert len(edge.leases) == 2
    assert cloud.leases == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize(
    "edge", [Told(ConnectionError("gone")), Told(hangs=True)], ids=("lost", "hangs")
)
async def test_a_stage_that_cannot_be_told_holds_up_no_other(edge: Told) -> None:
    ticks, cloud = Ticks(), Told()
    renewing = Renewing({"edge": edge, "cloud": cloud}, ticks.sleep)
    with renewing.hold("edge"), renewing.hold("cloud") as lease:
        await settled()
        await ticks.pass_(3)
        assert cloud.leases == [(lease,)] * 3
        assert len(edge.leases) >= 1


# ---------------------------------------------------------------------------- both


@pytest.mark.parametrize("silent", ["ingress", "edge"])
async def test_the_end_of_a_caller_runs_through_the_chain(silent: str) -> None:
    """ingress -> edge -> cloud; one of the two callers says nothing more."""
    ticks, work = Ticks(), Work()
    edge, cloud = Leases("edge", ticks.sleep), Leases("cloud", ticks.sleep)

    def renewing(caller: str, stage: str, leases: Leases) -> Renewing:
        async def renew(names: Sequence[str]) -> None:
            if caller != silent:
                leases.renew(names)

        return Renewing({stage: renew}, ticks.sleep)

    ingress, onward = renewing("ingress", "edge", edge), renewing("edge", "cloud", cloud)

    async def handed_on() -> AsyncGenerator[Event, None]:
        with onward.hold("cloud") as lease:
            async with aclosing(cloud.held(lease, work.run())) as events:
                async for event in events:
                    yield event

    with ingress.hold("edge") as lease:
        reading = asyncio.create_task(read(edge.held(lease, handed_on())))
        await settled()
        await ticks.pass_(SILENCE)
        assert not work.ended
        await ticks.pass_()
        assert work.ended
        with pytest.raises(StageLost):
            await reading


async def test_both_alive_the_work_lasts_however_long_it_takes() -> None:
    ticks, work = Ticks(), Work()
    leases = Leases("edge", ticks.sleep)

    async def renew(names: Sequence[str]) -> None:
        leases.renew(names)

    with Renewing({"edge": renew}, ticks.sleep).hold("edge") as lease:
        reading = asyncio.create_task(read(leases.held(lease, work.run())))
        await settled()
        await ticks.pass_(10 * SILENCE)
        assert not work.ended
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
