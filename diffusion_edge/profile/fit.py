"""Fits the model of `routing.losses` to measured rows, and tells how well it fills gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from diffusion_edge.profile.intervals import Z
from diffusion_edge.routing.losses import Curve, Model, StageCurve
from diffusion_edge.routing.quality import LeftOut, QualityRow

Floats = NDArray[np.float64]
Spans = tuple[tuple[str, int], ...]
"""Stage and steps of each."""

NOTHING_LOST = Model(power=1.0, curves=())
PIECES = 4
"""Of a stage's loss curve."""
HOP_PIECES = 5
"""Of the curve of what a hand-off costs. See LOG.md for what else was tried."""
POWERS = (0.25, 4.0)
STARTS = (0.5, 1.5)
"""The powers that may come out, and those from which the fit is tried."""
OWN_ERROR = 0.01
"""Standard error that the model has anyway: rows that are more certain count no more."""
_TINY = 1e-6
"""Keeps powers and logarithms of a plan that loses nothing finite."""


@dataclass(frozen=True)
class Problem:
    """Loss = (features @ weights) ^ power, row by row, where loss is 1 - quality.

    For each number of steps a weight for every stage and piece of its curve, which is the slope
    there, and one for every knot of the curve of hand-offs. Slopes are added up from the best
    stage to the worst, so that weights of at least 0 keep the curves in order. `free` has the
    weights that a row tells of; the others are 0, the reference's at its default number of steps
    among them.
    """

    steps: tuple[int, ...]
    stages: tuple[str, ...]
    default: int
    features: Floats
    free: NDArray[np.bool_]
    loss: Floats
    certainty: Floats

    @classmethod
    def of(cls, rows: Sequence[QualityRow], reference: str, default: int) -> Problem:
        """default: the number of steps in which the reference is 1.0."""
        steps = tuple(sorted({row.total for row in rows}))
        alone: dict[str, list[float]] = {}
        for row in rows:
            if len(row.stages) == 1 and row.stages[0] != reference:
                alone.setdefault(row.stages[0], []).append(row.relative)
        others = sorted(alone, key=lambda name: -float(np.mean(alone[name])))
        stages = (reference, *others)
        told = others_than(reference, default, rows)
        error = [(row.relative_interval[1] - row.relative) / Z for row in told]
        known = np.array([features(spans(row), steps, stages, default) for row in told])
        free = np.array([column.any() for column in known.T], np.bool_)
        loss, certainty = (
            np.array([1 - row.relative for row in told]),
            1 / np.hypot(error, OWN_ERROR),
        )
        return cls(steps, stages, default, known[:, free] if told else known, free, loss, certainty)

    def without(self, row: int) -> Problem:
        features, loss, certainty = (
            np.delete(array, row, axis=0) for array in (self.features, self.loss, self.certainty)
        )
        return replace(self, features=features, loss=loss, certainty=certainty)

    def of_qualities(self, qualities: Floats) -> Problem:
        """The same plans with these qualities."""
        return replace(self, loss=1 - qualities)

    def solve(self) -> Floats:
        """The power and the weights that fit best."""
        count = self.features.shape[1]
        starts = [np.array([power] + [0.1 ** (1 / power)] * count) for power in STARTS]
        return min(map(self.solve_from, starts), key=lambda found: found[0])[1]

    def solve_from(self, start: Floats, power_too: bool = True) -> tuple[float, Floats]:
        """Half the sum of squares, and where it is least, near `start`; with its power, or any."""
        from scipy.optimize import least_squares  # slow to import

        fixed = start[: 0 if power_too else 1]

        def residuals(free: Floats) -> Floats:
            at = np.concatenate([fixed, free])
            found: Floats = self.certainty * (lost(self.features, at) - self.loss)
            return found

        def slopes(free: Floats) -> Floats:
            at = np.concatenate([fixed, free])
            sums = self.features @ at[1:] + _TINY
            by_power = sums ** at[0] * np.log(sums)
            by_weight = (at[0] * sums ** (at[0] - 1))[:, None] * self.features
            found: Floats = self.certainty[:, None] * np.column_stack([by_power, by_weight])
            return found[:, len(fixed) :]

        low, high = np.zeros(len(start)), np.full(len(start), np.inf)
        low[0], high[0] = POWERS
        within = low[len(fixed) :], high[len(fixed) :]
        found = least_squares(residuals, start[len(fixed) :], slopes, bounds=within)
        return float(found.cost), np.concatenate([fixed, found.x])

    def features_of(self, plan: Spans) -> Floats:
        """As `features` has them of the rows."""
        return features(plan, self.steps, self.stages, self.default)[self.free]

    def model(self, at: Floats) -> Model:
        """What the router reads."""
        weights = np.zeros(len(self.free))
        weights[self.free] = at[1:]
        slopes = weights[: len(self.steps) * len(self.stages) * PIECES]
        slopes = slopes.reshape(len(self.steps), len(self.stages), PIECES).cumsum(axis=1)
        losses = np.concatenate([np.zeros_like(slopes[..., :1]), slopes.cumsum(-1) / PIECES], -1)
        hops = np.pad(weights[slopes.size :].reshape(len(self.steps), -1), ((0, 0), (1, 1)))
        return Model(
            power=round(float(at[0]), 6),
            curves=tuple(
                StageCurve(stage=stage, steps=steps, loss=_rounded(losses[i, k]))
                for i, steps in enumerate(self.steps)
                for k, stage in enumerate(self.stages)
            ),
            hops=tuple(
                Curve(steps=steps, loss=_rounded(hops[i])) for i, steps in enumerate(self.steps)
            ),
        )


def lost(features: Floats, at: Floats) -> Floats:
    found: Floats = (features @ at[1:] + _TINY) ** at[0]
    return found


def quality(features: Floats, at: Floats) -> Floats:
    """Of plans with these features, by the power and the weights."""
    found: Floats = np.maximum(0.0, 1.0 - lost(features, at))
    return found


def features(plan: Spans, steps: Sequence[int], stages: Sequence[str], default: int) -> Floats:
    """How much of each piece the spans cover, and how near they hand off to each knot."""
    covered = np.zeros((len(steps), len(stages), PIECES))
    hops = np.zeros((len(steps), HOP_PIECES - 1))
    total = sum(count for _, count in plan)
    at = steps.index(total)
    bounds, knots = np.linspace(0, 1, PIECES + 1), np.linspace(0, 1, HOP_PIECES + 1)[1:-1]
    ends = [0.0, *(stop / total for stop in accumulate(count for _, count in plan))]
    for (stage, _), (start, stop) in zip(plan, pairwise(ends), strict=True):
        inside = np.minimum(bounds[1:], stop) - np.maximum(bounds[:-1], start)
        covered[at, : stages.index(stage) + 1] += np.maximum(inside, 0)
        if stop < 1:
            hops[at] += np.maximum(0, 1 - np.abs(stop - knots) * HOP_PIECES)
    if total == default:
        covered[at, 0] = 0
    return np.concatenate([covered.ravel(), hops.ravel()])


def spans(row: QualityRow) -> Spans:
    return tuple(zip(row.stages, row.steps, strict=True))


def others_than(reference: str, default: int, rows: Sequence[QualityRow]) -> list[QualityRow]:
    """Rows that are not 1.0 by definition."""
    return [row for row in rows if (row.stages, row.total) != ((reference,), default)]


def fit(rows: Sequence[QualityRow], reference: str, default: int) -> Model:
    """The model of all rows. default: the number of steps in which the reference is 1.0."""
    problem = Problem.of(rows, reference, default)
    return problem.model(problem.solve()) if len(problem.features) else NOTHING_LOST


def left_out(rows: Sequence[QualityRow], reference: str, default: int) -> LeftOut | None:
    """The model's error on rows of two and more spans that are left out, each in turn."""
    problem = Problem.of(rows, reference, default)
    told = others_than(reference, default, rows)
    several = [i for i, row in enumerate(told) if len(row.stages) > 1]
    if not several:
        return None
    best, errors = problem.solve(), []
    for i in several:
        _, without = problem.without(i).solve_from(best)
        errors.append(float(abs(lost(problem.features[i], without) - problem.loss[i])))
    mean, largest = round(float(np.mean(errors)), 4), round(max(errors), 4)
    return LeftOut(rows=len(errors), mean=mean, largest=largest)


def _rounded(losses: Floats) -> tuple[float, ...]:
    return tuple(round(float(loss), 6) for loss in losses)
