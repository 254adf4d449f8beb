"""All plans that a request could take, ranked by what a policy wants of them."""

from __future__ import annotations

from collections.abc import Sequence
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
    decoded, by the stages' rules run ahead. cost: of all images. quality: relative."""

    bundles: Sequence[Bundle]
    bundle: Counts
    within: Counts
    finish_s: Floats
    cost: Floats
    quality: Floats

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
    finish_s, costs, value = [], [], []
    for b in found:
        guided = [guide[name] for name in b.stages]
        finish_s.append(finish.predict(b.stages, b.steps, guided, request.images, tables, view))
        costs.append(cost.predict(b.stages, b.steps, guided, request.images, view).cost)
        value.append(quality.relative_all(cost.models(b.stages, view), b.steps))
    return Options(
        bundles=found,
        bundle=np.repeat(np.arange(len(found)), [len(b) for b in found]),
        within=np.concatenate([np.arange(len(b)) for b in found]),
        finish_s=np.concatenate(finish_s).round(DIGITS),
        cost=np.concatenate(costs).round(DIGITS),
        quality=np.concatenate(value).round(DIGITS),
    )
