"""What is known of the quality of a family's plans: `quality.json`, written by
`diffusion-edge profile`.

Quality is relative: a plan's mean score over that of the reference stage alone in the family's
default number of steps. At every size that was measured the table has rows, and two small models
that fill the gaps between them (`losses`): one of estimates, and one of bounds that all plans reach
at once with a stated confidence. A floor is held against the bound.

Three things are unknown, and count as quality 0, which only a floor of 0 admits: a size that was
not measured; fewer steps than any that were; and an order of stages that was never measured, as
well as an order of three of which also some two are unknown, and anything longer. A hand-off can be
worse than both of its ends, so nothing is guessed. More steps than were measured are taken to be no
worse than as many. The reference alone in its default number of steps or more is 1.0 wherever
nothing was measured: by definition, and for more steps by the same assumption.

The stages of a table are the family's stage models; a deployment may call its stages otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, model_validator

from diffusion_edge.plan import Plan
from diffusion_edge.routing.losses import Floats, Model, merged
from diffusion_edge.routing.tables import Record, Table

Share = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[float, float]
Size = tuple[int, int]
"""Width and height in pixels."""
CONFIDENCE = 0.95
"""With which all bounds of a size hold at once."""


class QualityRow(Record):
    """One measured plan: `steps[k]` steps on `stages[k]`, over n pictures.

    score: the metric's mean; relative: it over the reference's. Both with 95 % intervals.
    """

    stages: Annotated[tuple[str, ...], Field(min_length=1)]
    steps: tuple[Annotated[int, Field(ge=1)], ...]
    score: Share
    interval: Interval
    relative: Annotated[float, Field(ge=0)]
    relative_interval: Interval
    n: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.stages) != len(self.steps):
            raise ValueError(f"{len(self.stages)} stages but steps for {len(self.steps)}")
        if merged(self.stages) != self.stages:
            raise ValueError(f"{list(self.stages)} names one stage twice in a row")
        return self

    @property
    def plan(self) -> Plan:
        return Plan.of(tuple(zip(self.stages, self.steps, strict=True)))

    @property
    def total(self) -> int:
        return sum(self.steps)


class OrderRow(Record):
    """Which of two stages is better first, over the plans of two spans that were measured.

    difference: mean quality with `small` first less that with `large` first, where both plans
    have as many steps on `large`; paired 95 % interval.
    """

    small: str
    large: str
    steps: int
    difference: float
    interval: Interval


class LeftOut(Record):
    """How far the model is off, absolutely, on each of `rows` rows when it is fitted without it."""

    rows: int
    mean: float
    largest: float


class SizeQuality(Record):
    """What was measured of pictures of `size` pixels to a side.

    Prompt i was drawn with seed + i; `captions` is the most of them that a plan drew, and `prompts`
    says where they came from. model: of estimates; low: of bounds; left_out: how well estimates
    fill gaps, None where nothing could be left out.
    """

    size: Annotated[int, Field(ge=1)]
    seed: int
    prompts: str
    captions: int
    measured: str
    model: Model
    low: Model
    left_out: LeftOut | None = None
    orders: tuple[OrderRow, ...] = ()
    rows: Annotated[tuple[QualityRow, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        ((plan, times),) = Counter(str(row.plan) for row in self.rows).most_common(1)
        if times > 1:
            raise ValueError(f"plan {plan} occurs twice")
        alone = {(row.stages[0], row.total) for row in self.rows if len(row.stages) == 1}
        for row in self.rows:
            for stage in row.stages:
                if (stage, row.total) not in alone:
                    raise ValueError(f"stage {stage!r} has no row of its own of {row.total} steps")
        return self

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of steps that were measured."""
        return tuple(sorted({row.total for row in self.rows}))

    def knows(self, stages: Sequence[str], steps: int) -> bool:
        """Whether the quality of plans over these stages in this order can be told."""
        return steps >= self.steps[0] and self._knows(merged(stages))

    def _knows(self, order: tuple[str, ...]) -> bool:
        if len(order) != 3 or order in self._orders:
            return order in self._orders
        first, middle, last = order  # the orders of two that its edges are
        sides = ((first, middle), (middle, last), (first, last))
        return all(merged(side) in self._orders for side in sides)

    @cached_property
    def _orders(self) -> frozenset[tuple[str, ...]]:
        return frozenset(row.stages for row in self.rows)


class QualityTable(Table):
    """`quality.json` of a family. `reference` alone in `steps` steps has the quality 1.0.

    confidence: of all bounds of a size at once. weights: fingerprint of those that were measured.
    """

    COMMAND = "diffusion-edge profile"

    family: str
    metric: str
    reference: str = "cloud"
    steps: Annotated[int, Field(ge=1)]
    solver: str
    guidance: float
    confidence: Annotated[float, Field(gt=0, lt=1)]
    weights: str
    versions: dict[str, str]
    sizes: tuple[SizeQuality, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        ((size, times),) = Counter(each.size for each in self.sizes).most_common(1) or ((0, 0),)
        if times > 1:
            raise ValueError(f"size {size} occurs twice")
        for each in self.sizes:
            self._check(each)
        return self

    def _check(self, each: SizeQuality) -> None:
        alone = {(row.stages[0], row.total) for row in each.rows if len(row.stages) == 1}
        for total in {self.steps, *each.steps}:
            if (self.reference, total) not in alone:
                raise ValueError(
                    f"size {each.size}: the reference {self.reference!r} has no row of {total} "
                    "steps"
                )
        for name, model in (("model", each.model), ("low", each.low)):
            curves = {(curve.stage, curve.steps) for curve in model.curves}
            for stage, total in sorted(alone - curves - {(self.reference, self.steps)}):
                raise ValueError(
                    f"size {each.size}, {name}: {stage!r} has no loss curve of {total} steps"
                )

    @classmethod
    def unknown(cls, family: str, reference: str = "cloud", steps: int = 1) -> QualityTable:
        """For a family that was never measured: only the reference alone is known, as 1.0 in
        `steps` steps or more."""
        return cls(
            family=family,
            metric="not measured",
            reference=reference,
            steps=steps,
            solver="",
            guidance=1.0,
            confidence=CONFIDENCE,
            weights="",
            versions={},
        )

    @property
    def stages(self) -> tuple[str, ...]:
        """Every stage that the table knows, the reference first."""
        others = {stage for each in self.sizes for row in each.rows for stage in row.stages}
        return (self.reference, *sorted(others - {self.reference}))

    def at(self, size: Size) -> SizeQuality | None:
        """What was measured at this size. Pictures that are no squares were not."""
        width, height = size
        if width != height:
            return None
        return next((each for each in self.sizes if each.size == width), None)

    def counts(self, size: Size) -> tuple[int, ...]:
        """The numbers of steps whose quality is known there; the default one everywhere."""
        found = self.at(size)
        return found.steps if found else (self.steps,)

    def knows(self, stages: Sequence[str], steps: int, size: Size) -> bool:
        """Whether the quality of plans of so many steps over these stages in this order can be
        told."""
        found = self.at(size)
        if found is None:
            return merged(stages) == (self.reference,) and steps >= self.steps
        return found.knows(stages, steps)

    def relative(self, plan: Plan, size: Size) -> float:
        """Predicted quality; 0.0 where it is unknown."""
        return float(self.relative_all(*_parts(plan), size)[0])

    def bound(self, plan: Plan, size: Size) -> float:
        """What the plan reaches with the table's confidence; 0.0 where its quality is unknown."""
        return float(self.bound_all(*_parts(plan), size)[0])

    def relative_all(self, stages: Sequence[str], steps: Sequence[ArrayLike], size: Size) -> Floats:
        """`relative` of many plans over the same stages, all of as many steps.

        `steps[k]` is an integer array with the steps on the k-th stage, one entry for each plan.
        """
        counts = [np.atleast_1d(np.asarray(count, np.int64)) for count in steps]
        if not self.knows(stages, sum(int(count[0]) for count in counts), size):
            return np.zeros(len(counts[0]))
        found = self.at(size)
        return found.model.quality(stages, counts) if found else np.ones(len(counts[0]))

    def bound_all(self, stages: Sequence[str], steps: Sequence[ArrayLike], size: Size) -> Floats:
        """`bound` of many plans, as `relative_all` has them; never above their estimate."""
        quality = self.relative_all(stages, steps, size)
        found = self.at(size)
        if found is None or not quality.any():
            return quality
        bounds: Floats = np.minimum(quality, found.low.quality(stages, steps))
        return bounds


def _parts(plan: Plan) -> tuple[list[str], list[int]]:
    return [span.stage for span in plan.spans], [span.steps for span in plan.spans]
