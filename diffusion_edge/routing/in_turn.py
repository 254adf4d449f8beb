"""The policy `in-turn`: whole pictures on one stage each, and the stages above the floor in turn.

Whose turn it is follows from the view's count and from nothing else: the deadline does not matter,
nor what a stage has to do. A preview takes a turn, too.
"""

from __future__ import annotations

from diffusion_edge.errors import NoPlan
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import cost, finish
from diffusion_edge.routing.due import misses
from diffusion_edge.routing.elastic import stages_with_room
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.view import Choice, View


def choose(request: ImageRequest, view: View, quality: QualityTable) -> Choice:
    """The next stage by name that has room. Raises NoPlan, QueueFull and InvalidRequest."""
    plans = [Plan.of(((name, request.steps),)) for name in sorted(stages_with_room(request, view))]
    known = [cost.in_models(plan, view) for plan in plans]
    bounds = [quality.bound(plan, request.size) for plan in known]
    good = [k for k, bound in enumerate(bounds) if bound >= request.quality_floor]
    if not good:
        raise NoPlan(
            f"no stage alone is known to reach the quality floor {request.quality_floor:g}; the "
            f"best of {', '.join(plan.spans[0].stage for plan in plans)} reaches {max(bounds):.3g}"
        )
    chosen = good[view.turn % len(good)]
    plan = plans[chosen]
    finish_s = finish.of_plan(plan, request, view)
    reason = f"its turn of {len(good)} stages above the floor {request.quality_floor:g}"
    if misses(finish_s, request, view):
        reason += f"; predicted to miss the deadline of {request.deadline_s:g} s"
    return Choice(
        plan=Plan(plan.spans, plan.codecs, reason),
        predicted_s=finish_s,
        cost=cost.of_plan(plan, request, view),
        quality=quality.relative(known[chosen], request.size),
        reason=reason,
        quality_bound=bounds[chosen],
    )
