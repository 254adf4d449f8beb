"""Stages in an order in which those of a group lie side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby, pairwise

import numpy as np

from diffusion_edge.plan import Tier
from diffusion_edge.routing.cost import Bools, Counts, Floats
from diffusion_edge.routing.shapes import SPANS, Group

KEPT = 64
"""Layouts, and counts of paths, that are kept."""

Told = tuple[str, Tier, str]
"""Model, tier and name of a stage."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Of S stages in G groups. rank: (S,), where a stage stands among the names in order. of: (S,),
    its group. stages: of each group. members: (G, M), the same, filled up with -1."""

    names: tuple[str, ...]
    groups: tuple[Group, ...]
    rank: Counts
    of: Counts
    stages: tuple[slice, ...]
    members: Counts

    def least(self, of: Floats, axis: int = 0) -> Floats:
        """By group the least of its stages, which lie along an axis."""
        return self._best(np.minimum, of, axis)

    def most(self, of: Floats, axis: int = 0) -> Floats:
        return self._best(np.maximum, of, axis)

    def _best(self, best: np.ufunc, of: Floats, axis: int) -> Floats:
        found: Floats
        if of.ndim == 2:
            found = best.reduceat(of, self.members[:, 0], axis=axis)
            return found
        found = np.empty((*of.shape[:axis], len(self.groups), *of.shape[axis + 1 :]))
        for g, stages in enumerate(self.stages):  # for more of it, reduceat takes ten times as long
            own = of[:, stages] if axis else of[stages]
            best.reduce(own, axis=axis, out=found[:, g] if axis else found[g])
        return found

    def paths(self, linked: Bools) -> tuple[Counts, Counts, Counts]:
        """How many ways there are to choose a stage for each of one to three groups, by groups.
        linked: (S, S), from stage to stage."""
        return _paths(self, linked.tobytes())


def layout(told: Iterable[Told]) -> Layout:
    return _layout(tuple(told))


@lru_cache(KEPT)
def _layout(told: tuple[Told, ...]) -> Layout:
    told = tuple(sorted(told))
    names = [name for *_, name in told]
    alike = [list(same) for _, same in groupby(told, lambda each: each[:2])]
    counts = [len(same) for same in alike]
    stages = tuple(slice(*ends) for ends in pairwise(accumulate(counts, initial=0)))
    members = np.full((len(counts), max(counts)), -1)
    for own, each in zip(members, stages, strict=True):
        own[: each.stop - each.start] = np.arange(each.start, each.stop)
    return Layout(
        names=tuple(names),
        groups=tuple(Group(*same[0][:2], min(len(same), SPANS)) for same in alike),
        rank=np.argsort(np.argsort(names)),
        of=np.repeat(np.arange(len(counts)), counts),
        stages=stages,
        members=members,
    )


@lru_cache(KEPT)
def _paths(layout: Layout, linked: bytes) -> tuple[Counts, Counts, Counts]:
    link = np.frombuffer(linked, np.bool_).reshape(len(layout.names), -1).astype(np.int64)
    one = np.equal.outer(np.arange(len(layout.groups)), layout.of).astype(np.int64)
    to, back = one @ link, link @ one.T
    three = np.einsum("as,bs,sc->abc", to, one, back)
    every = np.arange(len(one))
    three[every, :, every] -= one @ (link * link.T) @ one.T  # there and back
    return one.sum(axis=1), to @ one.T, three
