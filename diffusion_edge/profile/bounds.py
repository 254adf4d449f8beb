"""Lower bounds of quality that all plans reach at once with a stated confidence.

A router takes the cheapest of hundreds of plans that look good enough, and so the luckiest of them:
held against estimates, floors are broken (LOG.md: The luckiest of many plans). Two things are done
against that. The model of `routing.losses` has few parameters and learns each from all rows, so
that luck of a single row hardly moves it. And its bounds hold for all plans at once, so that it
does not matter which one is taken, nor why:

    bound = estimate - hypot(times * error, 1.645 * misfit)

error is the estimate's standard error, from a bootstrap over prompts: each draw weighs them at
random (Rubin, The Annals of Statistics 9, 1981) and fits anew, with the power of all (see also
`_error`). times is the
smallest number with which in so many draws as the confidence says no plan's f - times * error lies
above 2 f - f', where f is its estimate and f' the draw's: the quality that the estimate would have
missed as the draw misses the estimate. misfit is how far plans lie off any such model, a variance
in proportion to what they lose, as much as the rows' residuals exceed those of the draws. What the
model does not know, nobody chooses by, so one plan at a time is enough for it.

What is written is a model of the same form, fitted to the bounds of all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from diffusion_edge.profile.fit import (
    NOTHING_LOST,
    OWN_ERROR,
    Problem,
    Spans,
    others_than,
    quality,
)
from diffusion_edge.profile.intervals import Z
from diffusion_edge.routing.cost import cuts
from diffusion_edge.routing.losses import Model
from diffusion_edge.routing.quality import CONFIDENCE, QualityRow

Floats = NDArray[np.float64]
Scores = Mapping[str, Sequence[float]]
"""The score of every prompt's picture, by plan. Plans have the first prompts in common, some have
more of them than others."""

DRAWS = 200
SPANS = 3
"""Of a plan that a router takes, at most."""
ONE_SIDED = 1.644854
"""Standard errors to the lower end of a one-sided 95 % interval."""
TOLERANCE = 1e-3
"""By which a bound may lie above in a draw that counts as one where it does not."""
_MOST_TIMES = 8.0
_INSIDE = 1e-3
"""Weights of 0 begin a fit here, so that they can rise."""


@dataclass(frozen=True)
class Bounded:
    """Estimates and bounds as the router reads them. times: see above. misfit: the standard
    deviation of a plan that loses 0.05."""

    model: Model
    low: Model
    times: float = 0.0
    misfit: float = 0.0


def bounded(rows: Sequence[QualityRow], scores: Scores, reference: str, default: int) -> Bounded:
    """The models of rows that were made of these scores. default: the number of steps in which the
    reference is 1.0."""
    problem = Problem.of(rows, reference, default)
    if not len(problem.features):
        return Bounded(NOTHING_LOST, NOTHING_LOST)
    best = problem.solve()
    told = others_than(reference, default, rows)
    every = np.array([*problem.features, *map(problem.features_of, _plans(problem))])
    drawn = _drawn([scores[str(row.plan)] for row in told], scores[f"{reference}:{default}"])
    start = _inside(best)
    fits = [problem.of_qualities(row).solve_from(start, power_too=False)[1] for row in drawn]
    estimate = quality(every, best)
    draws = np.array([quality(every, at) for at in fits])
    error = _error(draws[:, : len(told)], told)
    share = _misfit(problem, estimate[: len(told)], drawn - draws[:, : len(told)])
    lower = _Lower(problem, best, estimate[: len(told)], error)
    times = lower.times(every, 2 * estimate - draws)
    misfit = np.sqrt(share * np.maximum(1 - estimate[: len(told)], 0))
    at = lower.fitted(np.hypot(times * lower.error, ONE_SIDED * misfit))
    return Bounded(
        problem.model(best), problem.model(at), round(times, 2), float(np.sqrt(share * 0.05))
    )


@dataclass(frozen=True)
class _Lower:
    """The estimates of all rows, and their standard errors."""

    problem: Problem
    best: Floats
    estimate: Floats
    error: Floats

    def fitted(self, below: Floats) -> Floats:
        """Power and weights of the model that lies so far below the estimates."""
        even = np.full(len(below), 1 / OWN_ERROR)
        aim = replace(self.problem.of_qualities(self.estimate - below), certainty=even)
        return aim.solve_from(_inside(self.best))[1]

    def times(self, every: Floats, target: Floats) -> float:
        """The smallest number that keeps all plans below `target` in enough of the draws."""
        estimate = quality(every, self.best)

        def holds(times: float) -> bool:
            low = quality(every, self.fitted(times * self.error))
            below = (np.minimum(low, estimate) <= target + TOLERANCE).all(axis=1)
            return bool(np.mean(below) >= CONFIDENCE)

        few, many = 0.0, _MOST_TIMES
        for _ in range(8):
            middle = (few + many) / 2
            few, many = (few, middle) if holds(middle) else (middle, many)
        return many


def _drawn(scores: Sequence[Sequence[float]], reference: Sequence[float]) -> Floats:
    """Qualities of the plans in every draw, each over the prompts that it has."""
    weights = np.random.default_rng(0).exponential(size=(DRAWS, len(reference)))
    theirs = np.asarray(reference, np.float64)
    found = []
    for each in scores:
        some = weights[:, : len(each)]
        found.append((some @ np.asarray(each)) / np.maximum(some @ theirs[: len(each)], 1e-9))
    return np.array(found).T


def _error(draws: Floats, rows: Sequence[QualityRow]) -> Floats:
    """Of the estimates of rows. Where the model may not say what was measured, as above 1.0, its
    draws vary too little; so no error is a smaller share of the row's own than most are."""
    error = draws.std(axis=0, ddof=1)
    own = np.array([(row.relative_interval[1] - row.relative) / Z for row in rows])
    known = own > 0
    share = np.median(error[known] / own[known]) if known.any() else 0.0
    found: Floats = np.maximum(error, share * own)
    return found


def _misfit(problem: Problem, estimate: Floats, residuals: Floats) -> float:
    """Variance of a plan about the model, for every unit that it loses.

    residuals: by draw, of rows about the draw's own fit: how large they are by chance alone.
    """
    seen = np.square(1 - problem.loss - estimate).sum() - residuals.var(axis=0, ddof=1).sum()
    return float(max(0.0, seen) / max(np.maximum(1 - estimate, 0).sum(), 1e-9))


def _plans(problem: Problem) -> Iterator[Spans]:
    """All that a router may take, in the numbers of steps that were measured."""
    for steps in problem.steps:
        for count in range(1, min(SPANS, len(problem.stages), steps) + 1):
            for order in permutations(problem.stages, count):
                for each in zip(*cuts(steps, count), strict=True):
                    yield tuple(zip(order, map(int, each), strict=True))


def _inside(at: Floats) -> Floats:
    return np.append(at[:1], np.maximum(at[1:], _INSIDE))
