"""What is known about the quality of a family's plans: `quality.json`, written by
`diffusion-edge profile`.

Quality is relative: a plan's mean score over that of the reference stage alone in as many steps,
1.0 at best. The table has measured rows, and a small model that fills the gaps between them.

    quality = 1 - (sum over spans of L(stop) - L(start) + sum over hand-offs of H) ^ power

L is the loss curve of the span's stage: over the share of the steps from noise to picture, what
its steps cost so far against the reference's, whose own curve is 0. H is what a change of stage
costs by itself, by the share at which it happens, 0 at both ends. Curves of L never fall, that of
a stage that is worse alone is everywhere at least as steep, and H is at least 0. So quality never
falls when a span goes to a better stage or a hand-off is saved, and never exceeds the
reference's. The power says how losses add up: above 1, one stage mends what another one spoils;
below 1, what is lost early cannot be lost again. Curves are piecewise linear, in even pieces, one
for each measured number of steps; between those they are linear in the logarithm of the number.
Shares are what counts, so a plan of PNDM with its additional step, or of any other solver, is
priced like one of the solver that was measured.

An order of stages that was never measured is unknown, and so is an order of three of which also
some two are unknown, and anything longer: a hand-off can be worse than both of its ends, so
nothing is guessed. What is unknown counts as quality 0, which only a floor of 0 admits. A family
without a table knows one plan, the reference stage alone.

The stages of a table are the family's stage models; a deployment may call its stages otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from diffusion_edge.routing.tables import Record, Table
from diffusion_edge.types import Plan

Floats = NDArray[np.float64]
Share = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[float, float]


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


class Curve(Record):
    """Losses in trajectories of `steps` steps, at even shares of them from 0 to 1."""

    steps: Annotated[int, Field(ge=1)]
    loss: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=2)]


class StageCurve(Curve):
    """L of a stage. H has none."""

    stage: str

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.loss[0] != 0 or any(b < a for a, b in pairwise(self.loss)):
            raise ValueError(f"the loss of {self.stage!r} should start at 0 and never fall")
        return self


class LeftOut(Record):
    """How far the model is off, absolutely, on each of `rows` rows when it is fitted without it."""

    rows: int
    mean: float
    largest: float


class Model(Record):
    """What fills the gaps; see above. `left_out` None where nothing could be left out."""

    power: Annotated[float, Field(gt=0)]
    curves: tuple[StageCurve, ...]
    hops: tuple[Curve, ...] = ()
    left_out: LeftOut | None = None


class QualityTable(Table):
    """`quality.json` of a family. `reference` is the stage whose quality alone is 1.0.

    weights: fingerprint of the weights that were measured. prompts: where they came from.
    """

    family: str
    metric: str
    reference: str = "cloud"
    solver: str
    guidance: float
    size: int
    seed: int
    prompts: str
    captions: int
    weights: str
    versions: dict[str, str]
    measured: str
    model: Model
    orders: tuple[OrderRow, ...] = ()
    rows: tuple[QualityRow, ...]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        keys = [(row.stages, row.steps) for row in self.rows]
        if len(set(keys)) != len(keys):
            twice = next(
                row.plan for row, key in zip(self.rows, keys, strict=True) if keys.count(key) > 1
            )
            raise ValueError(f"plan {twice} occurs twice")
        alone = {(row.stages[0], sum(row.steps)) for row in self.rows if len(row.stages) == 1}
        curves = {(curve.stage, curve.steps) for curve in self.model.curves}
        for row in self.rows:
            total = sum(row.steps)
            for stage in (self.reference, *row.stages):
                if (stage, total) not in alone:
                    raise ValueError(f"stage {stage!r} has no row of its own of {total} steps")
                if stage != self.reference and (stage, total) not in curves:
                    raise ValueError(f"stage {stage!r} has no loss curve of {total} steps")
        return self

    @classmethod
    def unknown(cls, family: str, reference: str = "cloud") -> QualityTable:
        """For a family that was never measured: only the reference alone is known, as 1.0."""
        return cls(
            family=family,
            metric="not measured",
            reference=reference,
            solver="",
            guidance=1.0,
            size=0,
            seed=0,
            prompts="",
            captions=0,
            weights="",
            versions={},
            measured="",
            model=Model(power=1.0, curves=()),
            rows=(),
        )

    @property
    def stages(self) -> tuple[str, ...]:
        """Every stage that the table knows, the reference first."""
        return (self.reference, *sorted({curve.stage for curve in self.model.curves}))

    def knows(self, stages: Sequence[str]) -> bool:
        """Whether the quality of plans over these stages in this order can be told."""
        order = merged(stages)
        if order == (self.reference,) or order in self._orders:
            return True
        if len(order) != 3:
            return False
        first, middle, last = order  # the orders of two that its edges are
        return all(self.knows(side) for side in ((first, middle), (middle, last), (first, last)))

    def relative(self, plan: Plan) -> float:
        """Predicted quality; 0.0 where it is unknown."""
        stages = tuple(span.stage for span in plan.spans)
        return float(self.relative_all(stages, [span.steps for span in plan.spans])[0])

    def relative_all(self, stages: Sequence[str], steps: Sequence[ArrayLike]) -> Floats:
        """`relative` of many plans over the same stages, all of as many steps.

        `steps[k]` is an integer array with the steps on the k-th stage, one entry for each plan.
        """
        counts = [np.atleast_1d(np.asarray(count, np.int64)) for count in steps]
        if not self.knows(stages):
            return np.zeros(len(counts[0]))
        stage_loss, hop_loss = self._at(sum(int(count[0]) for count in counts))
        lost: Floats = np.zeros(len(counts[0]))
        start = np.zeros_like(counts[0])
        for k, (stage, count) in enumerate(zip(stages, counts, strict=True)):
            if k and stages[k - 1] != stage:
                lost += hop_loss[start]
            if stage != self.reference:
                lost += stage_loss[stage][start + count] - stage_loss[stage][start]
            start = start + count
        quality: Floats = np.maximum(0.0, 1.0 - np.maximum(lost, 0.0) ** self.model.power)
        return quality

    def _at(self, steps: int) -> tuple[Mapping[str, Floats], Floats]:
        """L of every stage, and H, before each step of a trajectory and at its end."""
        if steps not in self._known:
            curves: dict[str, list[StageCurve]] = {}
            for curve in self.model.curves:
                curves.setdefault(curve.stage, []).append(curve)
            stage_loss = {stage: _at_steps(each, steps) for stage, each in curves.items()}
            self._known[steps] = stage_loss, _at_steps(self.model.hops, steps)
        return self._known[steps]

    @cached_property
    def _known(self) -> dict[int, tuple[Mapping[str, Floats], Floats]]:
        return {}

    @cached_property
    def _orders(self) -> frozenset[tuple[str, ...]]:
        return frozenset(row.stages for row in self.rows)


def _at_steps(curves: Sequence[Curve], steps: int) -> Floats:
    """Losses at 0 to `steps` steps of as many; beyond what was measured, the nearest curve's."""
    known = sorted(curves, key=lambda curve: curve.steps)
    logs = np.log([curve.steps for curve in known])
    losses: Floats = np.zeros(steps + 1)
    for curve, only in zip(known, np.eye(len(known)), strict=True):
        shares = np.linspace(0, 1, len(curve.loss))
        at_shares = np.interp(np.arange(steps + 1) / steps, shares, curve.loss)
        losses += np.interp(np.log(steps), logs, only) * at_shares
    return losses


def merged(stages: Sequence[str]) -> tuple[str, ...]:
    """The order without repetitions in a row: cloud, cloud, edge is cloud, edge."""
    return tuple(s for i, s in enumerate(stages) if i == 0 or stages[i - 1] != s)
