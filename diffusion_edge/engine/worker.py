"""One stage at work: a bounded queue, and what it holds stepped in batches.

    run: admit -> encode -> step with others ... -> decode -> picture or the next stage

Needs no Ray. Torch works in threads of its own, so the event loop is free to accept, cancel and
report between and during steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

from diffusion_edge import batching
from diffusion_edge.batching import Batching, Sample
from diffusion_edge.config import Emulate
from diffusion_edge.engine import run as core
from diffusion_edge.engine.hop import Guarded
from diffusion_edge.engine.lanes import Lanes
from diffusion_edge.engine.measure import Seconds, measure, resident_bytes
from diffusion_edge.engine.pace import Clock, RealClock
from diffusion_edge.engine.run import Trajectory
from diffusion_edge.engine.stepper import Entry, Stepper
from diffusion_edge.engine.together import Made, Together
from diffusion_edge.errors import DeadlineExceeded, QueueFull, StageLost, WrongPosition
from diffusion_edge.families.base import Family
from diffusion_edge.packet import Packet, read, write
from diffusion_edge.types import (
    Accepted,
    Done,
    Event,
    HopRecord,
    Link,
    Picture,
    Progress,
    SpanRecord,
    StageStatus,
    Tier,
    Transport,
)

TEXTS = 8
"""Requests whose texts are encoded in one call at most; more gained nothing."""

CELLS = 1024
"""Latent cells that are decoded in one call at most. Larger pictures gain nothing by company, and
several at once may be more than memory holds."""

# ---------------------------------------------------------------------------- records


@dataclass(eq=False)
class Job:
    """A packet on this stage, waiting or running, and what is still to be done for it."""

    packet: Packet
    admitted: float
    sample: Sample
    encodes_left: int
    decodes_left: int
    entry: Entry | None = None

    @property
    def steps_left(self) -> int:
        return self.packet.plan.spans[0].steps if self.entry is None else self.entry.left

    def around_s(self, seconds: Seconds) -> float:
        """What encoding and decoding are still to take."""
        return self.encodes_left * seconds.encode_s + self.decodes_left * seconds.decode_s


@dataclass(frozen=True)
class Outcome:
    """A finished span: the picture, or the packet for the next stage."""

    record: SpanRecord
    picture: Picture | None
    onward: Packet | None
    warnings: tuple[str, ...]


# ---------------------------------------------------------------------------- the worker


class Worker:
    """A stage's queue, its loop and its threads.

    emulate: seconds that the parts shall take; a step's are of one sample, so nothing is batched
    then. mode: see `batching`. rows: of a forward pass at most; None lets the measured seconds
    decide. together: whether texts that wait at the same time are encoded in one call, and pictures
    decoded in one. cut: whether forward passes may be cut over the cores. links: by target, the
    ways that are acted out by sleeping before a hand-off. Call `warm_up` once before the first
    `run`.
    """

    def __init__(
        self,
        family: Family,
        *,
        stage: str,
        tier: Tier,
        model: str = "",
        capacity: int = 32,
        threads: int = 1,
        emulate: Emulate | None = None,
        mode: Batching = "in-flight",
        rows: int | None = None,
        together: bool = True,
        cut: bool = True,
        links: Mapping[str, Link] | None = None,
        hop_timeout_s: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        self.stage = stage
        self._family = family
        self._tier: Tier = tier
        self._model = model or family.stage
        self._capacity = capacity
        self._stated = Seconds.stated(emulate) if emulate else None
        self._measured: Seconds | None = None
        self._links = dict(links or {})
        self._hop_timeout_s = hop_timeout_s
        self._clock: Clock = clock or RealClock()
        self._mode: Batching = mode
        self._asked_rows = rows
        self._together = together and mode == "in-flight" and emulate is None
        self._cuts = threads if cut and family.device.type == "cpu" else 1
        self._jobs: list[Job] = []
        self._overruns = 0
        self._lanes = Lanes(f"steps-{stage}", threads)
        # One turn for all three: beside each other on the same cores they take longer.
        turn = asyncio.Lock()
        self._texts: Together[Packet, Trajectory] = Together(
            lambda packets: self._lanes.run(partial(core.begin_all, family, packets)),
            self._clock,
            turn,
            most=lambda waiting: min(len(waiting), TEXTS) if self._together else 1,
            stated_s=self._stated.encode_s if self._stated else None,
        )
        self._pictures: Together[Trajectory, Picture] = Together(
            lambda ended: self._lanes.run(partial(core.decode_all, family, ended)),
            self._clock,
            turn,
            most=lambda waiting: alike(waiting) if self._together else 1,
            stated_s=self._stated.decode_s if self._stated else None,
        )
        self._stepper = Stepper(
            self._step,
            self._clock,
            turn,
            mode=mode,
            rows=self._rows,
            stated_s=lambda rows: self._stated.step(rows) if self._stated else None,
            on_step=self._learn,
        )

    async def run(self, data: bytes, forward: Transport) -> AsyncGenerator[Event, None]:
        """Runs the first span of a packet's plan, then hands the packet on.

        The first event is Accepted. Closing the iterator stops the work within one step. Raises
        QueueFull, DeadlineExceeded, StageLost and the PacketErrors.
        """
        job = self._admit(data)
        work = asyncio.create_task(self._work(job))
        # Not in _work: a task that is cancelled before its first turn never enters its body.
        work.add_done_callback(lambda _: self._jobs.remove(job))
        try:
            yield Accepted(self.stage)
            outcome = await work
        finally:
            await _stopped(work)
        yield Progress(self.stage, job.packet.plan.spans[0].stop)
        if outcome.picture is not None:
            yield Done(outcome.picture, (outcome.record,), (), outcome.warnings)
            return
        async with aclosing(self._hand_on(outcome, forward)) as events:
            async for event in events:
                yield event

    def status(self) -> StageStatus:
        """What a router needs to know now; RuntimeError before `warm_up`."""
        seconds = self._seconds
        return StageStatus(
            stage=self.stage,
            tier=self._tier,
            model=self._model,
            queue_s=self._queue_s(),
            queued=len(self._jobs),
            capacity=self._capacity,
            step_s=dict(seconds.step_s),
            encode_s=seconds.encode_s,
            decode_s=seconds.decode_s,
            resident_bytes=resident_bytes(),
            emulated=self._stated is not None,
            steps_run=self._stepper.steps_run,
            overruns=self._overruns,
            guiding=self._family.guiding,
            batches=self._rows() is not None,
        )

    async def warm_up(self, size: int, solver: str) -> Seconds:
        """Measures this stage on images of `size` pixels; returns what was really measured."""
        measured = await measure(self._family, size, solver, self._lanes, self._clock, self._cuts)
        self._measured = measured
        return measured

    def close(self) -> None:
        """Ends the threads; what waits in them is dropped."""
        self._lanes.close()

    # ------------------------------------------------------------------ one job

    def _admit(self, data: bytes) -> Job:
        packet = read(data, self._family.latent_space)
        span = packet.plan.spans[0]
        if span.stage != self.stage:
            raise WrongPosition(f"the packet is for {span.stage!r}; this stage is {self.stage!r}")
        if len(self._jobs) >= self._capacity:
            raise QueueFull(
                f"the stage {self.stage!r} has {self._capacity} images in its queue",
                retry_after_s=self._queue_s(),
            )
        job = Job(
            packet=packet,
            admitted=self._clock.now(),
            sample=self._sample(packet),
            encodes_left=1,
            decodes_left=int(packet.plan.after_first() is None),
        )
        self._jobs.append(job)
        return job

    def _sample(self, packet: Packet) -> Sample:
        """What the rules of batching are told of a packet."""
        doubled = self._family.guiding == "doubled" and packet.guidance_now > 1
        rows, now = 2 if doubled else 1, self._clock.now()
        left_s = packet.deadline_unix_s - self._clock.unix()
        return Sample(
            key=(self._family.latent_shape(packet.width, packet.height), doubled),
            rows=rows,
            due=batching.due(
                now,
                packet.plan.spans[0].steps * self._seconds.step(rows),
                now + left_s if packet.deadline_unix_s else None,
                self._mode,
            ),
        )

    async def _work(self, job: Job) -> Outcome:
        deadline = job.packet.deadline_unix_s
        left_s = deadline - self._clock.unix() if deadline else None
        try:
            async with asyncio.timeout(left_s):
                return await self._span(job)
        except TimeoutError:
            raise self._too_late(job) from None

    async def _span(self, job: Job) -> Outcome:
        """Encode, step with others, decode or finish. TimeoutError when the deadline passes."""
        packet, span = job.packet, job.packet.plan.spans[0]
        text = await self._texts.make(packet)
        job.encodes_left = 0
        entry = job.entry = Entry(job.sample, text.result, span.steps, packet.deadline_unix_s)
        await self._stepper.take(entry)
        stepped, first = self._clock.now(), entry.began or text.ended
        if job.decodes_left:
            picture = await self._pictures.make(entry.trajectory)
            job.decodes_left, onward = 0, None
        else:
            picture, onward = None, core.finish(packet, entry.trajectory)
        parts: list[Made[Any]] = [text, picture] if picture else [text]
        record = SpanRecord(
            stage=self.stage,
            tier=self._tier,
            start=span.start,
            stop=span.stop,
            queue_s=(text.began - job.admitted)
            + (first - text.ended)
            + (picture.began - stepped if picture else 0.0),
            run_s=stepped - first,
            encode_s=text.seconds,
            decode_s=picture.seconds if picture else 0.0,
            emulated_s=entry.slept_s + sum(part.slept_s for part in parts),
            overruns=entry.overruns + sum(part.overruns for part in parts),
        )
        self._overruns += record.overruns
        warnings = core.warnings_of(self._family, packet)
        return Outcome(record, picture.result if picture else None, onward, warnings)

    async def _hand_on(self, done: Outcome, forward: Transport) -> AsyncGenerator[Event, None]:
        """Sends the packet to the next stage and passes its events on, ours before its in Done."""
        assert done.onward is not None
        target = done.onward.plan.spans[0].stage
        data = write(done.onward)
        clock, left = self._clock, self._clock.now()
        link = self._links.get(target)
        if link is not None:
            await clock.sleep(link.transfer_s(len(data)))
        slept_s, hop = clock.now() - left if link else 0.0, None
        async with aclosing(self._onward(target, data, forward)) as events:
            async for event in events:
                if hop is None:
                    seconds = clock.now() - left
                    hop = HopRecord(
                        self.stage, target, len(data), seconds, done.onward.codec, slept_s
                    )
                if isinstance(event, Done):
                    event = replace(
                        event,
                        spans=(done.record, *event.spans),
                        hops=(hop, *event.hops),
                        warnings=tuple(dict.fromkeys((*done.warnings, *event.warnings))),
                    )
                yield event
                if isinstance(event, Done):
                    return
        raise StageLost(f"the stage {target!r} ended without a result", stage=target)

    def _onward(self, target: str, data: bytes, forward: Transport) -> AsyncGenerator[Event, None]:
        """The events of the next stage. A packet for this one stays in the replica: in Ray 2.60
        some 9 % of the calls that an actor streams from itself hang."""
        if target == self.stage:
            return self.run(data, forward)
        return Guarded(forward, self._hop_timeout_s).run(target, data)

    # ------------------------------------------------------------------ small parts

    def _rows(self) -> int | None:
        """Of a forward pass at most; None for one sample at a time."""
        if self._stated or self._mode == "off":
            return None
        if self._mode == "reproducible":
            return self._asked_rows or batching.FIXED_ROWS
        best = batching.best_rows(self._seconds.step_s)
        return min(best, self._asked_rows or best)

    def _queue_s(self) -> float:
        """About how much later an image is done that comes now."""
        seconds = self._seconds
        around_s = sum(job.around_s(seconds) for job in self._jobs)
        if self._rows() is None:
            steps_s = sum(job.steps_left * seconds.step(job.sample.rows) for job in self._jobs)
        else:
            work = [(job.steps_left, job.sample.rows) for job in self._jobs]
            steps_s = batching.drained_s(work, seconds.step_s)
        return around_s + steps_s

    def _learn(self, rows: int, took_s: float) -> None:
        if self._measured and not self._stated:
            self._measured = self._measured.after_step(rows, took_s)

    @property
    def _seconds(self) -> Seconds:
        seconds = self._stated or self._measured
        if seconds is None:
            raise RuntimeError(f"the stage {self.stage!r} is not warmed up")
        return seconds

    def _too_late(self, job: Job) -> DeadlineExceeded:
        plan = job.packet.plan
        done = plan.spans[0].steps - job.steps_left
        return DeadlineExceeded(
            f"the deadline passed on the stage {self.stage!r} at step {plan.start + done} "
            f"of {plan.stop}"
        )

    def _step(self, trajectories: Sequence[Trajectory], rows: int) -> Awaitable[list[Trajectory]]:
        return self._lanes.step(self._family, trajectories, self._lanes_for(rows))

    def _lanes_for(self, rows: int) -> int:
        """Into how many parts a forward pass is cut. In mode `reproducible` that follows from its
        rows alone, and the parts are equal."""
        if self._mode == "reproducible":
            return self._cuts if rows % self._cuts == 0 else 1
        return min(self._seconds.lanes_for(rows), rows)


def alike(waiting: Sequence[Trajectory]) -> int:
    """How many latents of the first one's shape lead, up to CELLS in all; at least one."""
    shape = waiting[0].latent.shape
    same = takewhile(lambda trajectory: trajectory.latent.shape == shape, waiting)
    return min(len(list(same)), max(1, CELLS // shape[2:].numel()))


async def _stopped(task: asyncio.Task[Outcome]) -> None:
    """Waits until the task is over, cancelled if need be; swallows what it raised."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
