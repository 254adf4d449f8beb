"""All plans that a request could take, ranked by what a policy wants of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffusion_edge.errors import NoPlan
from diffusion_edge.routing import cost, finish
from diffusion_edge.routing.cost import Bundle, Counts, Floats
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.types import ImageRequest, Plan, View

DIGITS = 9
"""Seconds, costs and qualities are compared to so many: the order of a sum is no reason."""


@dataclass(frozen=True)
class Options:
    """Plans by index. bundle, within: where each is in `bundles`. finish_s: when the last image is
    decoded, by the stages' rules run ahead. cost: of all images. quality, bound: relative, as
    estimated and as promised. crowding_s: what the images take of the stages, weighted by how much
    these have to do."""

    bundles: Sequence[Bundle]
    bundle: Counts
    within: Counts
    finish_s: Floats
    cost: Floats
    quality: Floats
    bound: Floats
    crowding_s: Floats

    @property
    def hops(self) -> Counts:
        counts: Counts = np.array([len(b.stages) - 1 for b in self.bundles])[self.bundle]
        return counts

    def plan(self, index: int, view: View, reason: str = "") -> Plan:
        """In the view's codecs."""
        found = self.bundles[int(self.bundle[index])].plan(int(self.within[index]), reason)
        return found.with_codecs(view.codecs)


def options(
    names: Sequence[str], request: ImageRequest, view: View, quality: QualityTable
) -> Options:
    """Of one to three spans over these stages. Raises NoPlan where there is none."""
    found = cost.bundles(names, request.steps, view.links)
    if not found:
        raise NoPlan(f"no live stage can run {request.steps} steps of {request.family!r}")
    guide = {name: cost.guided(name, request, view) for name in names}
    tables = finish.Tables(request, view)
    idle_s = {name: tables.of(name, guide[name], request.images).idle_s for name in names}
    finish_s, costs, value, bound, crowding_s = [], [], [], [], []
    for b in found:
        guided = [guide[name] for name in b.stages]
        asked = b.stages, b.steps, guided, request.images
        finish_s.append(finish.predict(*asked, tables, view))
        costs.append(cost.of(*asked, view))
        crowding_s.append(_crowding_s(request, cost.full_s(*asked, view), idle_s, b))
        told = cost.models(b.stages, view), b.steps, request.size
        value.append(quality.relative_all(*told))
        bound.append(quality.bound_all(*told))
    return Options(
        bundles=found,
        bundle=np.repeat(np.arange(len(found)), [len(b) for b in found]),
        within=np.concatenate([np.arange(len(b)) for b in found]),
        finish_s=np.concatenate(finish_s).round(DIGITS),
        cost=np.concatenate(costs).round(DIGITS),
        quality=np.concatenate(value).round(DIGITS),
        bound=np.concatenate(bound).round(DIGITS),
        crowding_s=np.concatenate(crowding_s).round(DIGITS),
    )


def _crowding_s(
    request: ImageRequest, taken_s: Sequence[Floats], idle_s: Mapping[str, float], b: Bundle
) -> Floats:
    """Seconds taken of each stage times (when it will have done what it has / deadline) squared."""
    total = np.zeros(len(b))
    for name, seconds in zip(b.stages, taken_s, strict=True):
        total = total + seconds * (idle_s[name] / request.deadline_s) ** 2
    return total
