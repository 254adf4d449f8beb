"""Recordings of a link: its rate over time and its round trips; and what bytes take over them.

A trace is a table of steps: a value holds until the next one's time, and after its period the
trace begins again.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from diffusion_edge.errors import InvalidRequest


@dataclass(frozen=True, eq=False)
class Trace:
    """values[i] holds from starts_s[i] to the next start, the last one until period_s.

    starts_s begins with 0 and grows; no value is negative. Raises InvalidRequest otherwise.
    """

    starts_s: NDArray[np.float64]
    values: NDArray[np.float64]
    period_s: float

    def __post_init__(self) -> None:
        starts, values = self.starts_s, self.values
        if len(starts) != len(values) or not len(starts) or starts[0] != 0.0:
            raise InvalidRequest("a trace needs a value for each of its times, the first at 0 s")
        if not (np.diff(starts, append=self.period_s) > 0.0).all():
            raise InvalidRequest("the times of a trace must grow, and its period lie beyond them")
        if not np.isfinite(values).all() or values.min() < 0.0:
            raise InvalidRequest("the values of a trace must be finite and not negative")

    @property
    def mean(self) -> float:
        """Over time."""
        return float(self._areas[-1]) / self.period_s

    def at(self, time_s: float) -> float:
        """The value at a time from 0 s on."""
        index = np.searchsorted(self.starts_s, time_s % self.period_s, side="right") - 1
        return float(self.values[index])

    def scaled(self, factor: float) -> Trace:
        return Trace(self.starts_s, self.values * factor, self.period_s)

    def later(self, time_s: float) -> Trace:
        """The same, begun so much later: its time 0 is this one's `time_s`."""
        starts = (self.starts_s - time_s) % self.period_s
        order = np.argsort(starts)
        order = order[starts[order] < self.period_s]  # one that rounds up to the period is at 0
        starts, values = starts[order], self.values[order]
        if not len(starts) or starts[0] > 0.0:
            starts, values = np.append(0.0, starts), np.append(self.at(time_s), values)
        return Trace(starts, values, self.period_s)

    def back(self) -> Trace:
        """For a link's way back: from the middle on, so that both ways are not slow together."""
        return self.later(self.period_s / 2)

    def until(self, time_s: float) -> float:
        """The values summed over time, from 0 s on: of rates, the bytes that pass."""
        periods, rest = divmod(time_s, self.period_s)
        return periods * float(self._areas[-1]) + float(np.interp(rest, self._times, self._areas))

    def when(self, area: float) -> float:
        """The first time at which `until` reaches `area`; InvalidRequest if it never does."""
        total = float(self._areas[-1])
        if area <= 0.0:
            return 0.0
        if total <= 0.0:
            raise InvalidRequest("nothing ever passes over a link whose rate is always 0")
        periods, rest = divmod(area, total)
        if rest == 0.0:  # reached where the value was last positive, not where the period ends
            periods, rest = periods - 1, total
        index = int(np.searchsorted(self._areas, rest, side="left")) - 1
        into = (rest - float(self._areas[index])) / float(self.values[index])
        return float(periods) * self.period_s + float(self._times[index]) + into

    @cached_property
    def _times(self) -> NDArray[np.float64]:
        return np.append(self.starts_s, self.period_s)

    @cached_property
    def _areas(self) -> NDArray[np.float64]:
        return np.append(0.0, np.cumsum(self.values * np.diff(self._times)))


def transfer_s(rates: Trace, start_s: float, nbytes: float) -> float:
    """Seconds until `nbytes` have passed over a link of `rates` in bytes a second, from `start_s`.

    The rate is integrated exactly; an outage (rate 0) is waited for.
    """
    return max(0.0, rates.when(rates.until(start_s) + nbytes) - start_s) if nbytes > 0.0 else 0.0


def joined(traces: Sequence[Trace], each_s: float) -> Trace:
    """One trace after another, each from its start, for `each_s`."""
    starts, values = [], []
    for index, trace in enumerate(traces):
        rounds = np.arange(0.0, each_s, trace.period_s)
        times = (rounds[:, None] + trace.starts_s).ravel()
        kept = times < each_s - 1e-6  # a time that rounds up to the next trace is its first
        starts.append(index * each_s + times[kept])
        values.append(np.tile(trace.values, len(rounds))[kept])
    return Trace(np.concatenate(starts), np.concatenate(values), len(traces) * each_s)


# ---------------------------------------------------------------------------- files


def read_rates(file: Path) -> Trace:
    """A CSV file with the columns t_s and bytes_per_s. Raises InvalidRequest."""
    times, rates = _columns(file, "t_s", "bytes_per_s")
    return _trace(file, times, rates)


def read_round_trips(file: Path) -> Trace:
    """A CSV file with the columns t_s, rtt_s and segment, whose segments are joined without the
    time between them: the first ping of one follows the last of another by the usual interval.

    Raises InvalidRequest.
    """
    times, trips, segments = _columns(file, "t_s", "rtt_s", "segment")
    gaps, new = np.diff(times), np.diff(segments) != 0
    usual = float(median(gaps[~new])) if (~new).any() else 1.0
    return _trace(file, np.append(0.0, np.cumsum(np.where(new, usual, gaps))), trips)


def _trace(file: Path, times: NDArray[np.float64], values: NDArray[np.float64]) -> Trace:
    """The last value holds for one usual interval."""
    usual = float(median(np.diff(times))) if len(times) > 1 else 1.0
    try:
        return Trace(times - times[0], values, float(times[-1] - times[0]) + usual)
    except InvalidRequest as error:
        raise InvalidRequest(f"{file}: {error.message}") from None


def _columns(file: Path, *names: str) -> list[NDArray[np.float64]]:
    """Other columns are left alone."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        columns = [np.array([float(row[name]) for row in rows]) for name in names]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file}: cannot be read: {error}") from None
    except (KeyError, TypeError, ValueError):
        raise InvalidRequest(
            f"{file}: must have numbers in its columns {', '.join(names)}"
        ) from None
    if not rows:
        raise InvalidRequest(f"{file}: has no rows")
    return columns
