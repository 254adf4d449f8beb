"""Which samples take their next step together. Pure rules: the engine runs them.

At every step boundary `next_batch` takes the sample that is due first and those that can share its
forward pass, as many as pay. A sample's due time grows with its own work, so a long request lets
short ones pass; it never moves, so nothing that arrives later passes for ever.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, TypeVar

from diffusion_edge.curves import Curve, seconds

Number = TypeVar("Number", int, float)
Batching = Literal["in-flight", "reproducible", "off"]
"""in-flight: samples join and leave at any step. reproducible: also in forward passes of one fixed
size, so that a picture does not depend on its company in any bit. off: one sample at a time."""

STRETCH = 3.0
"""A request is due at so many times the seconds it takes alone, if its deadline is not earlier."""

GAIN = 1.05
"""A larger forward pass has to do this many times as many rows a second to be used."""

AGAIN = 50.0
"""A larger forward pass that did not pay is tried again after so many times its seconds."""

TEXTS = 8
"""Requests whose texts are encoded in one call at most; more gained nothing."""

CELLS = 1024
"""Latent cells that are decoded in one call at most. Larger pictures gain nothing by company, and
several at once may be more than memory holds."""


@dataclass(frozen=True)
class Sample:
    """What the rules know of a trajectory on a replica.

    key: samples with equal keys can share a forward pass. rows: of it that this one takes.
    due: when it should be done, in the seconds of any one clock. cells: of its latent. most: rows
    of the forward passes that it can be in, after a larger one has failed; None for any number.
    """

    key: Hashable
    rows: int
    due: float
    cells: int
    most: int | None = None


FIXED_ROWS = 8
"""Of every forward pass in mode `reproducible`, unless the config says otherwise."""


def due(arrived: float, alone_s: float, told: float | None, mode: Batching) -> float:
    """When a request should be done that would take `alone_s` on an idle replica.

    told: when its sender says that it is due, None for nothing said. In mode `off` it is the time
    of arrival: who came first is done first.
    """
    if mode == "off":
        return arrived
    return arrived + STRETCH * alone_s if told is None else told


def best_rows(step_s: Curve) -> int:
    """Rows of the forward pass beyond which a larger one buys no throughput.

    step_s: seconds of a step by rows, as measured on this replica.
    """
    sizes = sorted(step_s)
    best = sizes[0]
    for rows in sizes[1:]:
        if pays(rows, step_s[rows], best, step_s[best]):
            best = rows
    return best


def pays(rows: int, step_s: float, than: int, than_s: float) -> bool:
    """Whether forward passes of `rows` that take `step_s` are worth it beside smaller ones of
    `than` rows that take `than_s`."""
    return rows * than_s >= GAIN * than * step_s


def rows_now(
    step_s: Curve, unit: int, waiting: int, most: int, rested_s: Mapping[int, float]
) -> int:
    """Rows of the next forward pass at most: as many as pay, and now and then more, for what did
    not pay once may pay now.

    A pass of twice or four times as many rows is tried when it can be filled, if it never was or
    has rested long enough. As it is worth as much as the smaller passes it stands for, or nearly,
    trials cost a few percent of the time at the very most.

    unit: rows of each sample. waiting: rows of all that could share the pass. rested_s: by rows,
    seconds stepped since a pass of them was last seen not to pay.
    """
    best = min(best_rows(step_s), most)
    base = max(best, unit)
    for larger in (min(2 * base, most), min(4 * base, most)):
        rows = larger - larger % unit
        rested = rested_s.get(rows, inf) >= AGAIN * seconds(step_s, rows)
        if base < rows <= waiting and rested:
            return rows
    return best


def company(samples: Sequence[Sample]) -> list[int]:
    """Indices of the sample due first and of all that could share its forward pass, by due time."""
    order = sorted(range(len(samples)), key=lambda i: (samples[i].due, i))
    return [index for index in order if samples[index].key == samples[order[0]].key]


def next_batch(samples: Sequence[Sample], rows: int) -> list[int]:
    """Indices of the samples that step now: the one due first, and what fits beside it.

    rows: of a forward pass at most; the first sample steps even if it alone takes more.
    """
    taken: list[int] = []
    used = 0
    for index in company(samples):
        sample = samples[index]
        limit = rows if sample.most is None else min(rows, sample.most)
        if not taken or used + sample.rows <= limit:
            taken.append(index)
            used += sample.rows
            rows = limit
    return taken


def drained_s(work: Sequence[tuple[int, int]], step_s: Curve) -> float:
    """Seconds that `work`, (steps left, rows) by sample of one size, takes in full batches: about
    how much later a sample is done that joins it now."""
    full = best_rows(step_s)
    return sum(steps * rows for steps, rows in work) * step_s[full] / full


def nearest(measured: Mapping[int, Number], rows: int) -> Number:
    """What was measured for the size that is nearest to `rows`."""
    return measured[min(measured, key=lambda known: abs(known - rows))]
