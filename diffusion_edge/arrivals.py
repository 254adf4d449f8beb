"""When requests come: endless streams of times in seconds, from 0 on, that never fall."""

from __future__ import annotations

import csv
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from diffusion_edge.errors import InvalidRequest

Rate = Callable[[float], float]
"""Requests a second at a time."""


def poisson(rate: float, rng: random.Random) -> Iterator[float]:
    """Of `rate` a second."""
    at = 0.0
    while True:
        at += rng.expovariate(rate)
        yield at


def bursty(rate: float, burst: int, rng: random.Random) -> Iterator[float]:
    """Bursts of `burst` requests at once; the bursts are Poisson, the mean rate is `rate`."""
    for at in poisson(rate / burst, rng):
        yield from itertools.repeat(at, burst)


def changing(rate: Rate, highest: float, rng: random.Random) -> Iterator[float]:
    """Poisson at a rate that changes, by thinning one of `highest` a second, which it never
    exceeds (Lewis and Shedler, 1979)."""
    return (at for at in poisson(highest, rng) if rng.random() * highest < rate(at))


def diurnal(rate: float, swing: float, period_s: float, rng: random.Random) -> Iterator[float]:
    """A rate that goes up and down by `swing` times its mean (at most 1) once in `period_s`, lowest
    at first."""

    def now(at_s: float) -> float:
        return rate * (1.0 - swing * math.cos(2.0 * math.pi * at_s / period_s))

    return changing(now, rate * (1.0 + swing), rng)


def crowd(
    rate: float, times: float, at_s: float, for_s: float, rng: random.Random
) -> Iterator[float]:
    """A flash crowd: from `at_s` on, for so long, `times` as many as otherwise."""

    def now(time_s: float) -> float:
        return rate * (times if at_s <= time_s < at_s + for_s else 1.0)

    return changing(now, rate * max(times, 1.0), rng)


def recorded(times_s: Sequence[float], rate: float | None = None) -> Iterator[float]:
    """Over and over, each time one usual gap after the last one; at another mean rate every gap is
    as much longer or shorter. times_s: from 0 on."""
    period_s = times_s[-1] * len(times_s) / (len(times_s) - 1)
    factor = 1.0 if rate is None else len(times_s) / period_s / rate
    for turn in itertools.count():
        for at in times_s:
            yield factor * (turn * period_s + at)


def excerpt(times_s: Sequence[float], count: int, rng: random.Random) -> list[float]:
    """So many that follow each other, from anywhere, their first at 0 s; all where there are no
    more. Where they are all at one time, others are drawn: the whole is never so."""
    while True:
        start = rng.randrange(max(len(times_s) - count, 0) + 1)
        found = times_s[start : start + count]
        if found[-1] > found[0]:
            return [at - found[0] for at in found]


def read_arrivals(file: Path) -> list[float]:
    """The column t_s of a CSV file, from its first row on. Raises InvalidRequest."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            times = [float(row["t_s"]) for row in csv.DictReader(lines)]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file}: cannot be read: {error}") from None
    except (KeyError, TypeError, ValueError):
        raise InvalidRequest(f"{file}: must have numbers in its column t_s") from None
    ordered = all(before <= after for before, after in itertools.pairwise(times))
    if len(times) < 2 or not ordered or not 0.0 < times[-1] - times[0] < math.inf:
        raise InvalidRequest(f"{file}: needs times that never fall, and not all of them alike")
    return [at - times[0] for at in times]
