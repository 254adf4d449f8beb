"""What a stage has to do for each packet, and who has a place for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Set
from dataclasses import dataclass, field, replace

from diffusion_edge.batching import Sample
from diffusion_edge.engine.run import Encoded
from diffusion_edge.engine.seconds import Seconds
from diffusion_edge.engine.stepper import Entry
from diffusion_edge.engine.together import Asked
from diffusion_edge.packet import Packet
from diffusion_edge.plan import Plan
from diffusion_edge.request import Picture, SpanRecord, Times
from diffusion_edge.view import Held

HELD, HELD_BYTES = 1024, 256 * 2**20
"""Hand-offs that wait for a place on this stage, and bytes of their packets, at most."""


@dataclass(eq=False)
class Job:
    """A packet on this stage, waiting or running, and what is still to be done for it.

    data: as it came; `packet` is without tensors until there is a place. times: by this clock.
    asked: its text in the line, or encoded.
    """

    data: bytes
    packet: Packet
    arrived: float
    times: Times
    sample: Sample
    doubled: bool
    decodes_left: int
    asked: Asked[Packet, Encoded] | None = None
    entry: Entry | None = None
    place: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def key(self) -> tuple[str, int, int]:
        """Of the image, whatever its plan."""
        return self.packet.request_id, self.packet.image, self.packet.attempt

    @property
    def steps_left(self) -> int:
        return self.packet.plan.spans[0].steps if self.entry is None else self.entry.left

    @property
    def encodes(self) -> bool:
        return self.asked is None or not self.asked.answer.done()

    def replan(self, whole: Plan) -> bool:
        """Goes by another plan from its next step boundary on; False, and as before, where that is
        too late: at least the step that is next, or being made, is made here as before."""
        span, rest = self.packet.plan.spans[0], whole.from_step(self.packet.plan.start)
        done = span.stop - self.steps_left
        if rest is None or done == span.stop or whole.stop != self.packet.plan.stop:
            return False
        now = rest.spans[0]
        if (now.stage, now.guidance) != (span.stage, span.guidance) or now.stop <= done:
            return False
        self.packet = replace(self.packet, plan=rest)
        self.decodes_left = int(rest.after_first() is None)
        if self.entry is not None:
            self.entry.left = now.stop - done
        return True

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
            encodes=self.encodes,
            decodes=self.decodes_left > 0,
            doubled=self.doubled,
        )

    def is_among(self, items: Set[int]) -> bool:
        """Whether a pass or a call that has items of these identities is for this job."""
        entry, asked = self.entry, self.asked
        own = (asked and asked.item,) if entry is None else (entry, entry.trajectory)
        return any(id(each) in items for each in own)

    def around_s(self, seconds: Seconds) -> float:
        """What encoding and decoding are still to take."""
        decoding_s = self.decodes_left * seconds.decoding(self.sample.cells)
        return self.encodes * seconds.encoding(self.sample.rows) + decoding_s


@dataclass(frozen=True)
class Outcome:
    """A finished span: the picture, or the packet for the next stage."""

    record: SpanRecord
    picture: Picture | None
    onward: Packet | None
    warnings: tuple[str, ...]


class Queue:
    """Jobs in order of arrival. The first `capacity` have a place; the others wait for one."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._jobs: list[Job] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    @property
    def full(self) -> bool:
        return len(self._jobs) >= self.capacity

    def may_wait(self, packet: Packet, nbytes: int) -> bool:
        """Steps that were taken elsewhere are not thrown away, as far as memory allows."""
        waiting = [len(job.data) for job in self._jobs[self.capacity :]]
        room = len(waiting) < HELD and sum(waiting) + nbytes <= HELD_BYTES
        return packet.latent is not None and room

    def join(self, job: Job) -> None:
        if not self.full:
            job.place.set()
        self._jobs.append(job)

    def leave(self, job: Job) -> None:
        """The next one in order of arrival gets the place."""
        self._jobs.remove(job)
        if self.full:
            self._jobs[self.capacity - 1].place.set()
