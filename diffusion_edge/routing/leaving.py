"""When latents leave many stages at once, by their arrival and steps: exactly, and at the earliest.

`Leaving` is many tables of `finish` in one. `Earliest` has one entry for each of several sets of
them, and is never later than any table of its set. Both are read by `at`, and `through` takes the
images of a request through a span by either.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from diffusion_edge.routing.cost import Counts, Floats

Moments = tuple[Floats, Floats]
"""Of the first and of the last image; one array twice where they are the same."""

CELLS = 16
"""Of the time that `Earliest` knows in detail."""


class Read(Protocol):
    def at(self, where: Counts, arrives_s: Floats, steps: Counts) -> Floats:
        """By latent, seconds from now. Not before it arrives; infinite where it never does."""
        ...


Kind = TypeVar("Kind", bound="Read", covariant=True)


class Reads(NamedTuple, Generic[Kind]):
    """Of one kind. last: when the last image of a request leaves, by when the first one came. Of
    several images also first: when the first one does, and alone: when one does that comes alone.
    """

    last: Kind
    first: Kind | None = None
    alone: Kind | None = None


def through(read: Reads[Read], k: int, where: Counts, came_s: Moments, steps: Counts) -> Moments:
    """When the first and the last image leave the k-th span, by when they came: as `finish.predict`
    has it."""
    first_s, last_s = came_s
    done_s = read.last.at(where, first_s, steps)
    if read.first is None or read.alone is None:
        return done_s, done_s
    if k:
        done_s = np.maximum(done_s, read.alone.at(where, last_s, steps))
    return read.first.at(where, first_s, steps), done_s


def later(moments: Moments, seconds: Floats) -> Moments:
    first_s, last_s = moments
    then_s = first_s + seconds
    return then_s, then_s if last_s is first_s else last_s + seconds


def soonest(moments: Moments, hop_s: Floats) -> Moments:
    """From any of several stations to each of several others: moments (K, R), hop_s (K, R, R')."""
    first_s, last_s = moments
    then_s = (first_s[:, :, None] + hop_s).min(axis=1)
    return then_s, then_s if last_s is first_s else (last_s[:, :, None] + hop_s).min(axis=1)


class Leaving:
    """arrives_s: (P, A). leaves_s: (P, A, N). As `Table.seconds`: on the line between two arrivals,
    and with the arrival after the last one."""

    def __init__(self, arrives_s: Sequence[Floats], leaves_s: Sequence[Floats]) -> None:
        most = max(map(len, arrives_s))
        self.arrives_s = np.empty((len(arrives_s), most))
        self.leaves_s = np.empty((len(leaves_s), most, leaves_s[0].shape[1]))
        beyond = np.arange(1.0, most)
        for i, (arrives, leaves) in enumerate(zip(arrives_s, leaves_s, strict=True)):
            known = len(arrives)
            self.arrives_s[i, :known], self.leaves_s[i, :known] = arrives, leaves
            if known < most:  # what comes later by a second leaves later by one
                more = beyond[: most - known]
                self.arrives_s[i, known:] = arrives[-1] + more
                self.leaves_s[i, known:] = leaves[-1] + more[:, None]
        self.steps = self.leaves_s.shape[2]
        self._flat, self._known = self.leaves_s.ravel(), self.arrives_s.ravel()
        self._end_s = float(self.arrives_s.max())
        self._apart = 2 * self._end_s
        apart = np.arange(len(self.arrives_s))[:, None] * self._apart
        self._sorted = (self.arrives_s + apart).ravel()

    def at(self, where: Counts, arrives_s: Floats, steps: Counts) -> Floats:
        known, count = self._known, self.arrives_s.shape[1]
        begin = where * count
        held_s = np.minimum(arrives_s, self._end_s)
        above = self._sorted.searchsorted(held_s + where * self._apart)
        above = np.minimum(np.maximum(above, begin + 1), begin + (count - 1))
        below_s = known[above - 1]
        share = np.minimum((held_s - below_s) / (known[above] - below_s), 1.0)
        entry = above * self.steps + (steps - 1)
        read: Floats = self._flat[entry - self.steps]
        read += share * (self._flat[entry] - read)
        read += np.maximum(arrives_s - known[begin + (count - 1)], 0.0)
        return read

    def rows(self, at_s: Floats) -> Floats:
        """`at` for all, at each of the moments and for all numbers of steps: (P, len(at_s), N)."""
        known, stations = self.arrives_s, np.arange(len(self.arrives_s))[:, None]
        above = 1 + (known[:, None, 1:-1] < at_s[:, None]).sum(axis=2)
        below_s = known[stations, above - 1]
        share = np.clip((at_s - below_s) / (known[stations, above] - below_s), 0.0, 1.0)
        rows = self.leaves_s.reshape(-1, self.steps)
        entry = stations * known.shape[1] + above
        low, high = rows.take(entry - 1, axis=0), rows.take(entry, axis=0)
        high -= low
        high *= share[:, :, None]
        low += high
        low += np.maximum(at_s - known[:, -1:], 0.0)[:, :, None]
        leaves_s: Floats = low
        return leaves_s

    def steepest(self, at_s: Floats) -> Floats:
        """How much later it gets by a second of arrival at most, between two of the moments, by
        number of steps: (P, len(at_s) - 1, N)."""
        known, stations = self.arrives_s, np.arange(len(self.arrives_s))[:, None]
        rise: Floats = np.ones_like(self.leaves_s)  # as after the last arrival
        np.subtract(self.leaves_s[:, 1:], self.leaves_s[:, :-1], out=rise[:, :-1])
        rise[:, :-1] /= np.diff(known, axis=1)[:, :, None]
        piece = (known[:, None, 1:] <= at_s[:, None]).sum(axis=2)
        entry = stations * known.shape[1] + piece
        return _most_of(rise.reshape(-1, self.steps), entry[:, :-1], entry[:, 1:])


def _most_of(rows: Floats, first: Counts, last: Counts) -> Floats:
    """The largest of rows from the first to the last one, by column: the larger of two runs that
    cover them, each as long as some power of two."""
    level = np.log2(last - first + 1).astype(np.int64)
    runs: Floats = np.empty((int(level.max()) + 1, *rows.shape))
    runs[0] = rows
    for k in range(1, len(runs)):
        half = 1 << (k - 1)
        np.maximum(runs[k - 1, :-half], runs[k - 1, half:], out=runs[k, :-half])
        runs[k, -half:] = runs[k - 1, -half:]
    flat = runs.reshape(-1, rows.shape[1])
    begin = level * len(rows)
    most: Floats = flat.take(begin + first, axis=0)
    np.maximum(most, flat.take(begin + last + 1 - (1 << level), axis=0), out=most)
    return most


def of_sets(best: np.ufunc, rows: Floats, starts: Counts) -> Floats:
    """By set, np.minimum or np.maximum of its rows. starts: the first row of each."""
    found: Floats = np.empty((len(starts), *rows.shape[1:]))
    for out, (begin, end) in zip(found, pairwise([*starts.tolist(), len(rows)]), strict=True):
        best.reduce(rows[begin:end], axis=0, out=out)
    return found


class Earliest:
    """starts: the first of each set, of stations that lie side by side. until_s: what arrives later
    is taken to arrive then, but that it does not leave before it arrives.

    Within a cell of time nothing leaves before it would from the cell's beginning, nor before it
    would from its end less the steepest rise from here to there.
    """

    def __init__(self, leaving: Leaving, starts: Counts, until_s: float) -> None:
        self.steps = leaving.steps
        at_s = np.linspace(0.0, until_s, CELLS + 1)
        self.leaves_s = of_sets(np.minimum, leaving.rows(at_s), starts).ravel()
        rise = of_sets(np.maximum, leaving.steepest(at_s), starts).ravel()
        self._rise_s = rise * (until_s / CELLS)
        self._per_s = CELLS / until_s

    def entry(
        self, where: Counts, arrives_s: Floats, steps: Counts
    ) -> tuple[Counts, Counts, Floats]:
        """Cell, entry in leaves_s, and the arrival in cells."""
        held = arrives_s * self._per_s
        cell = np.minimum(held, CELLS - 1).astype(np.int64)
        entry = where * (CELLS + 1)
        entry += cell
        entry *= self.steps
        entry += steps
        entry -= 1
        return cell, entry, held

    def at(self, where: Counts, arrives_s: Floats, steps: Counts) -> Floats:
        cell, entry, held = self.entry(where, arrives_s, steps)
        left = np.maximum(cell + 1 - held, 0.0)
        left *= self._rise_s[entry - where * self.steps]
        by_end_s = self.leaves_s[entry + self.steps] - left
        read: Floats = np.maximum(np.maximum(self.leaves_s[entry], by_end_s), arrives_s)
        return read


def earliest(leaving: Reads[Leaving], starts: Counts, until_s: float) -> Reads[Earliest]:
    last, first, alone = leaving
    return Reads(
        Earliest(last, starts, until_s),
        None if first is None else Earliest(first, starts, until_s),
        None if alone is None else Earliest(alone, starts, until_s),
    )


class Coarse:
    """`Earliest` by the cell's beginning alone: half as dear to read."""

    def __init__(self, of: Earliest) -> None:
        self._of = of

    def at(self, where: Counts, arrives_s: Floats, steps: Counts) -> Floats:
        _, entry, _ = self._of.entry(where, arrives_s, steps)
        return np.maximum(self._of.leaves_s[entry], arrives_s)


def coarse(of: Reads[Earliest]) -> Reads[Coarse]:
    last, first, alone = of
    return Reads(
        Coarse(last),
        None if first is None else Coarse(first),
        None if alone is None else Coarse(alone),
    )
