"""A storm of requests of which most end early: those left get their pictures, and nothing stays."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from torch import Tensor

from diffusion_edge.engine import run as core
from diffusion_edge.engine.job import Job, Outcome
from diffusion_edge.engine.pace import RealClock
from diffusion_edge.engine.run import Encoded, Trajectory, run_last_span
from diffusion_edge.engine.stepper import Entry
from diffusion_edge.engine.worker import Worker
from diffusion_edge.errors import DeadlineExceeded
from diffusion_edge.packet import Packet, write
from diffusion_edge.plan import Plan
from diffusion_edge.request import Done, Event, Picture, Times
from diffusion_edge.sites.local import LocalTransport
from tests.engine.test_worker import NOWHERE, Gate, a_packet, a_worker, done, gate
from tests.fakes import FakeFamily
from tests.theorem import BOUND, CONTROL, relative

__all__ = ["gate"]

HOUR = 3600.0
REQUESTS = 360
SOLVERS = ("ddim", "euler", "euler-ancestral", "dpmpp-2m", "dpmpp-2m-sde", "unipc", "lms", "pndm")
PROMPTS = ("a red circle", "a blue square on white", "a green triangle")
RECORDS = (Job, Entry, Trajectory, Packet, Outcome)


# ---------------------------------------------------------------------------- the requests


@dataclass(frozen=True)
class Moment:
    """Where a request is: the work that a thread does for it, and the step it stands at."""

    work: str
    position: int


@dataclass(frozen=True)
class Ending:
    """How a request ends: cancelled at a moment, by closing the iterator after some events, with a
    deadline of so many seconds, or with one that passes at a moment."""

    kind: str
    cancelled_at: Moment | None = None
    leaves_after: int = 0
    expires_at: Moment | None = None
    deadline_s: float = 0.0


def drawn(draw: random.Random, number: int, stages: Sequence[str]) -> tuple[Packet, Ending]:
    """A request, known by its seed, and its end."""
    steps = draw.randint(len(stages) + 1, 12)
    inner = sorted(draw.sample(range(1, steps), len(stages) - 1))
    cuts = [0, *inner, steps]
    shape = zip(stages, (b - a for a, b in pairwise(cuts)), strict=True)
    packet = a_packet(
        str(Plan.of(tuple(shape))),
        seed=number,
        prompt=draw.choice(PROMPTS),
        solver=draw.choice(SOLVERS),
        guidance=draw.choice((1.0, 1.0, 2.5, 6.0)),
        width=draw.choice((16, 32)),
    )
    endings = (
        Ending("finishes"),
        Ending("finishes"),
        Ending("cancelled before its first turn"),
        Ending("cancelled encoding", cancelled_at=Moment("begin", draw.choice(cuts[:-1]))),
        Ending("cancelled stepping", cancelled_at=Moment("step", draw.randrange(steps))),
        Ending("cancelled decoding", cancelled_at=Moment("decode", steps)),
        Ending("leaves queued", leaves_after=1),
        Ending("leaves between events", leaves_after=draw.randint(2, 2 * len(stages))),
        Ending("too late on arrival", deadline_s=-1.0),
        Ending("too late soon", deadline_s=draw.uniform(0.001, 0.1)),
        Ending("too late stepping", expires_at=Moment("step", draw.randrange(steps - 1))),
    )
    return packet, draw.choice(endings)


class Clock(RealClock):
    """Real time, of which hours can be skipped."""

    hours = 0

    def now(self) -> float:
        return super().now() + self.hours * HOUR

    def skip(self, hours: int) -> None:
        """From the start on so many in all."""
        self.hours = max(self.hours, hours)


# ---------------------------------------------------------------------------- the storm


class Storm:
    """Runs requests and ends them, those at work exactly at their moment: the thread waits there
    until the loop has done it.

    afterwards: by seed, work that was done for a request after its end. still_held: requests that
    had a slot after their end.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self._began = self.clock.now()
        self.latents: dict[int, Tensor] = {}
        self.afterwards: Counter[int] = Counter()
        self.still_held = 0
        self._over: set[int] = set()
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[int, asyncio.Task[Picture | None]] = {}
        self._due: dict[tuple[int, Moment], Callable[[], object]] = {}
        begin, step, decode = core.take_up, core.step, core.decode_all

        def begun(family: Any, packets: Sequence[Packet]) -> list[Encoded]:
            for packet in packets:
                self._pass(packet.seed, Moment("begin", packet.position))
            return begin(family, packets)

        def stepped(family: Any, trajectories: Sequence[Trajectory], *how: Any) -> list[Trajectory]:
            for trajectory in trajectories:
                self._pass(trajectory.seed, Moment("step", trajectory.position))
            return step(family, trajectories, *how)

        def decoded(family: Any, trajectories: Sequence[Trajectory]) -> list[Picture]:
            for trajectory in trajectories:
                self._pass(trajectory.seed, Moment("decode", trajectory.position))
                self.latents[trajectory.seed] = trajectory.latent
            return decode(family, trajectories)

        for name, wrapped in (("take_up", begun), ("step", stepped), ("decode_all", decoded)):
            monkeypatch.setattr(core, name, wrapped)

    def _pass(self, seed: int, moment: Moment) -> None:
        self.afterwards[seed] += seed in self._over
        act = self._due.pop((seed, moment), None)
        if act is not None:
            acted = threading.Event()
            self._loop.call_soon_threadsafe(act)
            self._loop.call_soon_threadsafe(acted.set)
            assert acted.wait(30)

    async def run(
        self,
        asked: Sequence[tuple[Packet, Ending]],
        made: Mapping[str, Worker],
        draw: random.Random,
    ) -> dict[int, Picture | str]:
        """By seed the picture, or why there is none."""
        for packet, ending in asked:
            self._start(packet, ending, made)
            for _ in range(draw.randrange(4)):
                await asyncio.sleep(0)
        await asyncio.wait(self._tasks.values())
        self._due.clear()
        tasks, self._tasks = self._tasks, {}
        return {seed: ended(task) for seed, task in tasks.items()}

    def _start(self, packet: Packet, ending: Ending, made: Mapping[str, Worker]) -> None:
        if ending.deadline_s:
            packet = replace(packet, left=Times(give_up=ending.deadline_s))
        if ending.expires_at is not None:  # in an hour of its own, so that later ones live on
            hour = packet.seed + 1
            self._due[packet.seed, ending.expires_at] = lambda: self.clock.skip(hour)
        task = asyncio.create_task(self._one(packet, ending, made))
        self._tasks[packet.seed] = task
        if ending.kind == "cancelled before its first turn":
            task.cancel()
        if ending.cancelled_at is not None:
            self._due[packet.seed, ending.cancelled_at] = task.cancel

    async def _one(
        self, packet: Packet, ending: Ending, made: Mapping[str, Worker]
    ) -> Picture | None:
        seed, first = packet.seed, packet.plan.spans[0].stage
        if ending.expires_at is not None:  # told now, for no hour to pass before it is admitted
            left_s = self._began + (seed + 1) * HOUR - self.clock.now()
            packet = replace(packet, left=Times(give_up=left_s))
        try:
            events = LocalTransport(made).run(first, write(packet))
            return await read_on(events, ending.leaves_after)
        finally:
            self._over.add(seed)
            held = (job.packet.seed for worker in made.values() for job in worker._queue)
            self.still_held += seed in held


async def read_on(events: Any, leaves_after: int) -> Picture | None:
    """Reads to the end, or closes the iterator after some events."""
    seen: list[Event] = []
    async with aclosing(events):
        async for event in events:
            seen.append(event)
            if leaves_after == len(seen):
                return None
    return done(seen).picture


def ended(task: asyncio.Task[Picture | None]) -> Picture | str:
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    if error is not None:
        return type(error).__name__
    return task.result() or "left"


# ---------------------------------------------------------------------------- what stays


@asynccontextmanager
async def workers(
    stages: Sequence[str], storm: Storm, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[dict[str, Worker]]:
    made = {
        stage: Worker(
            FakeFamily("edge"),
            stage=stage,
            tier="edge",
            capacity=REQUESTS,
            hop_timeout_s=HOUR,  # however busy this machine is
            clock=storm.clock,
        )
        for stage in stages
    }
    for worker in made.values():
        await worker.warm_up(16, "ddim")
        monkeypatch.setattr(worker._parts.stepper, "_rows", lambda company: 8)
    try:
        yield made
    finally:
        for worker in made.values():
            worker.close()


async def at_rest(worker: Worker) -> None:
    """Waits until its threads are done with what nobody waits for any more."""
    for line in (worker._parts.texts.line, worker._parts.stepper.line, worker._parts.pictures.line):
        if line._task is not None:
            await line._task
    await worker._parts.lanes.run(lambda: None)


def alive() -> Counter[type]:
    """How many records of requests are in memory."""
    gc.collect()
    return Counter(type(found) for found in gc.get_objects() if type(found) in RECORDS)


def expected_end(kind: str) -> set[str]:
    if kind == "too late soon":
        return {"DeadlineExceeded", "a picture"}
    if kind.startswith("too late"):
        return {"DeadlineExceeded"}
    if kind.startswith("cancelled"):
        return {"cancelled"}
    return {"left"} if kind.startswith("leaves") else {"a picture"}


@pytest.mark.parametrize("stages", [("tower",), ("tower", "hall")], ids=["one stage", "two stages"])
async def test_a_storm_of_cancels_leaves_pictures_and_nothing_else(
    stages: Sequence[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    draw = random.Random(len(stages))
    asked = [drawn(draw, number, stages) for number in range(REQUESTS)]
    kinds = Counter(ending.kind for _, ending in asked)
    assert len(kinds) == 10
    assert min(kinds.values()) > 15
    alone = {
        packet.seed: run_last_span(
            FakeFamily("edge"), replace(packet, plan=Plan.parse(f"tower:{packet.steps}"))
        )[0]
        for packet, ending in asked
        if "a picture" in expected_end(ending.kind)
    }
    storm, before = Storm(monkeypatch), alive()
    async with workers(stages, storm, monkeypatch) as made:
        found = await storm.run(asked, made, draw)
        for worker in made.values():
            await at_rest(worker)
            assert (worker.status().queued, worker.status().queue_s) == (0, 0)
            assert worker._parts.stepper.line._waiters == []
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert alive() == before
        assert max(storm.afterwards.values()) <= 1  # what a thread had begun
        assert storm.still_held == 0
        assert caplog.records == []  # nor an exception that nobody asked for

    for packet, ending in asked:
        result = found[packet.seed]
        got = "a picture" if isinstance(result, Picture) else result
        assert got in expected_end(ending.kind), (ending, got)
        if isinstance(result, Picture):
            latent = storm.latents[packet.seed]
            assert relative(latent, alone[packet.seed]) <= BOUND
            assert result == FakeFamily("edge").decode(latent)[0]
    alike = [latent for latent in alone.values() if latent.shape == (1, 3, 4, 4)]
    assert all(relative(one, other) > CONTROL for one, other in pairwise(alike))


# ---------------------------------------------------------------------------- who does not read


async def test_who_does_not_read_holds_no_slot(gate: Gate) -> None:
    """The work goes on behind the iterator's back, and its slot is free when it is done."""
    async with a_worker(capacity=1, on_predict=gate) as worker:
        events = worker.run(write(a_packet("tower:3")), NOWHERE)
        await anext(events)
        await gate.reached()
        assert worker.status().queued == 1
        gate.open()
        async with asyncio.timeout(30):
            while worker.status().queued:
                await asyncio.sleep(0)
        other = [event async for event in worker.run(write(a_packet("tower:2")), NOWHERE)]
        assert isinstance(other[-1], Done)
        late = [event async for event in events]
        assert done(late).picture == run_last_span(FakeFamily("edge"), a_packet("tower:3"))[1]


async def test_who_does_not_read_may_still_leave(gate: Gate) -> None:
    async with a_worker(capacity=1, on_predict=gate) as worker:
        events = worker.run(write(a_packet("tower:1,hall:2")), NOWHERE)
        await anext(events)
        gate.open()
        async with asyncio.timeout(30):
            while worker.status().queued:
                await asyncio.sleep(0)
        await events.aclose()
        assert NOWHERE.sent == []
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_a_deadline_passes_for_who_does_not_read(gate: Gate) -> None:
    async with a_worker(capacity=1, clock=Clock(), on_predict=gate) as worker:
        clock = worker._clock
        assert isinstance(clock, Clock)
        packet = a_packet("tower:5", left=Times(give_up=HOUR))
        events = worker.run(write(packet), NOWHERE)
        await anext(events)
        await gate.reached()
        clock.skip(2)
        gate.open()
        async with asyncio.timeout(30):
            while worker.status().queued:
                await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded, match="at step 1 of 5"):
            await anext(events)
