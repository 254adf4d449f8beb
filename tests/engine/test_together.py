"""Calls for several at once: who is in one, what a failure or a cancel costs, and emulation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from diffusion_edge.engine.pace import OwnPace, StatedPace
from diffusion_edge.engine.together import Made, Together
from diffusion_edge.engine.turn import Seat, Turns
from tests.fakes import FakeClock


class Doubling:
    """Calls that double up to `most` numbers and refuse negative ones; each waits until it is let
    go."""

    def __init__(self, *, held: bool = False, most: int = 100) -> None:
        self.most = most
        self.calls: list[list[int]] = []
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        if not held:
            self.go.set()

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.calls.append(list(items))
        self.began.set()
        await self.go.wait()
        if min(items) < 0:
            raise ValueError(f"{min(items)} is negative")
        if len(items) > self.most:
            raise MemoryError(f"no room for {len(items)}")
        return [2 * item for item in items]


def together(
    call: Doubling, most: int = 8, stated_s: float | None = None, clock: FakeClock | None = None
) -> Together[int, int]:
    clock = clock or FakeClock()
    return Together(
        call,
        clock,
        Seat(Turns(), "texts"),
        most=lambda waiting: min(len(waiting), most),
        pace=OwnPace(clock) if stated_s is None else StatedPace(clock),
        seconds=lambda _: stated_s or 0.0,
    )


async def results(made: Together[int, int], items: Sequence[int]) -> list[int | BaseException]:
    found = await asyncio.gather(*map(made.make, items), return_exceptions=True)
    return [each.result if isinstance(each, Made) else each for each in found]


async def test_what_waits_goes_into_one_call_and_no_more_than_may() -> None:
    call = Doubling()
    assert await results(together(call, most=3), range(7)) == [0, 2, 4, 6, 8, 10, 12]
    assert call.calls == [[0, 1, 2], [3, 4, 5], [6]]


async def test_what_comes_during_a_call_goes_into_the_next() -> None:
    call = Doubling(held=True)
    made = together(call)
    first = asyncio.create_task(made.make(1))
    await call.began.wait()
    others = [asyncio.create_task(made.make(item)) for item in (2, 3)]
    await asyncio.sleep(0)
    call.go.set()
    assert [(await task).result for task in (first, *others)] == [2, 4, 6]
    assert call.calls == [[1], [2, 3]]


async def test_one_that_fails_fails_alone() -> None:
    call = Doubling()
    good, bad, other = await results(together(call), [1, -5, 3])
    assert (good, other) == (2, 6)
    assert isinstance(bad, ValueError)
    assert call.calls == [[1, -5, 3], [1], [-5, 3], [-5], [3]]


async def test_of_many_the_one_that_fails_is_found_in_few_calls() -> None:
    call = Doubling()
    found = await results(together(call, most=16), [*range(11), -5, *range(4)])
    assert [type(each) for each in found] == [int] * 11 + [ValueError] + [int] * 4
    assert len(call.calls) == 1 + 2 * 4


async def test_calls_that_are_too_large_become_smaller_ones() -> None:
    call = Doubling(most=4)
    assert await results(together(call), range(8)) == list(range(0, 16, 2))
    assert [len(items) for items in call.calls] == [8, 4, 4]


async def test_who_leaves_the_queue_is_in_no_call() -> None:
    call = Doubling(held=True)
    made = together(call)
    first = asyncio.create_task(made.make(1))
    await call.began.wait()
    leaving, staying = (asyncio.create_task(made.make(item)) for item in (2, 3))
    await asyncio.sleep(0)
    leaving.cancel()
    call.go.set()
    assert [(await task).result for task in (first, staying)] == [2, 6]
    assert call.calls == [[1], [3]]
    assert leaving.cancelled()


async def test_who_leaves_during_a_call_costs_the_others_nothing() -> None:
    call = Doubling(held=True)
    made = together(call)
    leaving, staying = (asyncio.create_task(made.make(item)) for item in (1, 2))
    await call.began.wait()
    leaving.cancel()
    call.go.set()
    assert (await staying).result == 4
    assert call.calls == [[1, 2]]


async def test_a_call_holds_the_turn() -> None:
    call, turn, clock = Doubling(), Seat(Turns(), "texts"), FakeClock()
    made: Together[int, int] = Together(
        call, clock, turn, most=lambda waiting: 1, pace=OwnPace(clock), seconds=lambda _: 0.0
    )
    async with turn:
        task = asyncio.create_task(made.make(1))
        for _ in range(5):
            await asyncio.sleep(0)
        assert call.calls == []
    assert (await task).result == 2


@pytest.mark.parametrize(("took_s", "slept_s", "overruns"), [(0.25, 0.75, 0), (1.5, 0.0, 1)])
async def test_a_stated_time_is_kept(took_s: float, slept_s: float, overruns: int) -> None:
    clock = FakeClock()

    class Slow(Doubling):
        async def __call__(self, items: Sequence[int]) -> list[int]:
            clock.advance(took_s)
            return await super().__call__(items)

    made = await together(Slow(), stated_s=1.0, clock=clock).make(4)
    assert (made.slept_s, made.overruns) == (slept_s, overruns)
    assert made.seconds == max(took_s, 1.0)
