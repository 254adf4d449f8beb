"""Which samples take their next step together. Pure rules: the engine runs them.

At every step boundary `next_batch` takes the sample that is due first and those that can share its
forward pass, as many as pay. A sample's due time grows with its own work, so a long request lets
short ones pass; it never moves, so nothing that arrives later passes for ever.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

Number = TypeVar("Number", int, float)
Batching = Literal["in-flight", "reproducible", "off"]
"""in-flight: samples join and leave at any step. reproducible: also in forward passes of one fixed
size, so that a picture does not depend on its company in any bit. off: one sample at a time."""

STRETCH = 3.0
"""A request without an earlier deadline is due at this many times the seconds it takes alone."""

GAIN = 1.05
"""A larger forward pass has to do this many times as many rows a second to be used."""


@dataclass(frozen=True)
class Sample:
    """What the rules know of a trajectory on a replica.

    key: samples with equal keys can share a forward pass. rows: of it that this one takes.
    due: when it should be done, in the seconds of any one clock. most: rows of the forward passes
    that it can be in, after a larger one has failed; None for any number.
    """

    key: Hashable
    rows: int
    due: float
    most: int | None = None


FIXED_ROWS = 8
"""Of every forward pass in mode `reproducible`, unless the config says otherwise."""


def due(arrived: float, alone_s: float, deadline: float | None, mode: Batching) -> float:
    """When a request should be done that would take `alone_s` on an idle replica.

    In mode `off` it is the time of arrival: who came first is done first.
    """
    if mode == "off":
        return arrived
    fair = arrived + STRETCH * alone_s
    return fair if deadline is None else min(fair, deadline)


def best_rows(step_s: Mapping[int, float]) -> int:
    """Rows of the forward pass beyond which a larger one buys no throughput.

    step_s: seconds of a step by rows, as measured on this replica.
    """
    sizes = sorted(step_s)
    best = sizes[0]
    for rows in sizes[1:]:
        if rows * step_s[best] >= GAIN * best * step_s[rows]:
            best = rows
    return best


def next_batch(samples: Sequence[Sample], rows: int) -> list[int]:
    """Indices of the samples that step now: the one due first, and what fits beside it.

    rows: of a forward pass at most; the first sample steps even if it alone takes more.
    """
    order = sorted(range(len(samples)), key=lambda i: (samples[i].due, i))
    taken: list[int] = []
    used = 0
    for index in order:
        sample = samples[index]
        alike = not taken or sample.key == samples[taken[0]].key
        limit = rows if sample.most is None else min(rows, sample.most)
        if alike and (not taken or used + sample.rows <= limit):
            taken.append(index)
            used += sample.rows
            rows = limit
    return taken


def drained_s(work: Sequence[tuple[int, int]], step_s: Mapping[int, float]) -> float:
    """Seconds that `work`, (steps left, rows) by sample, takes in full batches: about how much
    later a sample is done that joins it now."""
    full = best_rows(step_s)
    return sum(steps * rows for steps, rows in work) * step_s[full] / full


def nearest(measured: Mapping[int, Number], rows: int) -> Number:
    """What was measured for the size that is nearest to `rows`."""
    return measured[min(measured, key=lambda known: abs(known - rows))]
