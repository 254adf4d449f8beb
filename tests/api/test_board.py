"""The board: only stages that answered lately are in the view."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from diffusion_edge.api import board as module
from diffusion_edge.api.board import Board
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.board import Carriage
from diffusion_edge.view import Link, StageStatus
from tests.fakes import FakeClock

REQUEST = ImageRequest("a circle", "fake", 4, 0, "ddim", 1.0, 16, 16)
LINKS = {("tower", "hall"): Link(1e6, 0.01), ("hall", "tower"): Link(2e6, 0.03)}


def status(stage: str, queue_s: float = 0.0) -> StageStatus:
    return StageStatus(stage, "edge", "small", queue_s, 0, 8, {16: {1: 0.1}}, 0.0, {16: 0.0}, 1)


def a_board(ask: dict[str, Callable[[], Awaitable[StageStatus]]], clock: FakeClock) -> Board:
    def carried(request: ImageRequest) -> Carriage:
        return Carriage(("exact", "bf16"), (request.width, 8), request.width * 3)

    return Board(ask, LINKS, {"edge": 1.0}, carried, now=clock.now)


async def answers(stage: str) -> StageStatus:
    return status(stage)


async def test_a_stage_leaves_the_view_when_its_word_is_old() -> None:
    clock = FakeClock()
    board = a_board({"tower": lambda: answers("tower"), "hall": lambda: answers("hall")}, clock)
    assert board.statuses() == {}
    await board.ask_once("tower")
    clock.advance(0.6)
    await board.ask_once("hall")
    view = board.view(REQUEST)
    assert list(view.stages) == ["tower", "hall"]
    assert view.links == LINKS
    assert (view.packet_bytes, view.codecs, view.cells) == ((16, 8), ("exact", "bf16"), 48)
    clock.advance(0.6)
    assert list(board.view(REQUEST).stages) == ["hall"]
    assert board.view(REQUEST).links == {}


async def test_a_link_is_in_the_view_once_its_stage_reaches_the_other() -> None:
    async def alone() -> StageStatus:
        return replace(status("tower"), reaches=())

    board = a_board({"tower": alone, "hall": lambda: answers("hall")}, FakeClock())
    await board.ask_once("tower")
    await board.ask_once("hall")
    assert list(board.view(REQUEST).links) == [("hall", "tower")]


@pytest.mark.parametrize("takes_s", [0.01, 0.7, 0.9, 1.5, 4.0])
async def test_a_stage_that_answers_slowly_stays_in_the_view(takes_s: float) -> None:
    """From its first answer to its tenth, at every moment; and once it hangs, it leaves."""
    clock = FakeClock()
    seen: list[bool] = []

    async def slow() -> StageStatus:
        clock.advance(takes_s)
        seen.append("tower" in board.statuses())
        return status("tower")

    board = a_board({"tower": slow}, clock)
    for _ in range(10):
        await board.ask_once("tower")
        seen.append("tower" in board.statuses())
        clock.advance(module.EVERY_S)
    assert seen == [False] + [True] * 19
    clock.advance(module.FRESH_S + takes_s - module.EVERY_S - 0.001)
    assert "tower" in board.statuses()
    clock.advance(0.002)
    assert board.statuses() == {}


async def test_an_answer_that_is_late_once_does_not_hide_the_next_ones() -> None:
    """Quick answers, one after 3 s, quick ones again."""
    clock = FakeClock()
    takes_s = iter([0.01, 3.0, 0.01, 0.01])

    async def once_slow() -> StageStatus:
        clock.advance(next(takes_s))
        return status("tower")

    board = a_board({"tower": once_slow}, clock)
    for _ in range(4):
        await board.ask_once("tower")
        assert "tower" in board.statuses()
        clock.advance(module.EVERY_S)
    clock.advance(module.FRESH_S)
    assert board.statuses() == {}


def test_every_view_has_its_turn() -> None:
    board = a_board({}, FakeClock())
    assert [board.view(REQUEST).turn for _ in range(3)] == [0, 1, 2]


async def test_a_stage_that_fails_leaves_at_once_and_may_come_back() -> None:
    broken = False

    async def sometimes() -> StageStatus:
        if broken:
            raise ConnectionError("gone")
        return status("tower")

    board = a_board({"tower": sometimes}, FakeClock())
    await board.ask_once("tower")
    broken = True
    await board.ask_once("tower")
    assert board.statuses() == {}
    broken = False
    await board.ask_once("tower")
    assert list(board.statuses()) == ["tower"]


async def test_it_asks_again_and_one_silent_stage_holds_up_no_other() -> None:
    often = asyncio.Event()
    asked = 0

    async def counts() -> StageStatus:
        nonlocal asked
        asked += 1
        if asked == 3:
            often.set()
        return status("tower")

    async def silent() -> StageStatus:
        await asyncio.Event().wait()
        raise AssertionError

    board = a_board({"tower": counts, "hall": silent}, FakeClock())
    board.start()
    await asyncio.wait_for(often.wait(), 10 * module.EVERY_S + 5)
    await board.stop()
    assert list(board.statuses()) == ["tower"]
