"""What links are taken for: what is stated, then what hops took."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from math import log

import numpy as np
import pytest

from diffusion_edge.api.board import Board
from diffusion_edge.engine.link import EmulatedLink, steady
from diffusion_edge.request import Done, HopRecord, Picture, SpanRecord
from diffusion_edge.routing import cost
from diffusion_edge.routing.board import Carriage
from diffusion_edge.routing.links.candidates import NEUTRAL
from diffusion_edge.routing.links.estimate import LinkEstimate
from diffusion_edge.routing.links.taken import SAME_S, Links, since_hops
from diffusion_edge.view import Link, StageStatus
from tests.api.test_board import REQUEST, status
from tests.fakes import FakeClock, VirtualClock

STATED = Link(2e6, 0.03)
FIRST = {("phone", "tower"): STATED, ("tower", "phone"): STATED, ("tower", "hall"): None}
PICTURE = Picture(1, 1, b"\0\0\0")


def span(
    stage: str, *, queue_s: float, run_s: float, encode_s: float, decode_s: float
) -> SpanRecord:
    return SpanRecord(stage, "edge", 0, 1, queue_s, run_s, encode_s, decode_s)


SPANS = (
    span("phone", queue_s=9.0, run_s=9.0, encode_s=9.0, decode_s=0.0),
    span("tower", queue_s=0.5, run_s=1.0, encode_s=0.25, decode_s=0.0),
    span("hall", queue_s=2.0, run_s=4.0, encode_s=0.125, decode_s=8.0),
)
HOPS = (
    HopRecord("phone", "tower", 40_000, 0.75, "exact", 0.5, queue_s=0.25),
    HopRecord("tower", "hall", 3_000, 16.0, "bf16", 16.0, emulated_bytes=90_000),
)
DONE = Done(PICTURE, SPANS, HOPS)
AFTER_TOWER_S, AFTER_HALL_S = 16.0 + 1.75, 14.125
"""From the end of each hop to the end of the picture: the hop after it and the spans after it."""


def test_a_hop_ended_before_all_that_came_after_it() -> None:
    assert list(since_hops(DONE)) == pytest.approx([AFTER_TOWER_S + AFTER_HALL_S, AFTER_HALL_S])
    assert list(since_hops(Done(PICTURE, SPANS[:1], ()))) == []


def test_what_nothing_was_seen_of_is_stated_or_guessed() -> None:
    clock = FakeClock()
    links = Links(FIRST, clock.now)
    clock.advance(500.0)
    for pair, first in FIRST.items():
        link, told = links.link(pair), links.view(pair)
        assert link.bytes_per_s == pytest.approx((first or NEUTRAL).bytes_per_s)
        assert link.delay_s == pytest.approx((first or NEUTRAL).delay_s)
        assert (told.known, told.hops, told.age_s) == ("stated" if first else "guessed", 0, None)
    with pytest.raises(KeyError):
        links.link(("hall", "tower"))


def test_hops_teach_their_own_direction_bytes_seconds_and_when() -> None:
    """Three pictures, so that what was known when each was decided makes a difference."""
    clock = FakeClock()
    links = Links(FIRST, clock.now)
    began = clock.now()
    up, on = LinkEstimate.start(STATED, began), LinkEstimate.start(None, began)
    for took_s in (40.0, 64.0, 128.0):
        clock.advance(50.0)
        links.arrived(DONE, took_s)
        now = clock.now()
        up = up.observe(40_000, 0.5, now - AFTER_TOWER_S - AFTER_HALL_S, now - took_s)
        on = on.observe(90_000, 16.0, now - AFTER_HALL_S, now - took_s)
    clock.advance(1.0)
    for pair, estimate in ((("phone", "tower"), up), (("tower", "hall"), on)):
        assert links.view(pair) == estimate.view(clock.now())
        assert links.link(pair) == replace(estimate.link(clock.now()), slow=estimate.slow)
        assert links.probes(pair) == 0
    assert links.view(("tower", "phone")).known == "stated"
    told = links.view(("tower", "hall"))
    assert (told.known, told.hops) == ("measured", 3)
    assert told.age_s == pytest.approx(1.0 + AFTER_HALL_S)
    clock.advance(60.0)
    assert links.view(("tower", "hall")).known == "stale"


def test_a_plan_cut_on_one_stage_teaches_no_link() -> None:
    links = Links(FIRST, FakeClock().now)
    hop = replace(HOPS[0], source="tower")
    links.arrived(Done(PICTURE, SPANS[1:], (hop,)), 9.0)
    assert {links.view(pair).hops for pair in FIRST} == {0}


def test_links_may_be_held_to_what_is_stated() -> None:
    clock = FakeClock()
    links = Links(FIRST, clock.now, measured=False)
    before = links.link(("phone", "tower"))
    links.arrived(DONE, 40.0)
    clock.advance(1.0)
    assert links.link(("phone", "tower")) == before
    assert links.view(("phone", "tower")).known == "stated"


def test_a_link_is_computed_once_for_the_views_of_a_moment() -> None:
    clock = FakeClock()
    links = Links(FIRST, clock.now)
    pair = ("phone", "tower")
    for done in (DONE, replace(DONE, hops=(replace(HOPS[0], seconds=9.0), *HOPS[1:]))):
        links.arrived(done, 40.0)
    now = links.link(pair)
    clock.advance(SAME_S / 2)
    assert links.link(pair) is now
    links.arrived(DONE, 40.0)
    newer = links.link(pair)
    assert newer != now
    clock.advance(30.0)
    assert links.link(pair) != newer


def test_a_link_tells_what_one_hop_in_ten_takes_once_a_hop_was_seen() -> None:
    clock = FakeClock()
    links = Links(FIRST, clock.now)
    pair = ("phone", "tower")
    assert links.link(pair).slow == 1.0
    links.arrived(DONE, 40.0)
    assert links.link(pair).slow == links.view(pair).slow > 1.0
    seconds = links.link(pair).transfer_s(10_000)
    assert links.link(pair).slowed.transfer_s(10_000) == pytest.approx(
        links.view(pair).slow * seconds
    )


# ---------------------------------------------------------------------------- what the router sees

BYTES = (1_500, 263_000)
"""Of a packet before its first step, and after it."""
PAIR = ("tower", "hall")


def a_board(clock: FakeClock | VirtualClock, link: Link | None) -> Board:
    return Board(
        {name: lambda name=name: answers(name) for name in PAIR},
        dict.fromkeys(permutations(PAIR, 2), link),
        {"edge": 1.0},
        lambda _: Carriage(("exact", "exact"), BYTES, 48),
        now=clock.now,
    )


async def answers(name: str) -> StageStatus:
    return status(name)


async def predicted_s(board: Board, handoff: int = 1) -> float:
    """Of a hop, by the router."""
    for name in PAIR:
        await board.ask_once(name)
    return float(cost.hop_s(*PAIR, np.array([handoff]), board.view(REQUEST))[0])


async def crossed(board: Board, road: EmulatedLink, clock: VirtualClock, nbytes: int) -> float:
    """A picture's packet goes over the link, and its stage takes a second."""
    began = clock.now()
    waited_s = await road.carry(nbytes)
    hop = HopRecord(*PAIR, nbytes, clock.now() - began, "exact", queue_s=waited_s)
    await clock.sleep(1.0)
    spans = (SPANS[0], span("hall", queue_s=0.0, run_s=1.0, encode_s=0.0, decode_s=0.0))
    board.links.arrived(Done(PICTURE, spans, (hop,)), clock.now() - began)
    return hop.seconds - hop.queue_s


@pytest.mark.parametrize("factor", [0.1, 0.01])
async def test_a_throttled_link_is_noticed_by_six_hops(factor: float) -> None:
    """The router's prediction is then off by a quarter at most; also when the link is let go."""
    clock = VirtualClock()
    road = EmulatedLink(steady(1.1e6), 0.03, clock)
    board = a_board(clock, Link(1.1e6, 0.03))

    async def pictures(count: int) -> tuple[float, float]:
        """Seconds that the next hop is predicted to take, and those of the last one."""
        for _ in range(count):
            took_s = await crossed(board, road, clock, BYTES[1])
        return await predicted_s(board), took_s

    async def story() -> None:
        predicted, took_s = await pictures(12)
        assert predicted == pytest.approx(took_s, rel=0.05)
        for times in (factor, 1.0):
            road.throttle(times)
            before = predicted
            predicted, took_s = await pictures(6)
            assert abs(log(before / took_s)) > log(4.0)
            assert took_s == pytest.approx(0.03 + BYTES[1] / 1.1e6 / times, rel=0.01)
            assert abs(log(predicted / took_s)) < log(1.25)

    await clock.run(story())


async def test_a_link_of_which_nothing_is_stated_is_learned_from_few_hops() -> None:
    """Of several sizes: larger and smaller packets are then predicted right, too."""
    clock = VirtualClock()
    road = EmulatedLink(steady(4e6), 0.004, clock)
    board = a_board(clock, None)

    async def story() -> None:
        for nbytes in (3_000, 66_000) * 6:
            await crossed(board, road, clock, nbytes)
        for handoff, nbytes in enumerate(BYTES):
            right_s = 0.004 + nbytes / 4e6
            assert await predicted_s(board, handoff) == pytest.approx(right_s, rel=0.1)

    await clock.run(story())


def test_no_link_is_due_before_the_one_that_is_quiet_for_longest_could_be() -> None:
    now = [0.0]
    links = Links({("a", "b"): STATED, ("b", "a"): STATED}, lambda: now[0])
    first_s = links.quiet_until(links.pairs)
    now[0] = first_s - 0.01
    assert links.due(links.pairs) is None
    now[0] = first_s
    assert links.due(links.pairs) is not None
    assert links.quiet_until(links.pairs) == first_s  # of the other one
    assert links.due(links.pairs) is not None
    assert links.quiet_until(links.pairs) == 2 * first_s
