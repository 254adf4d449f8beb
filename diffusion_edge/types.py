"""Records that every layer shares. Nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal, Protocol

from diffusion_edge import curves
from diffusion_edge.curves import Curve
from diffusion_edge.errors import InvalidPlan

Tier = Literal["device", "edge", "cloud"]
TIERS: tuple[Tier, ...] = ("device", "edge", "cloud")
Codec = Literal["exact", "bf16", "int8"]
AskedCodec = Literal["exact", "bf16", "int8", "auto"]
EXACT: Codec = "exact"
Late = Literal["serve", "refuse"]
"""What a request wants that cannot be in time: to be served late, or to be refused at once."""
Guiding = Literal["doubled", "embedded", "off"]
"""How a denoiser is guided: by a second pass with the negative prompt, by the value of guidance as
an input of its own, or not at all."""
MAX_STEPS = 1000
MAX_GUIDANCE = 50.0


# ---------------------------------------------------------------------------- plans


@dataclass(frozen=True)
class Span:
    """Steps [start, stop) on one stage. `guidance` None takes the request's."""

    stage: str
    start: int
    stop: int
    guidance: float | None = None

    @property
    def steps(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """Contiguous spans in order, and the codec of each hop between them."""

    spans: tuple[Span, ...]
    codecs: tuple[Codec, ...]
    reason: str = ""

    def __post_init__(self) -> None:
        if not self.spans:
            raise InvalidPlan("a plan needs at least one span", param="plan")
        for span in self.spans:
            if span.stop <= span.start:
                raise InvalidPlan(f"the span on {span.stage!r} has no steps", param="plan")
        for before, after in zip(self.spans, self.spans[1:], strict=False):
            if before.stop != after.start:
                raise InvalidPlan(
                    f"the spans on {before.stage!r} and {after.stage!r} do not meet", param="plan"
                )
        if len(self.codecs) != len(self.spans) - 1:
            raise InvalidPlan("a plan needs one codec for every hop", param="plan")

    @classmethod
    def of(cls, parts: tuple[tuple[str, int], ...], reason: str = "") -> Plan:
        """From (stage, steps) pairs, starting at step 0, with the exact codec."""
        spans, start = [], 0
        for stage, steps in parts:
            spans.append(Span(stage, start, start + steps))
            start += steps
        codecs = (EXACT,) * (len(spans) - 1)
        return cls(tuple(spans), codecs, reason)

    @classmethod
    def parse(cls, text: str, reason: str = "asked for") -> Plan:
        """From `cloud:8,edge:6,device:6`; `edge:6@1` is a span with guidance of its own."""
        spans: list[Span] = []
        for part in text.split(","):
            start = spans[-1].stop if spans else 0
            spans.append(_span(part.strip(), start, text))
        plan = cls(tuple(spans), (EXACT,) * (len(spans) - 1), reason)
        if plan.steps > MAX_STEPS:
            raise InvalidPlan(f"plan {text!r} has more than {MAX_STEPS} steps", param="plan")
        return plan

    def __str__(self) -> str:
        """As `parse` reads it."""
        return ",".join(
            f"{span.stage}:{span.steps}"
            + ("" if span.guidance is None else f"@{span.guidance}".removesuffix(".0"))
            for span in self.spans
        )

    @property
    def start(self) -> int:
        return self.spans[0].start

    @property
    def stop(self) -> int:
        return self.spans[-1].stop

    @property
    def steps(self) -> int:
        return self.stop - self.start

    def after_first(self) -> Plan | None:
        """The plan that is left when the first span is done."""
        if len(self.spans) == 1:
            return None
        return Plan(self.spans[1:], self.codecs[1:], self.reason)

    def with_codecs(self, by_step: Sequence[Codec]) -> Plan:
        """The same spans; each hop takes the codec that `by_step` has for its hand-off step."""
        codecs = tuple(by_step[span.start] for span in self.spans[1:])
        return Plan(self.spans, codecs, self.reason)

    def with_guidance(self, by_stage: Mapping[str, float]) -> Plan:
        """The same spans; one without guidance of its own takes its stage's, if that has any."""
        spans = tuple(
            replace(span, guidance=by_stage.get(span.stage)) if span.guidance is None else span
            for span in self.spans
        )
        return Plan(spans, self.codecs, self.reason)


_PART = re.compile(r"([^:@]*[^:@\s])\s*:\s*([0-9]{1,4})\s*(?:@\s*([0-9.e-]{1,32}))?")


def _span(part: str, start: int, plan: str) -> Span:
    """The span from step `start` that a part of a plan says, such as `edge:6@7.5`."""
    found = _PART.fullmatch(part)
    if found is None:
        raise InvalidPlan(
            f"{part!r} in plan {plan!r} is not stage:steps or stage:steps@guidance; "
            "a plan reads like cloud:8,edge:6,device:6@1",
            param="plan",
        )
    stage, steps, given = found.groups()
    guidance = None if given is None else _guidance(given, part, plan)
    return Span(stage, start, start + int(steps), guidance)


def _guidance(given: str, part: str, plan: str) -> float:
    try:
        guidance = float(given)
    except ValueError:
        guidance = -1.0
    if not 0 <= guidance <= MAX_GUIDANCE:
        raise InvalidPlan(
            f"{part!r} in plan {plan!r}: guidance {given} is not a number between 0 and "
            f"{MAX_GUIDANCE:g}; 1 and below are off",
            param="plan",
        )
    return guidance


# ---------------------------------------------------------------------------- one request


@dataclass(frozen=True)
class Times:
    """When a picture is due and when its work is given up, in seconds of one clock.

    Due times order the work; None leaves them to each stage. A picture that is late is still made
    until its work is given up; None is never.
    """

    due: float | None = None
    give_up: float | None = None

    def shifted(self, seconds: float) -> Times:
        """The same on a clock that is `seconds` ahead."""
        return Times(
            None if self.due is None else self.due + seconds,
            None if self.give_up is None else self.give_up + seconds,
        )


NEVER = Times()


@dataclass(frozen=True)
class ImageRequest:
    """What is asked for, with every default settled. `steps` counts what the solver resolves;
    `free_steps` has all numbers that the router may choose from, none where one was asked for.

    `codec` is that of every hop; `auto` lets the family's measured losses decide. late: what is
    wanted where it cannot be in time.
    """

    prompt: str
    family: str
    steps: int
    seed: int
    solver: str
    guidance: float
    width: int
    height: int
    negative_prompt: str = ""
    images: int = 1
    deadline_s: float = 60.0
    quality_floor: float = 0.95
    policy: str = "elastic"
    plan: Plan | None = None
    codec: AskedCodec = EXACT
    request_id: str = ""
    free_steps: tuple[int, ...] = ()
    late: Late = "serve"

    @property
    def most_steps(self) -> int:
        return max(self.steps, *self.free_steps, 0)

    def in_steps(self, steps: int) -> ImageRequest:
        """With one of the numbers that it may have."""
        return self if steps == self.steps else replace(self, steps=steps)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height


@dataclass(frozen=True)
class Picture:
    """8-bit RGB, row by row."""

    width: int
    height: int
    rgb: bytes = field(repr=False)


@dataclass(frozen=True)
class SpanRecord:
    """What a span took. `emulated_s` of `run_s` were slept to act as slower hardware."""

    stage: str
    tier: Tier
    start: int
    stop: int
    queue_s: float
    run_s: float
    encode_s: float
    decode_s: float
    emulated_s: float = 0.0
    overruns: int = 0


@dataclass(frozen=True)
class HopRecord:
    """What a hand-off took. `emulated_s` of `seconds` were slept to act as a slower link.

    `nbytes` were sent; `emulated_bytes` are what an emulated link was charged with, if others.
    `queue_s` of `emulated_s` went by while packets before it passed over that link.
    """

    source: str
    target: str
    nbytes: int
    seconds: float
    codec: Codec
    emulated_s: float = 0.0
    emulated_bytes: int | None = None
    queue_s: float = 0.0

    @property
    def link_bytes(self) -> int:
        """What the link's seconds were for."""
        return self.nbytes if self.emulated_bytes is None else self.emulated_bytes


# ---------------------------------------------------------------------------- events of a run


@dataclass(frozen=True)
class Accepted:
    """A stage has taken the packet into its queue."""

    stage: str


@dataclass(frozen=True)
class Progress:
    """A span is done: the trajectory stands at `position`."""

    stage: str
    position: int


@dataclass(frozen=True)
class Done:
    """The last span is done and decoded."""

    picture: Picture
    spans: tuple[SpanRecord, ...]
    hops: tuple[HopRecord, ...]
    warnings: tuple[str, ...] = ()


Event = Accepted | Progress | Done


class Transport(Protocol):
    """How packet bytes reach a stage. Closing the iterator cancels the work behind it."""

    def run(self, stage: str, packet: bytes) -> AsyncIterator[Event]: ...


# ---------------------------------------------------------------------------- what a router sees


@dataclass(frozen=True)
class Link:
    """A way between two stages: measured (or stated) rate and one-way delay."""

    bytes_per_s: float
    delay_s: float

    def transfer_s(self, nbytes: int) -> float:
        return self.delay_s + nbytes / self.bytes_per_s


@dataclass(frozen=True)
class Held:
    """An image on a stage, or on its way there, and what is still to be done for it.

    arrives_s: seconds from the stage's report, 0 for what was there. due_s: when its steps should
    be done, seconds from the report; it orders the work (see `batching`). rows, cells: of it in a
    forward pass. encodes, decodes: whether its text is still to be encoded there, and its picture
    decoded. doubled: whether guidance doubles it in the model, whatever rows are counted for it; it
    shares passes with its like only. latest_s: when it has to leave the stage for its request to be
    in time, seconds from the report; inf if that is not known, or lost.
    """

    request: str
    image: int
    steps: int
    rows: int
    cells: int
    due_s: float
    encodes: bool
    decodes: bool
    arrives_s: float = 0.0
    doubled: bool = False
    latest_s: float = inf


Work = Literal["steps", "texts", "pictures"]
"""What a stage's turn goes to: a forward pass, a call that encodes texts, or one that decodes
pictures."""


@dataclass(frozen=True)
class Turn:
    """What a stage does at the moment of its report, and what waits for its turn after that, who
    waits longest first.

    work: None where nothing runs, or nothing is told. images: in that pass or call, by their places
    in `StageStatus.held`. left_s: seconds until it is expected to end.
    """

    work: Work | None = None
    images: tuple[int, ...] = ()
    left_s: float = 0.0
    waiting: tuple[Work, ...] = ()


@dataclass(frozen=True)
class StageStatus:
    """What a stage reports of itself.

    `step_s` has the seconds of a step by size (cells of the latent, see `curves`) and by rows in
    the forward pass (a guided sample is two rows), `decode_s` those of a picture by size: measured
    and seen while serving, or stated by the config if `emulated`; a sample then counts as one row.
    `encode_s` is that of one text, `texts_s` and `pictures_s` (by cells) have the seconds of a call
    for several, by how many, where they are known; a guided row brings a text of its own.
    `reaches` names the other stages that it can hand off to by now; None means all. `guiding`: a
    guided sample of a model that does not double takes one row. `queued` exceeds `capacity` where
    hand-offs wait. `batches`: samples that wait share forward passes, of at most `most_rows` rows;
    `pads`: of always as many. `held` has what was admitted and is not done: first the pictures that
    wait to be decoded, in that order, then the others in order of arrival; where a board has merged
    its promises in, at last what was decided to come. `turn`: what of it is being done now.
    """

    stage: str
    tier: Tier
    model: str
    queue_s: float
    queued: int
    capacity: int
    step_s: Mapping[int, Curve]
    encode_s: float
    decode_s: Mapping[int, float]
    resident_bytes: int
    emulated: bool = False
    steps_run: int = 0
    overruns: int = 0
    reaches: tuple[str, ...] | None = None
    guiding: Guiding = "doubled"
    batches: bool = False
    most_rows: int | None = None
    held: tuple[Held, ...] = ()
    pads: bool = False
    turn: Turn = Turn()
    texts_s: Curve = field(default_factory=dict)
    pictures_s: Mapping[int, Curve] = field(default_factory=dict)

    def can_reach(self, stage: str) -> bool:
        return stage == self.stage or self.reaches is None or stage in self.reaches

    def doubles(self, guided: bool) -> bool:
        """Whether the model makes a second pass of a sample, with the negative prompt."""
        return guided and self.guiding == "doubled"

    def rows(self, guided: bool) -> int:
        """Of one sample in a forward pass."""
        return 2 if self.doubles(guided) and not self.emulated else 1

    def seconds_per_step(self, guided: bool, cells: int) -> float:
        """Of one sample that steps alone."""
        return curves.seconds(curves.curve(self.step_s, cells), self.rows(guided))

    def seconds_to_encode(self, texts: int) -> float:
        """In one call."""
        return curves.seconds(self.texts_s or {1: self.encode_s}, texts)

    def seconds_to_decode(self, cells: int, pictures: int = 1) -> float:
        """In one call."""
        if not self.pictures_s:
            return pictures * curves.scaled(self.decode_s, cells)
        return curves.seconds(curves.of_pictures(self.pictures_s, cells), pictures)


@dataclass(frozen=True)
class Carried:
    """How a request's packet is carried, by hand-off step, as in `View`."""

    packet_bytes: tuple[int, ...]
    codecs: tuple[Codec, ...]


@dataclass(frozen=True)
class View:
    """All that a policy may know: live stages by name, links by (from, to), prices by tier.

    `codecs[k]` is how this request's packet would be carried if it were handed off before step k,
    and `packet_bytes[k]` its size then, for k from 0 to the number of steps; `cells` are those of
    its latent. A pair that `links` lacks cannot hand off. `guidance` has the stages whose models
    have guidance of their own. `turn` counts the views that were made before this one. `age_s` has
    the seconds since a stage's report, from which the times of what it holds count; 0 where none
    are told. `carried` has codecs and bytes for the other numbers of steps that the request may be
    made in.
    """

    stages: Mapping[str, StageStatus]
    links: Mapping[tuple[str, str], Link]
    price_per_s: Mapping[Tier, float]
    packet_bytes: tuple[int, ...]
    codecs: tuple[Codec, ...]
    cells: int
    guidance: Mapping[str, float] = field(default_factory=dict)
    turn: int = 0
    age_s: Mapping[str, float] = field(default_factory=dict)
    carried: Mapping[int, Carried] = field(default_factory=dict)

    def of_steps(self, steps: int) -> View:
        """Of the same request in another number of steps, if its packets then are known."""
        if steps not in self.carried:
            return self
        carried = self.carried[steps]
        return replace(self, packet_bytes=carried.packet_bytes, codecs=carried.codecs)


@dataclass(frozen=True)
class Choice:
    """A policy's plan with its prediction, and the runner-up with its own.

    `quality` is the estimate, `quality_bound` what the floor is held against (`routing.quality`).
    `price` is what the policy weighed: the cost, and what else it counts. `predicted_50_s` and
    `predicted_90_s`: seconds that one in two and nine in ten such requests stay below, where enough
    were served to tell (`routing.calibration`); `predicted_s` knows nobody who comes later. late:
    whether it is for a request that cannot be in time, or not without making others late.
    """

    plan: Plan
    predicted_s: float
    cost: float
    quality: float
    reason: str
    runner_up: Plan | None = None
    runner_up_s: float | None = None
    quality_bound: float = 0.0
    price: float = 0.0
    predicted_50_s: float | None = None
    predicted_90_s: float | None = None
    late: bool = False
