"""95 % confidence intervals of scores in [0, 1], over pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]
Z = 1.959964


def of_mean(scores: Sequence[float]) -> Interval:
    """Of the mean score: Agresti and Coull's interval, carried over from shares to scores.

    The normal interval over the scores and four made-up ones, two of 0 and two of 1; so a score
    that was 1 on every picture has an interval too. Agresti & Coull, The American Statistician
    52 (1998).
    """
    padded = np.array([*scores, 0.0, 0.0, 1.0, 1.0])
    spread = Z * padded.std(ddof=1) / np.sqrt(len(padded))
    middle = padded.mean()
    return max(0.0, float(middle - spread)), min(1.0, float(middle + spread))


def of_ratio(scores: Sequence[float], reference: Sequence[float]) -> Interval:
    """Of mean(scores) / mean(reference), paired picture by picture, by the delta method.

    To first order the ratio R errs by mean(d) / mean(reference) with d = score - R reference
    (Cochran, Sampling Techniques, 3rd ed., 6.4), which has mean 0: its standard error is that of
    d over mean(reference). Needs two pictures and a reference that is not 0 on all.
    """
    ours, theirs = np.asarray(scores, np.float64), np.asarray(reference, np.float64)
    ratio = ours.mean() / theirs.mean()
    left = ours - ratio * theirs
    spread = Z * left.std(ddof=1) / np.sqrt(len(left)) / theirs.mean()
    return float(ratio - spread), float(ratio + spread)
