"""What was decided counts at once, once, and no longer than it is true."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, aclosing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

from diffusion_edge.api.board import Board
from diffusion_edge.api.service import Service
from diffusion_edge.batching import STRETCH
from diffusion_edge.config import Settings
from diffusion_edge.curves import cells_of
from diffusion_edge.emulation import Emulate
from diffusion_edge.errors import DeadlineExceeded, QueueFull, StageLost
from diffusion_edge.packet import new_packet, write
from diffusion_edge.plan import Plan
from diffusion_edge.request import Accepted, Done, Event, ImageRequest, Picture, Progress, Times
from diffusion_edge.routing import due, finish
from diffusion_edge.routing.board import TICK_S, Carriage
from diffusion_edge.routing.codecs import codecs_by_step
from diffusion_edge.routing.forecast import ahead
from diffusion_edge.routing.promises import MOVED_S, Kept, Promise, Promises, merged, promised
from diffusion_edge.view import Choice, Held, StageStatus, Told, Turn, View
from tests.api.fakes import CARD, FakeBoard, FakeTransport, packet_bytes, request, service, settings
from tests.api.test_http import client
from tests.engine.test_report import admitted
from tests.engine.test_worker import Gate, a_worker, gate
from tests.fakes import FakeClock, FakeFamily
from tests.fakes import FakeTransport as Nowhere

__all__ = ["gate"]

# ---------------------------------------------------------------------------- a board over reports


@dataclass
class Stages:
    """What the stages say, and a board that asks them. Nothing changes by itself."""

    config: Settings
    clock: FakeClock = field(default_factory=FakeClock)
    board_class: type[Board] = Board
    held: dict[str, tuple[Held, ...]] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.board = self.board_class(
            {name: partial(self.status, name) for name in self.config.stages},
            self.config.link_map(),
            self.config.prices_per_s,
            carried,
            now=self.clock.now,
        )

    async def status(self, name: str) -> StageStatus:
        if name in self.lost:
            raise ConnectionError("gone")
        held = self.held.get(name, ())
        return replace(FakeBoard(self.config).statuses()[name], held=held, queued=len(held))

    async def report(self, *names: str) -> None:
        for name in names or self.config.stages:
            await self.board.ask_once(name)

    def told(self, name: str) -> StageStatus:
        return self.board.statuses()[name]

    def keys(self, name: str) -> list[tuple[str, int]]:
        return [(held.request, held.image) for held in self.told(name).held]


def carried(asked: ImageRequest) -> Carriage:
    codecs = codecs_by_step(asked, None, 0.01)
    cells = cells_of(CARD.latent_shape(asked.width, asked.height))
    return Carriage(codecs, packet_bytes(codecs), cells)


async def three(**changes: Any) -> Stages:
    """All idle, and a link between any two."""
    stages = Stages(settings(**changes))
    await stages.report()
    return stages


def decided(stages: Stages, plan: str, **changes: Any) -> AbstractContextManager[Kept]:
    asked = request(**({"request_id": "ours", "images": 1} | changes))
    seen = stages.board.view(asked)
    return stages.board.promised(asked, choice_of(plan, asked, seen), seen)


def choice_of(plan: str, asked: ImageRequest, seen: View) -> Choice:
    chosen = Plan.parse(plan)
    return Choice(chosen, finish.of_plan(chosen, asked, seen), 0.0, 1.0, "by hand")


def listed(key: tuple[str, int] = ("ours", 0), steps: int = 7) -> Held:
    return Held(*key, steps, 1, 64, 9.0, False, False)


DONE = Done(Picture(1, 1, b"\0\0\0"), (), ())


# ---------------------------------------------------------------------------- what is promised


@pytest.mark.parametrize(
    "options",
    [
        {"emulate": Emulate(step_s=0.5)},
        {"emulate": Emulate(step_s={1: 0.5, 2: 0.6, 4: 0.8})},
        {"mode": "off"},
        {"rows": 4},
    ],
    ids=["emulated", "emulated-by-rows", "off", "measured"],
)
@pytest.mark.parametrize("deadline_s", [1.5, 900.0])
@pytest.mark.parametrize("plan", ["tower:6", "tower:4,hall:2"])
async def test_it_is_what_the_stage_tells_once_the_packet_is_there(
    options: dict[str, Any], deadline_s: float, plan: str, gate: Gate
) -> None:
    """The second image, which waits while the gate holds the first one back."""
    clock = FakeClock()
    asked = request(steps=6, width=32, height=16, deadline_s=deadline_s, guidance=3.0)
    chosen = Plan.parse(plan)
    async with a_worker(on_predict=gate, clock=clock, **options) as worker:
        status = worker.status()
        there = {name: replace(status, stage=name) for name in ("tower", "hall")}
        view = FakeBoard(settings()).view(asked)
        view = replace(view, stages=there, links={("tower", "hall"): view.links["phone", "tower"]})
        view = replace(view, cells=cells_of(FakeFamily("edge").latent_shape(32, 16)))
        choice = choice_of(plan, asked, view)
        times = Times(due.times(asked, choice, view).due, 1000.0)
        first, second = (
            write(new_packet(asked, chosen, image, FakeFamily.latent_space, times))
            for image in range(2)
        )
        tasks = [asyncio.create_task(run(worker.run(first, Nowhere())))]
        await gate.reached()
        comes = clock.now()
        promise = promised(asked, choice, view, comes)[1].held(status, comes, encodes=True)
        tasks.append(asyncio.create_task(run(worker.run(second, Nowhere()))))
        await admitted(worker, 2)
        told = worker.status().held[1]
        for task in tasks:
            task.cancel()
        gate.open()
        await asyncio.gather(*tasks, return_exceptions=True)
    told = replace(told, due_s=pytest.approx(told.due_s), latest_s=promise.latest_s)
    assert promise == told


async def run(events: AsyncGenerator[Event, None]) -> None:
    async with aclosing(events):
        async for _ in events:
            pass


async def test_a_later_stage_is_told_when_the_image_comes_and_when_it_is_due() -> None:
    stages = await three(stages=by_hand({"phone": 0.4, "tower": 0.2, "hall": 0.05}))
    with decided(stages, "phone:5,hall:15", width=64, deadline_s=60.0):
        (here,), (there,) = stages.told("phone").held, stages.told("hall").held
        link = stages.board.view(request()).links["phone", "hall"]
        alone_s = due.alone_s(request(width=64), stages.board.view(request(width=64)))
    comes_s = 0.01 + 5 * 0.4 + link.transfer_s(2048 + 5)
    due_s = pytest.approx(STRETCH * alone_s)
    assert (here.arrives_s, here.due_s, here.decodes) == (0.0, due_s, False)
    assert there.arrives_s == pytest.approx(comes_s)
    assert there.due_s == due_s
    assert (there.steps, there.encodes, there.decodes) == (15, True, True)


async def test_it_has_to_leave_as_late_as_what_comes_after_it_allows() -> None:
    """By what was learned of forecasts."""
    stages = await three(stages=by_hand({"phone": 0.4, "tower": 0.2, "hall": 0.05}))
    asked = request(request_id="ours", images=1, width=64, deadline_s=60.0)
    latest_s = {}
    for slip in (1.0, 2.0):
        seen = replace(stages.board.view(asked), slip=slip)
        choice = choice_of("phone:5,hall:15", asked, seen)
        with stages.board.promised(asked, choice, seen):
            (here,), (there,) = stages.told("phone").held, stages.told("hall").held
        assert there.latest_s == 60.0
        latest_s[slip] = here.latest_s
    later_s = choice.predicted_s - (0.01 + 5 * 0.4)  # from when it leaves the phone
    assert latest_s == {
        1.0: pytest.approx(60.0 - later_s, abs=MOVED_S),
        2.0: pytest.approx(60.0 - 2 * later_s, abs=2 * MOVED_S),
    }


@pytest.mark.parametrize("plan", ["phone:8,tower:12", "phone:20", "phone:3,tower:9,hall:8"])
async def test_promises_follow_a_plan_that_is_chosen_in_flight(plan: str) -> None:
    """As if it had been decided so from the start; then all of them end."""
    asked = request(request_id="ours", images=1, width=64, deadline_s=60.0)
    told = []
    for first in (plan, "phone:5,hall:15"):
        stages = await three(stages=by_hand({"phone": 0.4, "tower": 0.2, "hall": 0.05}))
        seen = stages.board.view(asked)
        with stages.board.promised(asked, choice_of(first, asked, seen), seen) as kept:
            if first != plan:
                kept.revised(0, Plan.parse(plan), 0, asked, seen)
            told.append({name: stages.told(name).held for name in ("phone", "tower", "hall")})
        assert len(stages.board._promises) == 0
    wanted, found = told
    for name, held in wanted.items():
        assert len(found[name]) == len(held)
        for one, other in zip(held, found[name], strict=True):
            assert (other.steps, other.decodes) == (one.steps, one.decodes)
            assert other.arrives_s == pytest.approx(one.arrives_s, abs=2 * MOVED_S)
            assert other.latest_s == pytest.approx(one.latest_s, abs=3 * MOVED_S)


@pytest.mark.parametrize("encodes", [True, False])
async def test_texts_that_a_later_stage_was_told_are_of_what_it_is_promised(encodes: bool) -> None:
    """What it encodes is work for these images, not for what it holds or others that come."""
    status = FakeBoard(settings()).statuses()["hall"]
    told = Told("ours", 0, 5, encodes), Told("others", 0, 5, True)
    turn = Turn("texts", (), 0.01, ("steps",), ahead=(0,) if encodes else (1,))
    there = Held("there", 0, 3, 1, 64, 9.0, False, False)
    status = replace(status, held=(there,), ahead=told, turn=turn, reads_ahead=True)
    asked = request(request_id="ours", images=1)
    seen = FakeBoard(settings()).view(asked)
    choice = choice_of("phone:5,hall:15", asked, seen)
    _, ours = promised(asked, choice, seen, 2.0)
    alone = merged(status, [replace(ours, before=None, stop=20, steps=20), ours], 1.5)
    first, then = alone.held[1:]
    assert (first.told_s, first.encodes) == (math.inf, True)
    assert (then.told_s, then.encodes) == (0.5, encodes)
    assert alone.turn == replace(turn, images=(2,) if encodes else ())
    assert merged(status, [ours], 3.0).held[1].told_s == 0.0
    blind = replace(status, ahead=(), reads_ahead=False)
    assert merged(blind, [ours], 1.5).held[1].told_s == math.inf


def by_hand(step_s: Mapping[str, float]) -> dict[str, Any]:
    tiers = {"phone": "device", "tower": "edge", "hall": "cloud"}
    return {
        name: {"tier": tiers[name], "model": tiers[name], "emulate": {"step_s": seconds}}
        for name, seconds in step_s.items()
    }


async def test_queues_grow_by_what_goes_straight_there() -> None:
    """So policies that know no arrivals see it, too."""
    stages = await three()
    before = stages.board.statuses()
    with decided(stages, "tower:8,hall:12", images=2, width=64):
        tower, hall = stages.told("tower"), stages.told("hall")
    assert (before["tower"].queued, tower.queued, hall.queued) == (0, 2, 0)
    assert tower.queue_s == pytest.approx(2 * (8 * 0.2 + 0.01 / 2))
    assert hall.queue_s == 0.0
    assert len(tower.held) == len(hall.held) == 2


async def test_places_that_are_promised_are_not_given_away_again() -> None:
    hall = by_hand({"hall": 0.05})
    hall["hall"]["capacity"] = 3
    stages = await three(stages=hall, links=[])
    made, asked = service_over(stages), request(policy="elastic", quality_floor=0.0, images=2)
    with stages.board.promised(asked, made.plan(asked), stages.board.view(asked)):
        made.plan(replace(asked, images=1))
        with pytest.raises(QueueFull):
            made.plan(asked)
    made.plan(asked)


# ---------------------------------------------------------------------------- how it ends


async def test_a_report_that_lists_it_replaces_it_and_nothing_counts_twice() -> None:
    stages = await three()
    with decided(stages, "tower:8,hall:12", images=2):
        assert stages.keys("tower") == [("ours", 0), ("ours", 1)]
        stages.held["tower"] = (listed(("others", 0)), listed())
        await stages.report("tower")
        assert stages.keys("tower") == [("others", 0), ("ours", 0), ("ours", 1)]
        told = stages.told("tower").held[1]
        assert told == replace(listed(), latest_s=told.latest_s)
        assert stages.told("tower").queued == 3
        assert stages.keys("hall") == [("ours", 0), ("ours", 1)]
        stages.held["tower"] = (listed(("ours", 1)),)  # the first one is done there
        await stages.report("tower")
        assert stages.keys("tower") == [("ours", 1)]
        stages.held["tower"] = ()
        await stages.report("tower")
        assert stages.keys("tower") == []
        assert stages.keys("hall") == [("ours", 0), ("ours", 1)]


async def test_it_outlives_reports_that_do_not_list_it_yet() -> None:
    """A report that was made before the packet came, or before the stage before was done."""
    stages = await three()
    with decided(stages, "tower:8,hall:12"):
        (comes,) = stages.told("hall").held
        stages.clock.advance(2 * TICK_S)
        await stages.report()
        assert stages.keys("tower") == stages.keys("hall") == [("ours", 0)]
        (later,) = stages.told("hall").held
        assert later.arrives_s == pytest.approx(comes.arrives_s)  # the tower begins it now
        stages.clock.advance(100.0)
        await stages.report()
        (late,) = stages.told("hall").held
        assert late.arrives_s == pytest.approx(comes.arrives_s)  # and is due as it was
        assert late.due_s == pytest.approx(comes.due_s - 100 - 2 * TICK_S)


async def test_it_ends_when_the_stage_is_done_with_the_image() -> None:
    stages = await three()
    with decided(stages, "tower:8,hall:12", images=2) as kept:
        kept.saw(0, Accepted("tower"))
        assert len(stages.told("tower").held) == 2
        kept.saw(0, Progress("tower", 8))
        assert stages.keys("tower") == [("ours", 1)]
        assert stages.keys("hall") == [("ours", 0), ("ours", 1)]
        kept.saw(1, DONE)
        assert (stages.keys("tower"), stages.keys("hall")) == ([], [("ours", 0)])
        kept.saw(0, DONE)
        assert stages.keys("hall") == []


async def test_a_plan_that_comes_to_a_stage_twice_is_promised_there_twice() -> None:
    """The report shows one at a time."""
    stages = await three()
    with decided(stages, "hall:4,hall:16") as kept:
        assert [held.steps for held in stages.told("hall").held] == [4, 16]
        for _ in range(2):
            stages.held["hall"] = (listed(steps=3),)
            await stages.report("hall")
            assert [held.steps for held in stages.told("hall").held] == [3, 16]
        kept.saw(0, Progress("hall", 4))
        stages.held["hall"] = (listed(steps=15),)
        await stages.report("hall")
        assert [held.steps for held in stages.told("hall").held] == [15]


async def test_requests_end_their_own_promises_even_under_one_name() -> None:
    stages = await three()
    with decided(stages, "tower:8,hall:12"):
        with decided(stages, "tower:20"):
            assert [held.steps for held in stages.told("tower").held] == [8, 20]
        assert [held.steps for held in stages.told("tower").held] == [8]


async def test_a_stage_that_is_lost_leaves_and_comes_back_with_what_still_runs() -> None:
    stages = await three()
    with ExitStack() as stays:
        stays.enter_context(decided(stages, "tower:8,hall:12"))
        with decided(stages, "hall:20", request_id="theirs"):
            stages.lost = {"hall"}
            await stages.report()
            assert list(stages.board.statuses()) == ["phone", "tower"]
            assert stages.keys("tower") == [("ours", 0)]
        stages.lost = set()
        await stages.report()
        assert stages.keys("hall") == [("ours", 0)]
    assert stages.keys("hall") == stages.keys("tower") == []


# ---------------------------------------------------------------------------- one record, its age


async def test_a_stage_is_the_same_record_until_something_changes_for_it() -> None:
    stages = await three()
    idle = stages.board.view(request()).stages
    stages.clock.advance(0.3)
    again = stages.board.view(request()).stages
    assert all(again[name] is idle[name] for name in idle)
    with decided(stages, "tower:20") as kept:
        busy = stages.board.view(request()).stages
        assert (busy["hall"] is idle["hall"], busy["tower"] is idle["tower"]) == (True, False)
        stages.clock.advance(0.3)
        assert stages.told("tower") is busy["tower"]
        kept.saw(0, Progress("tower", 4))  # of nothing that was promised
        assert stages.told("tower") is busy["tower"]
    assert stages.told("tower") == idle["tower"]
    await stages.report("tower")
    assert stages.told("tower") is not idle["tower"]
    assert stages.told("hall") is idle["hall"]


async def test_the_view_tells_how_old_each_report_is() -> None:
    stages = await three()
    stages.clock.advance(3 * TICK_S)
    await stages.report("tower")
    stages.clock.advance(1.5 * TICK_S)
    ages = stages.board.view(request()).age_s
    assert ages == {"phone": 4 * TICK_S, "tower": TICK_S, "hall": 4 * TICK_S}


async def test_what_is_decided_later_is_due_later_however_old_the_report_is() -> None:
    """Times count from the report."""
    stages = await three()
    with ExitStack() as stays:
        for _ in range(5):
            stays.enter_context(decided(stages, "hall:20", deadline_s=300.0))
            stages.clock.advance(TICK_S)
        told = stages.told("hall").held
    assert [held.arrives_s for held in told] == [k * TICK_S for k in range(5)]
    due_s = [told[0].due_s + k * TICK_S for k in range(5)]
    assert [held.due_s for held in told] == pytest.approx(due_s)


# ---------------------------------------------------------------------------- a burst


class Forgetful(Board):
    """Promises nothing."""

    def promised(
        self, request: ImageRequest, choice: Choice, view: View
    ) -> AbstractContextManager[Kept]:
        return nullcontext(Kept(Promises(), ()))


def service_over(stages: Stages, transport: FakeTransport | None = None) -> Service:
    return service(transport, stages.board, stages.config)


SECONDS = {"phone": 0.37, "tower": 0.13, "hall": 0.05}
STEPS, BURST = 20, 24


@dataclass
class Burst:
    """Requests that all came in the same instant, and what was decided for each."""

    choices: list[Choice] = field(default_factory=list)

    @property
    def stages(self) -> list[str]:
        return [choice.plan.spans[0].stage for choice in self.choices]


async def burst(stages: Stages, old_s: float = 0.0, **changes: Any) -> Burst:
    """Of whole pictures, as there are no links; none is done before all are decided."""
    await stages.report()
    stages.clock.advance(old_s)
    gate = asyncio.Event()
    transport = FakeTransport(gate=gate, expected=BURST)
    made = service_over(stages, transport)
    asked = request(
        **({"policy": "earliest", "quality_floor": 0.0, "images": 1, "width": 64} | changes)
    )
    tasks = [
        asyncio.create_task(made.generate(replace(asked, request_id=f"r{k}"))) for k in range(BURST)
    ]
    await transport.all_started.wait()
    gate.set()
    results = await asyncio.gather(*tasks)
    return Burst([result.choice for result in results])


def no_links(board_class: type[Board] = Board) -> Stages:
    return Stages(settings(stages=by_hand(SECONDS), links=[]), board_class=board_class)


def listed_by_hand() -> Counter[str]:
    """Each goes where it would be done first, if stages take one after another."""
    free_s = dict.fromkeys(SECONDS, 0.0)
    taken: Counter[str] = Counter()
    for _ in range(BURST):
        name = min(free_s, key=lambda n: free_s[n] + STEPS * SECONDS[n])
        free_s[name] += STEPS * SECONDS[name]
        taken[name] += 1
    return taken


@pytest.mark.parametrize("deadline_s", [3.0, 300.0])
@pytest.mark.parametrize("old_s", [0.0, 0.31, 0.77])
async def test_a_burst_between_two_reports_is_spread_as_forecasts_say(
    deadline_s: float, old_s: float
) -> None:
    """And what each was told when it was decided is when it is done with all the others there."""
    chosen = await burst(no_links(), old_s, deadline_s=deadline_s)
    assert Counter(chosen.stages) == listed_by_hand()
    for name in SECONDS:
        told = [c.predicted_s for c in chosen.choices if c.plan.spans[0].stage == name]
        assert told == pytest.approx(ends_s(name, len(told), deadline_s), abs=SECONDS[name] + 0.1)


def ends_s(name: str, images: int, deadline_s: float) -> Sequence[float]:
    """When so many that come now to the idle stage are done."""
    stages = no_links()
    status = FakeBoard(stages.config).statuses()[name]
    due_s = min(STRETCH * STEPS * min(SECONDS.values()), deadline_s)
    held = [Held(f"r{k}", 0, STEPS, 1, 64, due_s, True, True) for k in range(images)]
    return ahead(status, held)


async def test_without_promises_a_burst_goes_to_one_stage_and_is_done_much_later() -> None:
    chosen, spread = await burst(no_links(Forgetful)), await burst(no_links())
    assert Counter(chosen.stages) == {"hall": BURST}
    last_s = max(ends_s(name, count, 300.0)[-1] for name, count in Counter(spread.stages).items())
    assert ends_s("hall", BURST, 300.0)[-1] > 1.4 * last_s


async def test_a_burst_over_links_is_predicted_to_be_done_earlier_than_on_one_stage_alone() -> None:
    """Hand-offs may be chosen, too: then later stages know what is on its way to them."""
    linked = Stages(settings(stages=by_hand(SECONDS)))
    chosen = await burst(linked, deadline_s=300.0)
    told = [choice.predicted_s for choice in chosen.choices]
    assert len({name for c in chosen.choices for name in (s.stage for s in c.plan.spans)}) == 3
    assert max(told) <= 1.1 * max(c.predicted_s for c in (await burst(no_links())).choices)
    assert len(linked.board._promises) == 0


async def test_policies_that_know_only_queues_spread_a_burst_too() -> None:
    chosen = await burst(no_links(), policy="earliest", deadline_s=0.1)
    forgetful = await burst(no_links(Forgetful), policy="earliest", deadline_s=0.1)
    assert Counter(chosen.stages) == listed_by_hand()
    assert Counter(forgetful.stages) == {"hall": BURST}


# ---------------------------------------------------------------------------- nothing leaks


async def idle_again(stages: Stages) -> bool:
    """Nothing is promised any more, whatever was listed or not."""
    await stages.report()
    return not len(stages.board._promises) and not any(map(stages.keys, stages.config.stages))


PLAN = Plan.parse("tower:8,hall:12")
OURS = {"policy": "fixed", "plan": PLAN, "images": 3, "request_id": "ours"}


async def under_way(transport: FakeTransport, **changes: Any) -> tuple[Stages, asyncio.Task[Any]]:
    stages = await three(**changes)
    task = asyncio.create_task(service_over(stages, transport).generate(request(**OURS)))
    await transport.all_started.wait()
    return stages, task


@pytest.mark.parametrize("seen", [False, True], ids=["unseen", "listed"])
async def test_nothing_is_left_of_a_request_that_is_done(seen: bool) -> None:
    gate = asyncio.Event()
    stages, task = await under_way(FakeTransport(gate=gate, expected=3))
    assert stages.keys("tower") == stages.keys("hall") == [("ours", k) for k in range(3)]
    if seen:
        stages.held["tower"] = tuple(listed(("ours", k)) for k in range(3))
        await stages.report()
        stages.held.clear()
    gate.set()
    await task
    assert await idle_again(stages)


async def test_nothing_is_left_of_a_request_that_is_cancelled() -> None:
    stages, task = await under_way(FakeTransport(gate=asyncio.Event(), expected=3))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await idle_again(stages)


@pytest.mark.parametrize(
    "error", [StageLost("died", stage="hall"), QueueFull("full"), RuntimeError("unforeseen")]
)
async def test_nothing_is_left_of_a_request_that_fails(error: Exception) -> None:
    stages = await three()
    transport = FakeTransport(fails={1: error}, gate=asyncio.Event())
    with pytest.raises(type(error)):
        await service_over(stages, transport).generate(request(**OURS))
    assert await idle_again(stages)


async def test_nothing_is_left_of_a_request_that_is_given_up() -> None:
    stages = await three(stages=by_hand({"tower": 1e-4, "hall": 1e-4}), links=LINKED)
    transport = FakeTransport(gate=asyncio.Event())
    with pytest.raises(DeadlineExceeded):
        await service_over(stages, transport).generate(request(**OURS, deadline_s=0.01))
    assert await idle_again(stages)


LINKED = [{"between": ["tower", "hall"], "bytes_per_s": 1e9, "emulate": True}]


async def test_nothing_is_left_of_a_packet_that_cannot_be_made() -> None:
    stages = await three()
    made = service_over(stages)

    def broken(*_: object) -> bytes:
        raise ValueError("no packet")

    made._packet = broken
    with pytest.raises(ValueError, match="no packet"):
        await made.generate(request(**OURS))
    assert await idle_again(stages)


async def test_a_preview_promises_nothing() -> None:
    stages = await three()
    made, before = service_over(stages), stages.board.statuses()
    for _ in range(3):
        made.plan(request(**OURS))
    after = stages.board.statuses()
    assert all(after[name] is before[name] for name in before)


async def test_a_preview_tells_what_was_promised_and_how_old_reports_are() -> None:
    stages = await three()
    stages.clock.advance(3 * TICK_S)
    await stages.report("hall")
    with decided(stages, "tower:20"):
        async with client(service_over(stages)) as http:
            told = (await http.post("/v1/plan", json={"prompt": "a red circle"})).json()
    assert told["age_s"] == {"phone": 3 * TICK_S, "tower": 3 * TICK_S, "hall": 0.0}
    (held,) = told["stages"]["tower"]["held"]
    assert (held["request"], held["arrives_s"]) == ("ours", 3 * TICK_S)


async def test_an_image_that_is_done_counts_no_longer_while_the_others_run() -> None:
    class OneByOne(FakeTransport):
        async def run(self, stage: str, packet: bytes) -> AsyncGenerator[Event, None]:
            async with aclosing(super().run(stage, packet)) as events:
                async for event in events:
                    if isinstance(event, Done):
                        yield Progress("tower", 8)
                        passed.set()
                        await last.wait()
                    yield event

    passed, last = asyncio.Event(), asyncio.Event()
    stages, task = await under_way(OneByOne(expected=3))
    await passed.wait()
    assert (stages.keys("tower"), len(stages.keys("hall"))) == ([], 3)
    last.set()
    await task
    assert await idle_again(stages)


def test_a_report_without_promises_is_handed_on_as_it_is() -> None:
    status = FakeBoard(settings()).statuses()["hall"]
    assert merged(status, (), 0.0) is status
    promise = Promise("hall", "r", 0, 20, 20, 1, 64, True, 7.0, 0.0, 60.0)
    assert merged(status, [promise], 7.0) == replace(
        status,
        held=(Held("r", 0, 20, 1, 64, 60.0, True, True),),
        queued=1,
        queue_s=pytest.approx(0.01 / 3 + 20 * 0.05 + 0.01),
    )
