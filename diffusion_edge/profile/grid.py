"""Which plans are measured: every order of one to three spans, at some hand-off steps each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise, permutations

from diffusion_edge.plan import Plan

HANDOFFS: dict[int, tuple[float, ...]] = {
    1: (),
    2: (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9),
    3: (0.2, 0.5, 0.8),
}
"""Shares of the steps at which plans hand off, by number of spans. They lie evenly about the
middle, so that both orders of two stages are measured at the same steps on each, and plans of
three spans begin as plans of two do."""


def plans(stages: Sequence[str], steps: int) -> list[Plan]:
    """All plans of `steps` steps."""
    return [plan for order in orders(stages) for plan in _cut(order, steps)]


def orders(stages: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every order of one to three different stages: what a router may take."""
    for spans in HANDOFFS:
        yield from permutations(stages, spans)


def _cut(order: tuple[str, ...], steps: int) -> Iterator[Plan]:
    shares = HANDOFFS[len(order)]
    early = {round(share * steps) for share in shares if share <= 0.5}
    handoffs = sorted((early | {steps - step for step in early}) - {0, steps})
    for chosen in combinations(handoffs, len(order) - 1):
        bounds = (0, *chosen, steps)
        counts = (stop - start for start, stop in pairwise(bounds))
        yield Plan.of(tuple(zip(order, counts, strict=True)))
