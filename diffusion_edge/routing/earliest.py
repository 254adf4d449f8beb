"""The policy `earliest`: of the plans above the quality floor the one that is done first.

It looks at nobody but its own request, and at no price: what a router that weighs them has to beat.
"""

from __future__ import annotations

import numpy as np

from diffusion_edge.routing.elastic import below_floor, stages_with_room
from diffusion_edge.routing.options import DIGITS, options
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.types import Choice, ImageRequest, View


def choose(request: ImageRequest, view: View, quality: QualityTable) -> Choice:
    """Ties go to the lower cost, then to fewer hops, then to the stages that come first by name and
    the earlier hand-off. The runner-up is the best plan over other stages or another order of them.
    Raises NoPlan, QueueFull and InvalidRequest, as `elastic` does.
    """
    known = options(stages_with_room(request, view), request, view, quality)
    good = known.bound >= round(request.quality_floor, DIGITS)
    if not good.any():
        raise below_floor(request, view, quality, float(known.bound.max()))
    ranked = np.lexsort((known.within, known.bundle, known.hops, known.cost, known.finish_s))
    ranked = ranked[good[ranked]]
    best = int(ranked[0])
    others = ranked[known.bundle[ranked] != known.bundle[best]]
    second = int(others[0]) if len(others) else None
    finish_s = float(known.finish_s[best])
    reason = f"done first of {int(good.sum())} plans above the floor {request.quality_floor:g}"
    if finish_s > request.deadline_s:
        reason += f"; predicted to miss the deadline of {request.deadline_s:g} s"
    return Choice(
        plan=known.plan(best, view, reason),
        predicted_s=finish_s,
        cost=float(known.cost[best]),
        quality=float(known.quality[best]),
        reason=reason,
        runner_up=None if second is None else known.plan(second, view),
        runner_up_s=None if second is None else float(known.finish_s[second]),
        quality_bound=float(known.bound[best]),
    )
