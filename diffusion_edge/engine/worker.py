"""One stage at work: a bounded queue, and what it holds stepped in batches.

    run: admit -> encode -> step with others ... -> decode -> picture or the next stage

Needs no Ray. Torch works in threads of its own, so the event loop is free to accept, cancel and
report between and during steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import Any

import torch

from diffusion_edge import batching
from diffusion_edge.batching import CELLS, TEXTS, Batching, Sample
from diffusion_edge.config import Emulate
from diffusion_edge.curves import cells_of
from diffusion_edge.engine import run as core
from diffusion_edge.engine.hop import Guarded
from diffusion_edge.engine.lanes import Lanes
from diffusion_edge.engine.link import EmulatedLink, steady
from diffusion_edge.engine.measure import ROWS, measure, resident_bytes
from diffusion_edge.engine.pace import Clock, OwnPace, RealClock, StatedPace
from diffusion_edge.engine.probe import Greets, probed
from diffusion_edge.engine.run import Trajectory
from diffusion_edge.engine.seconds import Seconds
from diffusion_edge.engine.stepper import Entry, Stepper
from diffusion_edge.engine.together import Made, Together
from diffusion_edge.engine.turn import Seat, Turns
from diffusion_edge.errors import (
    DeadlineExceeded,
    InvalidRequest,
    QueueFull,
    StageLost,
    WrongPosition,
)
from diffusion_edge.families.base import Family
from diffusion_edge.families.card import LatentShape
from diffusion_edge.packet import Packet, take, tensor_bytes, write
from diffusion_edge.plan import Tier
from diffusion_edge.request import (
    Accepted,
    Done,
    Event,
    HopRecord,
    Picture,
    Progress,
    SpanRecord,
    Times,
    Transport,
)
from diffusion_edge.traces import Trace
from diffusion_edge.view import Held, Link, StageStatus, Turn

HELD, HELD_BYTES = 1024, 256 * 2**20
"""Hand-offs that wait for a place on this stage, and bytes of their packets, at most."""

# ---------------------------------------------------------------------------- records


@dataclass(eq=False)
class Job:
    """A packet on this stage, waiting or running, and what is still to be done for it.

    data: as it came; `packet` is without tensors until there is a place. times: by this clock.
    """

    data: bytes
    packet: Packet
    arrived: float
    times: Times
    sample: Sample
    doubled: bool
    encodes_left: int
    decodes_left: int
    entry: Entry | None = None
    place: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def steps_left(self) -> int:
        return self.packet.plan.spans[0].steps if self.entry is None else self.entry.left

    def held(self, now: float) -> Held:
        """As it stands at `now`. Steps, a text or a picture that are being made count as still to
        be done until the forward pass or the call that they are in has ended."""
        return Held(
            request=self.packet.request_id,
            image=self.packet.image,
            steps=self.steps_left,
            rows=self.sample.rows,
            cells=self.sample.cells,
            due_s=self.sample.due - now,
            encodes=self.encodes_left > 0,
            decodes=self.decodes_left > 0,
            doubled=self.doubled,
        )

    def is_among(self, items: Set[int]) -> bool:
        """Whether a pass or a call that has items of these identities is for this job."""
        entry = self.entry
        own = (self.packet,) if entry is None else (entry, entry.trajectory)
        return any(id(each) in items for each in own)

    def around_s(self, seconds: Seconds) -> float:
        """What encoding and decoding are still to take."""
        decoding_s = self.decodes_left * seconds.decoding(self.sample.cells)
        return self.encodes_left * seconds.encoding(self.sample.rows) + decoding_s


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
        self._capacity = capacity
        self._emulate = emulate
        self._known: Seconds | None = None
        self._cells = 0
        self._charged = charged
        self._hop_timeout_s = hop_timeout_s
        self._clock: Clock = clock or RealClock()
        self._links = {
            target: EmulatedLink(
                (traces or {}).get(target) or steady(link.bytes_per_s), link.delay_s, self._clock
            )
            for target, link in (links or {}).items()
        }
        self._mode: Batching = mode
        self._asked_rows = rows
        self._together = together and mode == "in-flight" and emulate is None
        self._cuts = threads if cut and family.device.type == "cpu" else 1
        self._jobs: list[Job] = []
        self._overruns = 0
        self._closed = False
        self._lanes = Lanes(f"steps-{stage}", threads)
        self._turns = Turns()
        pace = StatedPace(self._clock) if emulate else OwnPace(self._clock)
        self._texts: Together[Packet, Trajectory] = Together(
            self._encode,
            self._clock,
            Seat(self._turns, "texts"),
            most=lambda waiting: min(len(waiting), TEXTS) if self._together else 1,
            pace=pace,
            seconds=lambda packets: self._seconds.encoding(self._texts_of(packets)),
        )
        self._pictures: Together[Trajectory, Picture] = Together(
            self._decode,
            self._clock,
            Seat(self._turns, "pictures"),
            most=lambda waiting: alike(waiting) if self._together else 1,
            pace=pace,
            seconds=lambda ended: self._seconds.decoding(latent_cells(ended), len(ended)),
        )
        self._stepper = Stepper(
            self._step,
            self._clock,
            Seat(self._turns, "steps"),
            mode=mode,
            rows=self._rows,
            pace=pace,
            seconds=lambda cells, rows: self._seconds.step(cells, rows),
            on_step=self._learn,
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
        async with aclosing(self._hand_on(job, outcome, forward)) as events:
            async for event in events:
                yield event

    def status(self) -> StageStatus:
        """What a router needs to know now; RuntimeError before `warm_up`.

        A forward pass is seen when it has ended: what is in one now has its step still before it.
        """
        seconds, now, jobs = self._seconds, self._clock.now(), self._pictures_first()
        return StageStatus(
            stage=self.stage,
            tier=self._tier,
            model=self._model,
            queue_s=self._queue_s(),
            queued=len(self._jobs),
            capacity=self._capacity,
            step_s=seconds.step_s,
            encode_s=seconds.encoding(1),
            decode_s=seconds.decode_s,
            resident_bytes=resident_bytes(),
            emulated=self._emulate is not None,
            steps_run=self._stepper.steps_run,
            overruns=self._overruns,
            guiding=self._family.guiding,
            batches=self._batches,
            most_rows=self._most_rows,
            held=tuple(job.held(now) for job in jobs),
            pads=self._mode == "reproducible",
            turn=self._told_turn(jobs, now),
            texts_s=seconds.texts_s,
            pictures_s=seconds.pictures_s,
        )

    def _pictures_first(self) -> list[Job]:
        """All jobs, those first that wait for their pictures, in that order."""
        waiting = [made.item for made in self._pictures.line.waiting()]
        places = {id(trajectory): place for place, trajectory in enumerate(waiting)}

        def place(job: Job) -> int:
            return places.get(id(job.entry and job.entry.trajectory), len(places))

        return sorted(self._jobs, key=place)

    def _told_turn(self, jobs: Sequence[Job], now: float) -> Turn:
        waiting, doing = tuple(self._turns.waiting), self._turns.doing
        if doing is None:
            return Turn(waiting=waiting)
        items = {id(item) for item in doing.items}
        images = tuple(place for place, job in enumerate(jobs) if job.is_among(items))
        return Turn(doing.work, images, max(doing.ends_at - now, 0.0), waiting)

    async def warm_up(self, size: int, solver: str, others: Sequence[int] = ()) -> Seconds:
        """Measures this stage on images of `size` pixels, and a little on `others` that soon take
        their figures from what is served; returns what was really measured."""
        sizes = (size, *others)
        measured = await measure(self._family, sizes, solver, self._lanes, self._clock, self._cuts)
        self._cells = cells_of(self._family.latent_shape(size, size))
        self._known = Seconds.of(self._emulate, self._cells) if self._emulate else measured
        return measured

    def throttle(self, target: str, factor: float, *, restart: bool = False) -> None:
        """Gives the emulated link to `target` so many times its rate from now on; `restart` lets
        its trace begin again. InvalidRequest if there is no such link."""
        if target not in self._links:
            raise InvalidRequest(f"the stage {self.stage!r} has no emulated link to {target!r}")
        self._links[target].throttle(factor, restart=restart)

    async def probe(self, target: str, nbytes: int, forward: Greets) -> float | None:
        """Seconds that so many bytes take to the stage `target`; see `engine.probe`. Raises
        StageLost."""
        if self._closed:
            raise StageLost(f"the stage {self.stage!r} was closed", stage=self.stage)
        return await probed(target, nbytes, self._links.get(target), forward, self._clock)

    def close(self) -> None:
        """Ends the threads. Who is on this stage then, or comes later, gets StageLost."""
        self._closed = True
        why = partial(StageLost, f"the stage {self.stage!r} was closed", stage=self.stage)
        for line in (self._texts.line, self._stepper.line, self._pictures.line):
            line.close(why)
        self._lanes.close()

    # ------------------------------------------------------------------ one job

    def _admit(self, data: bytes) -> Job:
        packet = take(data, self._family.offer)
        span = packet.plan.spans[0]
        if span.stage != self.stage:
            raise WrongPosition(f"the packet is for {span.stage!r}; this stage is {self.stage!r}")
        full, now = len(self._jobs) >= self._capacity, self._clock.now()
        if full and not self._may_wait(packet, len(data)):
            raise QueueFull(
                f"the stage {self.stage!r} has {len(self._jobs)} images in its queue",
                retry_after_s=self._queue_s(),
            )
        job = Job(
            data=data,
            packet=replace(packet, latent=None, history=()) if full else packet,
            arrived=now,
            times=packet.left.shifted(now),
            sample=self._sample(packet, now),
            doubled=self._doubled(packet),
            encodes_left=1,
            decodes_left=int(packet.plan.after_first() is None),
        )
        self._jobs.append(job)
        if not full:
            job.place.set()
        return job

    def _may_wait(self, packet: Packet, nbytes: int) -> bool:
        """Steps that were taken elsewhere are not thrown away, as far as memory allows."""
        waiting = [len(job.data) for job in self._jobs[self._capacity :]]
        room = len(waiting) < HELD and sum(waiting) + nbytes <= HELD_BYTES
        return packet.latent is not None and room

    def _leave(self, job: Job) -> None:
        """The first `capacity` jobs have a place; the next one in order of arrival gets this."""
        self._jobs.remove(job)
        if len(self._jobs) >= self._capacity:
            self._jobs[self._capacity - 1].place.set()

    def _sample(self, packet: Packet, now: float) -> Sample:
        """What the rules of batching are told of a packet that arrives now."""
        rows = self._rows_of(packet)
        shape = self._family.latent_shape(packet.width, packet.height)
        cells = cells_of(shape)
        return Sample(
            key=(shape, self._doubled(packet)),
            rows=rows,
            cells=cells,
            due=batching.due(
                now,
                packet.plan.spans[0].steps * self._seconds.step(cells, rows),
                packet.left.shifted(now).due,
                self._mode,
            ),
        )

    def _doubled(self, packet: Packet) -> bool:
        return self._family.guiding == "doubled" and packet.guidance_now > 1

    def _rows_of(self, packet: Packet) -> int:
        """In a forward pass, and texts in a call."""
        return 2 if self._doubled(packet) and not self._emulate else 1

    def _texts_of(self, packets: Sequence[Packet]) -> int:
        return sum(map(self._rows_of, packets))

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
            job.packet = take(job.data, self._family.offer)

    async def _span(self, job: Job) -> Outcome:
        """Encode, step with others, decode or finish. TimeoutError when it is to be given up."""
        packet, span = job.packet, job.packet.plan.spans[0]
        text = await self._texts.make(packet)
        job.encodes_left = 0
        entry = job.entry = Entry(job.sample, text.result, span.steps, job.times.give_up)
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
            queue_s=(text.began - job.arrived)
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

    async def _hand_on(
        self, job: Job, done: Outcome, forward: Transport
    ) -> AsyncGenerator[Event, None]:
        """Sends the packet to the next stage and passes its events on, ours before its in Done."""
        assert done.onward is not None
        target = done.onward.plan.spans[0].stage
        clock, left = self._clock, self._clock.now()
        data = write(replace(done.onward, left=job.times.shifted(-left)))
        hop = HopRecord(self.stage, target, len(data), 0.0, done.onward.codec)
        link, seen = self._links.get(target), False
        if link is not None:
            hop = replace(hop, emulated_bytes=self._charged_bytes(done.onward, len(data)))
            waited_s = await link.carry(hop.link_bytes)
            hop = replace(hop, queue_s=waited_s, emulated_s=clock.now() - left)
        async with aclosing(self._onward(target, data, forward)) as events:
            async for event in events:
                if not seen:
                    hop, seen = replace(hop, seconds=clock.now() - left), True
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

    def _charged_bytes(self, packet: Packet, nbytes: int) -> int | None:
        """Of a packet of `nbytes`, if its tensors were those of the family that is charged."""
        if self._charged is None:
            return None
        history, codec = len(packet.history), packet.codec
        own = self._family.latent_shape(packet.width, packet.height)
        other = self._charged(packet.width, packet.height)
        more = tensor_bytes(other, history, codec) - tensor_bytes(own, history, codec)
        return nbytes + more

    def _onward(self, target: str, data: bytes, forward: Transport) -> AsyncGenerator[Event, None]:
        """The events of the next stage. A packet for this one stays in the replica: in Ray 2.60
        some 9 % of the calls that an actor streams from itself hang."""
        if target == self.stage:
            return self.run(data, forward)
        return Guarded(forward, self._hop_timeout_s).run(target, data)

    # ------------------------------------------------------------------ small parts

    @property
    def _batches(self) -> bool:
        """Whether samples share forward passes; not where the seconds of one sample alone are all
        that is stated."""
        alone = self._emulate is not None and len(self._emulate.curve) == 1
        return self._mode != "off" and not alone

    def _rows(self, company: Sequence[Sample]) -> int | None:
        """Of a forward pass at most that these could share; None for one sample at a time."""
        if not self._batches:
            return None
        if self._mode == "reproducible":
            return self._asked_rows or batching.FIXED_ROWS
        first, waiting = company[0], sum(sample.rows for sample in company)
        return self._seconds.rows(first.cells, first.rows, waiting, self._asked_rows or ROWS[-1])

    @property
    def _most_rows(self) -> int | None:
        """Of a forward pass, as far as mode, config and memory bind it: those of the default size,
        where memory was too small for some. None for one sample at a time."""
        if not self._batches:
            return None
        if self._mode == "reproducible":
            return self._asked_rows or batching.FIXED_ROWS
        return self._seconds.most(self._cells, self._asked_rows or ROWS[-1])

    def _queue_s(self) -> float:
        """About how much later an image is done that comes now."""
        seconds = self._seconds
        work: dict[int, list[tuple[int, int]]] = {}
        for job in self._jobs:
            work.setdefault(job.sample.cells, []).append((job.steps_left, job.sample.rows))
        around_s = sum(job.around_s(seconds) for job in self._jobs)
        return around_s + sum(self._steps_s(cells, left) for cells, left in work.items())

    def _steps_s(self, cells: int, work: Sequence[tuple[int, int]]) -> float:
        """Seconds that the steps left take of samples of one size, given as (steps, rows)."""
        seconds = self._seconds
        if not self._batches:
            return sum(steps * seconds.step(cells, rows) for steps, rows in work)
        return batching.drained_s(work, seconds.curve(cells))

    def _learn(self, cells: int, rows: int, took_s: float) -> None:
        self._known = self._seconds.after_step(cells, rows, took_s)

    async def _encode(self, packets: Sequence[Packet]) -> Sequence[Trajectory]:
        """All in one call."""
        began = self._clock.now()
        begun = await self._lanes.run(partial(core.begin_all, self._family, packets))
        took_s = self._clock.now() - began
        self._known = self._seconds.after_encoding(self._texts_of(packets), took_s)
        return begun

    async def _decode(self, ended: Sequence[Trajectory]) -> Sequence[Picture]:
        """All in one call."""
        began = self._clock.now()
        pictures = await self._lanes.run(partial(core.decode_all, self._family, ended))
        took_s = self._clock.now() - began
        self._known = self._seconds.after_decoding(latent_cells(ended), len(ended), took_s)
        return pictures

    @property
    def _seconds(self) -> Seconds:
        if self._known is None:
            raise RuntimeError(f"the stage {self.stage!r} is not warmed up")
        return self._known

    def _given_up(self, job: Job) -> DeadlineExceeded:
        plan = job.packet.plan
        done = plan.spans[0].steps - job.steps_left
        return DeadlineExceeded(
            f"the work was given up on the stage {self.stage!r} at step {plan.start + done} "
            f"of {plan.stop}: its time was over"
        )

    async def _step(self, trajectories: Sequence[Trajectory], rows: int) -> list[Trajectory]:
        cells = latent_cells(trajectories)
        try:
            return await self._lanes.step(self._family, trajectories, self._lanes_for(cells, rows))
        except torch.OutOfMemoryError:
            self._known = self._seconds.out_of_memory(cells, rows)
            raise

    def _lanes_for(self, cells: int, rows: int) -> int:
        """Into how many parts a forward pass is cut. In mode `reproducible` that follows from its
        rows alone, and the parts are equal."""
        if self._mode == "reproducible":
            return self._cuts if rows % self._cuts == 0 else 1
        return self._seconds.lanes_for(cells, rows)


def latent_cells(trajectories: Sequence[Trajectory]) -> int:
    """Of the latent of each, which all have one shape."""
    return cells_of(trajectories[0].latent.shape[1:])


def alike(waiting: Sequence[Trajectory]) -> int:
    """How many latents of the first one's shape lead, up to CELLS in all; at least one."""
    shape = waiting[0].latent.shape
    same = takewhile(lambda trajectory: trajectory.latent.shape == shape, waiting)
    return min(len(list(same)), max(1, CELLS // latent_cells(waiting)))


async def _stopped(task: asyncio.Task[Outcome]) -> None:
    """Waits until the task is over, cancelled if need be; swallows what it raised."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
