"""One stage at work: a bounded queue, and what it holds stepped in batches.

    run: admit -> encode -> step with others ... -> decode -> picture or the next stage

Needs no Ray. Torch works in threads of its own, so the event loop is free to accept, cancel and
report between and during steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from diffusion_edge.batching import Batching
from diffusion_edge.emulation import Emulate
from diffusion_edge.engine import report
from diffusion_edge.engine import run as core
from diffusion_edge.engine.ahead import Ahead
from diffusion_edge.engine.job import Job, Outcome, Queue
from diffusion_edge.engine.measure import resident_bytes
from diffusion_edge.engine.pace import Clock, RealClock
from diffusion_edge.engine.parts import Parts
from diffusion_edge.engine.probe import Greets
from diffusion_edge.engine.seconds import Seconds
from diffusion_edge.engine.stepper import Entry
from diffusion_edge.engine.together import Made
from diffusion_edge.engine.ways import Ways
from diffusion_edge.errors import DeadlineExceeded, QueueFull, StageLost, WrongPosition
from diffusion_edge.families.base import Family
from diffusion_edge.families.card import LatentShape
from diffusion_edge.packet import take
from diffusion_edge.plan import Tier
from diffusion_edge.request import Accepted, Done, Event, Progress, SpanRecord, Transport
from diffusion_edge.traces import Trace
from diffusion_edge.view import Link, StageStatus


class Worker:
    """A stage's queue, its loop and its threads.

    emulate: seconds that the parts shall take for a picture of the size that `warm_up` is told; as
    those around the steps are of one text and of one picture, these are then made one by one. mode:
    see `batching`. rows: of a forward pass at most; None lets the known seconds decide. together:
    whether texts that wait at the same time are encoded in one call, and pictures decoded in one.
    cut: whether forward passes may be cut over the cores. links: by target, the ways that are acted
    out by sleeping before a hand-off, one packet after another. traces: by target, how their rates
    go in time, from when this is made; others keep the link's. charged: the latents that these ways
    take a packet's for, by width and height; None for its own. Call `warm_up` once before the first
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
        traces: Mapping[str, Trace] | None = None,
        charged: LatentShape | None = None,
        hop_timeout_s: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        self.stage = stage
        self._family = family
        self._tier: Tier = tier
        self._model = model or family.stage
        self._emulated = emulate is not None
        self._mode: Batching = mode
        self._clock: Clock = clock or RealClock()
        self._queue = Queue(capacity)
        self._parts_run = self._overruns = 0
        self._closed = False
        self._parts = Parts(
            family,
            stage,
            self._clock,
            threads=threads,
            emulate=emulate,
            mode=mode,
            rows=rows,
            together=together,
            cut=cut,
        )
        self._ahead = Ahead(
            self._parts.texts,
            self._clock,
            at_once=self._parts.texts_at_once,
            idle=lambda: not len(self._queue),
        )
        self._ways = Ways(
            family,
            stage,
            self._clock,
            links=links or {},
            traces=traces or {},
            charged=charged,
            hop_timeout_s=hop_timeout_s,
        )

    async def run(self, data: bytes, forward: Transport) -> AsyncGenerator[Event, None]:
        """Runs the first span of a packet's plan, then hands the packet on.

        The first event is Accepted. Closing the iterator stops the work within one step. Raises
        QueueFull, DeadlineExceeded, StageLost and the PacketErrors. A trajectory that was begun
        elsewhere waits where a new one finds the queue full.
        """
        job = self._admit(data)
        work = asyncio.create_task(self._work(job))
        # Not in _work: a task that is cancelled before its first turn never enters its body.
        work.add_done_callback(lambda _: self._leave(job))
        try:
            yield Accepted(self.stage)
            outcome = await work
        finally:
            await _stopped(work)
        yield Progress(self.stage, job.packet.plan.spans[0].stop)
        if outcome.picture is not None:
            yield Done(outcome.picture, (outcome.record,), (), outcome.warnings)
            return
        async with aclosing(self._ways.hand_on(outcome, job.times, forward, self.run)) as events:
            async for event in events:
                yield event

    def status(self) -> StageStatus:
        """What a router needs to know now; RuntimeError before `warm_up`.

        A forward pass is seen when it has ended: what is in one now has its step still before it.
        """
        parts, seconds, now = self._parts, self._parts.seconds, self._clock.now()
        jobs, notices = report.pictures_first(self._queue, parts), self._ahead.notices()
        return StageStatus(
            stage=self.stage,
            tier=self._tier,
            model=self._model,
            queue_s=report.queue_s(self._queue, parts),
            queued=len(self._queue),
            capacity=self._queue.capacity,
            step_s=seconds.step_s,
            encode_s=seconds.encoding(1),
            decode_s=seconds.decode_s,
            resident_bytes=resident_bytes(),
            emulated=self._emulated,
            steps_run=parts.stepper.steps_run,
            parts_run=self._parts_run,
            overruns=self._overruns,
            guiding=self._family.guiding,
            batches=parts.batches,
            most_rows=parts.most_rows,
            held=tuple(job.held(now) for job in jobs),
            pads=self._mode == "reproducible",
            turn=report.turn(jobs, notices, parts, now),
            texts_s=seconds.texts_s,
            pictures_s=seconds.pictures_s,
            reads_ahead=True,
            ahead=tuple(notice.told() for notice in notices),
            execution=self._family.execution,
            attention=self._family.attention,
        )

    def expect(self, data: bytes) -> None:
        """Takes note of a packet on its way to the first stage of its plan: its texts are encoded
        here ahead of its later spans, if there is time. Raises StageLost and the PacketErrors."""
        if self._closed:
            raise StageLost(f"the stage {self.stage!r} was closed", stage=self.stage)
        self._ahead.expect(take(data, self._family.offer), self.stage)

    def forget(self, request: str) -> None:
        """Nothing of this request is to come any more."""
        self._ahead.forget(request)

    def replan(self, data: bytes) -> bool:
        """Whether an image that is here goes by another plan from its next step boundary on: the
        whole one of a packet as it would have left for the first stage. It does not where it has
        passed that step, or is not here. Raises the PacketErrors."""
        packet = take(data, self._family.offer)
        key = packet.request_id, packet.image, packet.attempt
        here = [job for job in self._queue if job.key == key]
        return any(job.replan(packet.plan) for job in here)

    async def warm_up(self, size: int, solver: str, others: Sequence[int] = ()) -> Seconds:
        """Measures this stage on images of `size` pixels, and a little on `others` that soon take
        their figures from what is served; returns what was really measured."""
        return await self._parts.warm_up(size, solver, others)

    def throttle(self, target: str, factor: float, *, restart: bool = False) -> None:
        """Gives the emulated link to `target` so many times its rate from now on; `restart` lets
        its trace begin again. InvalidRequest if there is no such link."""
        self._ways.throttle(target, factor, restart=restart)

    async def probe(self, target: str, nbytes: int, forward: Greets) -> float | None:
        """Seconds that so many bytes take to the stage `target`; see `engine.probe`. Raises
        StageLost."""
        if self._closed:
            raise StageLost(f"the stage {self.stage!r} was closed", stage=self.stage)
        return await self._ways.probe(target, nbytes, forward)

    def close(self) -> None:
        """Ends the threads. Who is on this stage then, or comes later, gets StageLost."""
        self._closed = True
        self._ahead.close()
        why = partial(StageLost, f"the stage {self.stage!r} was closed", stage=self.stage)
        self._parts.close(why)

    # ------------------------------------------------------------------ one job

    def _admit(self, data: bytes) -> Job:
        packet = take(data, self._family.offer)
        span = packet.plan.spans[0]
        if span.stage != self.stage:
            raise WrongPosition(f"the packet is for {span.stage!r}; this stage is {self.stage!r}")
        full, now = self._queue.full, self._clock.now()
        if full and not self._queue.may_wait(packet, len(data)):
            raise QueueFull(
                f"the stage {self.stage!r} has {len(self._queue)} images in its queue",
                retry_after_s=report.queue_s(self._queue, self._parts),
            )
        job = Job(
            data=data,
            packet=replace(packet, latent=None, history=()) if full else packet,
            arrived=now,
            times=packet.left.shifted(now),
            sample=self._parts.sample(packet, now),
            doubled=self._parts.doubled(packet),
            decodes_left=int(packet.plan.after_first() is None),
            asked=self._ahead.take(packet),
        )
        self._queue.join(job)
        return job

    def _leave(self, job: Job) -> None:
        self._queue.leave(job)
        self._ahead.look()

    async def _work(self, job: Job) -> Outcome:
        try:
            async with asyncio.timeout(job.times.shifted(-self._clock.now()).give_up):
                await self._placed(job)
                return await self._span(job)
        except TimeoutError:
            raise self._given_up(job) from None

    async def _placed(self, job: Job) -> None:
        """Waits for a place; then the packet is read anew, with its tensors."""
        if not job.place.is_set():
            await job.place.wait()
            job.packet = replace(take(job.data, self._family.offer), plan=job.packet.plan)

    async def _span(self, job: Job) -> Outcome:
        """Encode, step with others, decode or finish. TimeoutError when it is to be given up."""
        job.asked = job.asked or self._parts.texts.ask(job.packet)
        text, packet = await job.asked.answer, job.packet
        trajectory = text.result.trajectory or core.begun(self._family, packet, text.result.texts)
        asked, ready = max(text.began, job.arrived), max(text.ended, job.arrived)
        entry = job.entry = Entry(job.sample, trajectory, job.steps_left, job.times.give_up)
        await self._parts.stepper.take(entry)
        packet, span = job.packet, job.packet.plan.spans[0]  # the plan may be another one by now
        stepped, first = self._clock.now(), entry.began or ready
        if job.decodes_left:
            picture = await self._parts.pictures.make(entry.trajectory)
            job.decodes_left, onward = 0, None
        else:
            picture, onward = None, core.finish(packet, entry.trajectory)
        parts: list[Made[Any]] = [text, picture] if picture else [text]
        record = SpanRecord(
            stage=self.stage,
            tier=self._tier,
            start=span.start,
            stop=span.stop,
            queue_s=(asked - job.arrived)
            + (first - ready)
            + (picture.began - stepped if picture else 0.0),
            run_s=stepped - first,
            encode_s=ready - asked,
            decode_s=picture.seconds if picture else 0.0,
            emulated_s=entry.slept_s + sum(part.slept_s for part in parts),
            overruns=entry.overruns + sum(part.overruns for part in parts),
            ahead_s=text.seconds - (ready - asked),
            execution=self._family.execution,
        )
        self._parts_run += span.steps + len(parts)
        self._overruns += record.overruns
        warnings = core.warnings_of(self._family, packet)
        return Outcome(record, picture.result if picture else None, onward, warnings)

    def _given_up(self, job: Job) -> DeadlineExceeded:
        plan = job.packet.plan
        done = plan.spans[0].steps - job.steps_left
        return DeadlineExceeded(
            f"the work was given up on the stage {self.stage!r} at step {plan.start + done} "
            f"of {plan.stop}: its time was over"
        )


async def _stopped(task: asyncio.Task[Outcome]) -> None:
    """Waits until the task is over, cancelled if need be; swallows what it raised."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
