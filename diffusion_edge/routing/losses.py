"""The model that fills the gaps between the rows of a quality table.

    quality = 1 - (sum over spans of L(stop) - L(start) + sum over hand-offs of H) ^ power

L is the loss curve of the span's stage: over the share of the steps from noise to picture, what
its steps cost so far against those of the reference in its default number of steps, whose own
curve is 0. H is what a change of stage costs by itself, by the share at which it happens, 0 at both
ends. Curves of L never fall, that of a stage that is worse alone is everywhere at least as steep,
and H is at least 0. So quality never falls when a span goes to a better stage or a hand-off is
saved, and never exceeds the reference's. The power says how losses add up: above 1, one stage mends
what another one spoils; below 1, what is lost early cannot be lost again. Curves are piecewise
linear, in even pieces, one for each measured number of steps; between those they are linear in the
logarithm of the number.
Shares are what counts, so a plan of PNDM with its additional step, or of any other solver, is
priced like one of the solver that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from diffusion_edge.routing.tables import Record

Floats = NDArray[np.float64]


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


class Model(Record):
    """See above. A stage without a curve loses nothing: the reference, in one number of steps."""

    power: Annotated[float, Field(gt=0)]
    curves: tuple[StageCurve, ...]
    hops: tuple[Curve, ...] = ()

    def quality(self, stages: Sequence[str], steps: Sequence[ArrayLike]) -> Floats:
        """Of many plans over the same stages, all of as many steps, and of one step at least.

        `steps[k]` is an integer array with the steps on the k-th stage, one entry for each plan.
        """
        counts = [np.atleast_1d(np.asarray(count, np.int64)) for count in steps]
        stage_loss, hop_loss = self._at(sum(int(count[0]) for count in counts))
        lost: Floats = np.zeros(len(counts[0]))
        start = np.zeros_like(counts[0])
        for k, (stage, count) in enumerate(zip(stages, counts, strict=True)):
            if k and stages[k - 1] != stage:
                lost += hop_loss[start]
            if stage in stage_loss:
                lost += stage_loss[stage][start + count] - stage_loss[stage][start]
            start = start + count
        quality: Floats = np.maximum(0.0, 1.0 - np.maximum(lost, 0.0) ** self.power)
        return quality

    def _at(self, steps: int) -> tuple[Mapping[str, Floats], Floats]:
        """L of every stage, and H, before each step of a trajectory and at its end."""
        if steps not in self._known:
            curves: dict[str, list[StageCurve]] = {}
            for curve in self.curves:
                curves.setdefault(curve.stage, []).append(curve)
            stage_loss = {stage: _at_steps(each, steps) for stage, each in curves.items()}
            self._known[steps] = stage_loss, _at_steps(self.hops, steps)
        return self._known[steps]

    @cached_property
    def _known(self) -> dict[int, tuple[Mapping[str, Floats], Floats]]:
        return {}


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
