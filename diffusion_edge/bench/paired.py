"""Paired 95 % intervals of what two arms made of the same arrivals. No torch.

Requests that come one after another share a queue, so single ones are not independent. Intervals
are of a bootstrap over blocks of consecutive arrivals (Künsch, Annals of Statistics 17, 1989; here
blocks that do not overlap): whole blocks are drawn, both arms' at once, and the 2.5 % and 97.5 %
quantiles of the statistic are its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]
BLOCK = 20
DRAWS = 10_000


def interval(
    columns: Sequence[Sequence[float]], of: Callable[[Floats], Floats], block: int = BLOCK
) -> Interval | None:
    """Of a statistic of the columns' sums.

    columns: one value for each arrival, in their order. of: takes (draws, columns) sums and gives
    the statistic by draw; what it cannot tell of a draw is NaN and left out. None of fewer than two
    blocks.
    """
    values = np.array(columns, np.float64).T
    count = len(values) // block
    if count < 2:
        return None
    sums = np.array([part.sum(axis=0) for part in np.array_split(values, count)])
    drawn = np.random.default_rng(0).integers(count, size=(DRAWS, count))
    low, high = np.nanquantile(of(sums[drawn].sum(axis=1)), (0.025, 0.975))
    return float(low), float(high)


def difference(
    ours: Sequence[float], theirs: Sequence[float], block: int = BLOCK
) -> Interval | None:
    """Of mean(ours) - mean(theirs)."""
    each = len(ours)
    return interval((ours, theirs), lambda sums: (sums[:, 0] - sums[:, 1]) / each, block)


def ratio_of_means(
    ours: Sequence[float | None], theirs: Sequence[float | None], block: int = BLOCK
) -> Interval | None:
    """Of the mean of `ours` over that of `theirs`, each over those that are not None."""
    columns = [
        [float(value is not None) if counts else value or 0.0 for value in each]
        for each in (ours, theirs)
        for counts in (False, True)
    ]

    def of(sums: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Floats = (sums[:, 0] / sums[:, 1]) / (sums[:, 2] / sums[:, 3])
        return np.where(np.isfinite(found), found, np.nan)

    return interval(columns, of, block)
