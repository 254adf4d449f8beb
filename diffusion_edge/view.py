"""What a router sees: the links, what stages report, and the choice that it makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from typing import Literal

from diffusion_edge import curves
from diffusion_edge.curves import Curve
from diffusion_edge.plan import Codec, Guiding, Plan, Tier


@dataclass(frozen=True)
class Link:
    """A way between two stages: measured (or stated) rate and one-way delay. slow: what one hop in
    ten takes at least, over what is predicted."""

    bytes_per_s: float
    delay_s: float
    slow: float = 1.0

    def transfer_s(self, nbytes: int) -> float:
        return self.delay_s + nbytes / self.bytes_per_s

    @cached_property
    def slowed(self) -> Link:
        """So that what is expected of it is what one hop in ten takes."""
        return Link(self.bytes_per_s / self.slow, self.delay_s * self.slow)


@dataclass(frozen=True)
class Held:
    """An image on a stage, or on its way there, and what is still to be done for it.

    arrives_s: seconds from the stage's report, 0 for what was there. due_s: when its steps should
    be done, seconds from the report; it orders the work (see `batching`). rows, cells: of it in a
    forward pass. encodes, decodes: whether its text is still to be encoded there, and its picture
    decoded. doubled: whether guidance doubles it in the model, whatever rows are counted for it; it
    shares passes with its like only. latest_s: when it has to leave the stage for its request to be
    in time, seconds from the report; inf if that is not known, or lost. told_s: when its text
    comes, seconds from the report, if that is ahead of it.
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
    told_s: float = inf


@dataclass(frozen=True)
class Told:
    """An image of which a stage has the text and not yet the latent. start: of its span there.
    encodes: whether the text is still to be encoded."""

    request: str
    image: int
    start: int
    encodes: bool


Work = Literal["steps", "texts", "pictures"]
"""What a stage's turn goes to: a forward pass, a call that encodes texts, or one that decodes
pictures."""


@dataclass(frozen=True)
class Turn:
    """What a stage does at the moment of its report, and what waits for its turn after that, who
    waits longest first.

    work: None where nothing runs, or nothing is told. images: in that pass or call, in its order,
    by their places in `StageStatus.held`; ahead: the same in `StageStatus.ahead`. left_s: seconds
    until it is expected to end.
    """

    work: Work | None = None
    images: tuple[int, ...] = ()
    left_s: float = 0.0
    waiting: tuple[Work, ...] = ()
    ahead: tuple[int, ...] = ()


@dataclass(frozen=True)
class StageStatus:
    """What a stage reports of itself.

    `step_s` has the seconds of a step by size (cells of the latent, see `curves`) and by rows in
    the forward pass (a guided sample is two rows), `decode_s` those of a picture by size: measured
    and seen while serving, or stated by the config if `emulated`; a sample then counts as one row.
    `encode_s` is that of one text, `texts_s` and `pictures_s` (by cells) have the seconds of a call
    for several, by how many, where they are known; a guided row brings a text of its own.
    `reaches` names the other stages that it can hand off to by now; None means all. `guiding`: a
    guided sample of a model that does not double takes one row. `overruns` of `parts_run` (steps,
    texts and pictures of the spans that are done) took longer than stated. `queued` exceeds
    `capacity` where hand-offs wait. `batches`: samples that wait share forward passes, of at most
    `most_rows` rows; `pads`: of always as many. `held` has what was admitted and is not done: first
    the pictures that wait to be decoded, in that order, then the others in order of arrival; where
    a board has merged its promises in, at last what was decided to come. `turn`: what of it is
    being done now. `execution`: how its model is run. `reads_ahead`: whether it encodes texts
    that come ahead of their images; `ahead`: images of which it has these, in the order in which
    they came.
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
    parts_run: int = 0
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
    reads_ahead: bool = False
    ahead: tuple[Told, ...] = ()
    execution: str = "eager"
    attention: str = "sdpa"

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
    made in. `slip` is what nine in ten requests stay below, over what is forecast for them, as
    learned from those that were served (`routing.calibration`), but for the time in which others
    were let pass who did no harm: by that requests are in time or late.
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
    slip: float = 1.0

    def safe_s(self, forecast_s: float) -> float:
        """What nine in ten requests stay below for which so many seconds are forecast."""
        return self.slip * forecast_s

    def within_s(self, deadline_s: float) -> float:
        """The longest forecast for which nine in ten requests are in time."""
        return deadline_s / self.slip

    def slowed(self) -> View:
        """With links as slow as one hop in ten takes them to be; as it is where none is slower."""
        if all(link.slow == 1.0 for link in self.links.values()):
            return self
        return replace(self, links={pair: link.slowed for pair, link in self.links.items()})

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
    whether it is for a request that cannot be in time, or not without making others late. slow_s:
    the forecast with hops as slow as one in ten, where the policy weighs that; safe_s: what the
    deadline is held against, by what was learned (`View.slip`).
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
    slow_s: float | None = None
    safe_s: float | None = None

    @property
    def counted_s(self) -> float:
        """The forecast that deadlines are held against, before anything that was learned."""
        return self.predicted_s if self.slow_s is None else self.slow_s

    def late_s(self, deadline_s: float) -> float:
        """By how much the deadline is missed; 0 where it is not."""
        safe_s = self.counted_s if self.safe_s is None else self.safe_s
        return max(safe_s - deadline_s, 0.0)

    def after(self, waited_s: float) -> Choice:
        """Told from so long before the decision."""
        return replace(
            self,
            predicted_s=waited_s + self.predicted_s,
            predicted_50_s=self.predicted_50_s and waited_s + self.predicted_50_s,
            predicted_90_s=self.predicted_90_s and waited_s + self.predicted_90_s,
            slow_s=self.slow_s and waited_s + self.slow_s,
            safe_s=self.safe_s and waited_s + self.safe_s,
        )
