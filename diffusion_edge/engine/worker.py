"""One stage at work: a bounded first-come-first-served queue, and one image at a time.

    run: admit -> wait for the turn -> encode, step ..., decode -> picture or the next stage

Needs no Ray. All torch work happens in one thread, so the event loop stays free to accept,
cancel and report between and during steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from diffusion_edge.config import Emulate
from diffusion_edge.engine import run as core
from diffusion_edge.engine.hop import Guarded
from diffusion_edge.engine.measure import Seconds, measure, resident_bytes
from diffusion_edge.engine.pace import Clock, Pace, RealClock
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

Result = TypeVar("Result")

# ---------------------------------------------------------------------------- records


@dataclass
class Job:
    """A packet on this stage, waiting or running, and what is still to be done for it."""

    packet: Packet
    admitted: float
    rows: int
    encodes_left: int
    steps_left: int
    decodes_left: int

    def left_s(self, seconds: Seconds) -> float:
        return (
            self.encodes_left * seconds.encode_s
            + self.steps_left * seconds.step(self.rows)
            + self.decodes_left * seconds.decode_s
        )


@dataclass(frozen=True)
class Outcome:
    """A finished span: the picture, or the packet for the next stage."""

    record: SpanRecord
    picture: Picture | None
    onward: Packet | None
    warnings: tuple[str, ...]


# ---------------------------------------------------------------------------- the worker


class Worker:
    """A stage's queue and its one thread.

    emulate: seconds that the parts shall take. links: by target, the ways that are acted out by
    sleeping before a hand-off. Call `warm_up` once before the first `run`.
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
        self._thread = ThreadPoolExecutor(
            1, f"stage-{stage}", initializer=torch.set_num_threads, initargs=(threads,)
        )
        self._turn = asyncio.Lock()
        self._jobs: list[Job] = []
        self._steps_run = 0
        self._overruns = 0

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
            queue_s=sum(job.left_s(seconds) for job in self._jobs),
            queued=len(self._jobs),
            capacity=self._capacity,
            step_s=dict(seconds.step_s),
            encode_s=seconds.encode_s,
            decode_s=seconds.decode_s,
            resident_bytes=resident_bytes(),
            emulated=self._stated is not None,
            steps_run=self._steps_run,
            overruns=self._overruns,
        )

    async def warm_up(self, size: int, solver: str) -> Seconds:
        """Measures this stage on images of `size` pixels; returns what was really measured."""
        measured = await measure(self._family, size, solver, self._in_thread, self._clock)
        self._measured = measured
        return measured

    def close(self) -> None:
        """Ends the thread; what waits in it is dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------ one job

    def _admit(self, data: bytes) -> Job:
        packet = read(data, self._family.latent_space)
        span = packet.plan.spans[0]
        if span.stage != self.stage:
            raise WrongPosition(f"the packet is for {span.stage!r}; this stage is {self.stage!r}")
        if len(self._jobs) >= self._capacity:
            raise QueueFull(
                f"the stage {self.stage!r} has {self._capacity} images in its queue",
                retry_after_s=self.status().queue_s,
            )
        guidance = packet.guidance if span.guidance is None else span.guidance
        job = Job(
            packet=packet,
            admitted=self._clock.now(),
            rows=2 if guidance > 1 else 1,
            encodes_left=1,
            steps_left=span.steps,
            decodes_left=int(packet.plan.after_first() is None),
        )
        self._jobs.append(job)
        return job

    async def _work(self, job: Job) -> Outcome:
        await self._wait_for_turn(job)
        try:
            return await self._span(job)
        finally:
            self._turn.release()

    async def _wait_for_turn(self, job: Job) -> None:
        deadline = job.packet.deadline_unix_s
        left_s = deadline - self._clock.unix() if deadline else None
        try:
            async with asyncio.timeout(left_s):
                await self._turn.acquire()
        except TimeoutError:
            raise self._too_late(job) from None

    async def _span(self, job: Job) -> Outcome:
        """Encode, step by step, decode or finish; deadline and cancellation between the parts."""
        packet, family, clock = job.packet, self._family, self._clock
        span = packet.plan.spans[0]
        pace = Pace(clock)
        began = clock.now()
        trajectory = await self._part(
            pace, self._seconds.encode_s, partial(core.begin, family, packet)
        )
        job.encodes_left = 0
        encoded = clock.now()
        for _ in range(span.steps):
            if packet.deadline_unix_s and clock.unix() > packet.deadline_unix_s:
                raise self._too_late(job)
            before = clock.now()
            (trajectory,) = await self._part(
                pace,
                self._seconds.step(job.rows),
                partial(core.step, family, [trajectory]),
            )
            if self._measured and not self._stated:
                self._measured = self._measured.after_step(job.rows, clock.now() - before)
            job.steps_left -= 1
            self._steps_run += 1
        stepped = clock.now()
        picture = onward = None
        if job.decodes_left:
            picture = await self._part(
                pace, self._seconds.decode_s, partial(core.decode, family, trajectory)
            )
            job.decodes_left = 0
        else:
            onward = core.finish(packet, trajectory)
        record = SpanRecord(
            stage=self.stage,
            tier=self._tier,
            start=span.start,
            stop=span.stop,
            queue_s=began - job.admitted,
            run_s=stepped - encoded,
            encode_s=encoded - began,
            decode_s=clock.now() - stepped,
            emulated_s=pace.slept_s,
            overruns=pace.overruns,
        )
        return Outcome(record, picture, onward, core.warnings_of(trajectory))

    async def _part(self, pace: Pace, stated_s: float, work: Callable[[], Result]) -> Result:
        if self._stated is None:
            return await self._in_thread(work)
        before = pace.overruns
        try:
            return await pace.keep(stated_s, self._in_thread(work))
        finally:
            self._overruns += pace.overruns - before

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
        async with aclosing(Guarded(forward, self._hop_timeout_s).run(target, data)) as events:
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

    # ------------------------------------------------------------------ small parts

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

    def _in_thread(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work)


async def _stopped(task: asyncio.Task[Outcome]) -> None:
    """Waits until the task is over, cancelled if need be; swallows what it raised."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
