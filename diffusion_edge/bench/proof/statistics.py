"""Intervals and tests over pairs, and Holm's correction. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
DRAWS = 10_000
Interval = tuple[float, float]


@dataclass(frozen=True)
class Paired:
    """A mean of differences, its 95 % interval and how likely one so far from 0 is by chance, by
    Student's t for pairs. Without spread the interval is the mean alone."""

    mean: float
    interval: Interval
    p: float


def paired(differences: Sequence[float]) -> Paired:
    """Of two differences or more; of one nothing can be told but itself."""
    values = np.asarray(differences, np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Paired(mean, (-np.inf, np.inf), 1.0)
    spread = float(values.std(ddof=1)) / sqrt(len(values))
    if spread <= 1e-12:
        return Paired(mean, (mean, mean), 1.0 if abs(mean) <= 1e-12 else 0.0)
    reach = spread * float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1))
    p = 2.0 * float(stats.t.sf(abs(mean) / spread, len(values) - 1))
    return Paired(mean, (mean - reach, mean + reach), p)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted for their number, in their order: the smallest times n, the next times n - 1 and so
    on, none below the one before it, at most 1 (Holm, Scandinavian Journal of Statistics 6, 1979).
    """
    order, adjusted, least = np.argsort(p, kind="stable"), [0.0] * len(p), 0.0
    for rank, k in enumerate(order.tolist()):
        least = max(least, min(1.0, (len(p) - rank) * p[k]))
        adjusted[k] = least
    return adjusted


def median_interval(values: Sequence[float]) -> Interval:
    """95 %, of a bootstrap over the values (percentiles)."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), (DRAWS, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(low), float(high)
