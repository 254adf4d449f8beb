"""The board: only stages that answered lately are in the view."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from diffusion_edge.serve import board as module
from diffusion_edge.serve.board import Board
from diffusion_edge.serve.carriage import Carriage
from diffusion_edge.types import ImageRequest, Link, StageStatus
from tests.fakes import FakeClock

REQUEST = ImageRequest("a circle", "fake", 4, 0, "ddim", 1.0, 16, 16)
LINKS = {("edge", "cloud"): Link(1e6, 0.01), ("cloud", "edge"): Link(1e6, 0.01)}


def status(stage: str, queue_s: float = 0.0) -> StageStatus:
    return StageStatus(stage, "edge", stage, queue_s, 0, 8, {16: {1: 0.1}}, 0.0, {16: 0.0}, 1)


def a_board(ask: dict[str, Callable[[], Awaitable[StageStatus]]], clock: FakeClock) -> Board:
    def carried(request: ImageRequest) -> Carriage:
        return Carriage(("exact", "bf16"), (request.width, 8), request.width * 3)

    return Board(ask, LINKS, {"edge": 1.0}, carried, now=clock.now)


async def answers(stage: str) -> StageStatus:
    return status(stage)


async def test_a_stage_leaves_the_view_when_its_word_is_old() -> None:
    clock = FakeClock()
    board = a_board({"edge": lambda: answers("edge"), "cloud": lambda: answers("cloud")}, clock)
    assert board.statuses() == {}
    await board.ask_once("edge")
    clock.advance(0.6)
    await board.ask_once("cloud")
    view = board.view(REQUEST)
    assert list(view.stages) == ["edge", "cloud"]
    assert view.links == LINKS
    assert (view.packet_bytes, view.codecs, view.cells) == ((16, 8), ("exact", "bf16"), 48)
    clock.advance(0.6)
    assert list(board.view(REQUEST).stages) == ["cloud"]
    assert board.view(REQUEST).links == {}


async def test_a_link_is_in_the_view_once_its_stage_reaches_the_other() -> None:
    async def alone() -> StageStatus:
        return replace(status("edge"), reaches=())

    board = a_board({"edge": alone, "cloud": lambda: answers("cloud")}, FakeClock())
    await board.ask_once("edge")
    await board.ask_once("cloud")
    assert list(board.view(REQUEST).links) == [("cloud", "edge")]


async def test_the_age_counts_from_the_question() -> None:
    clock = FakeClock()

    async def slow() -> StageStatus:
        clock.advance(1.5)
        return status("edge")

    board = a_board({"edge": slow}, clock)
    await board.ask_once("edge")
    assert board.statuses() == {}


async def test_a_stage_that_fails_leaves_at_once_and_may_come_back() -> None:
    broken = False

    async def sometimes() -> StageStatus:
        if broken:
            raise ConnectionError("gone")
        return status("edge")

    board = a_board({"edge": sometimes}, FakeClock())
    await board.ask_once("edge")
    broken = True
    await board.ask_once("edge")
    assert board.statuses() == {}
    broken = False
    await board.ask_once("edge")
    assert list(board.statuses()) == ["edge"]


async def test_it_asks_again_and_one_silent_stage_holds_up_no_other() -> None:
    often = asyncio.Event()
    asked = 0

    async def counts() -> StageStatus:
        nonlocal asked
        asked += 1
        if asked == 3:
            often.set()
        return status("edge")

    async def silent() -> StageStatus:
        await asyncio.Event().wait()
        raise AssertionError

    board = a_board({"edge": counts, "cloud": silent}, FakeClock())
    board.start()
    await asyncio.wait_for(often.wait(), 10 * module.EVERY_S + 5)
    await board.stop()
    assert list(board.statuses()) == ["edge"]
