"""Policies that leave no choice of tier: a stated plan, or all steps on one tier.

Deadline and quality floor do not bind them; the reason says when they are not met.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from diffusion_edge.errors import InvalidPlan, NoPlan
from diffusion_edge.plan import Plan, Tier
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import cost, finish
from diffusion_edge.routing.due import misses
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.room import can_hold, too_many
from diffusion_edge.view import Choice, View


def choose(request: ImageRequest, view: View, quality: QualityTable) -> Choice:
    """The request's plan, which may be the config's. Raises InvalidPlan, or NoPlan."""
    plan = request.plan
    if plan is None:
        raise InvalidPlan(
            "policy 'fixed' needs a plan such as cloud:8,edge:6,device:6", param="plan"
        )
    if plan.steps != request.steps:
        raise InvalidPlan(
            f"plan {plan} has {plan.steps} steps, but {request.steps} are asked for", param="plan"
        )
    return judged(plan, plan.reason or "asked for", request, view, quality)


def on_one_tier(tier: Tier, request: ImageRequest, view: View, quality: QualityTable) -> Choice:
    """All steps on one stage of the tier, the one that finishes first.

    Raises NoPlan, and InvalidRequest for more images than any of them can ever hold.
    """
    names = sorted(name for name, status in view.stages.items() if status.tier == tier)
    if not names:
        live = ", ".join(sorted(view.stages)) or "none"
        raise NoPlan(f"no stage on tier {tier!r} is alive (alive: {live})")
    able = [name for name in names if can_hold(view.stages[name], request)]
    plans = [Plan.of(((name, request.steps),)) for name in able or names]
    return first_done(plans, f"policy {tier}-only", request, view, quality)


def first_done(
    plans: Sequence[Plan], reason: str, request: ImageRequest, view: View, quality: QualityTable
) -> Choice:
    """Of these plans the one with the earliest finish, then the cheaper one, then the first, as
    `judged`."""
    best = min(
        plans,
        key=lambda plan: (finish.of_plan(plan, request, view), cost.of_plan(plan, request, view)),
    )
    return judged(best, reason, request, view, quality)


def judged(
    plan: Plan, source: str, request: ImageRequest, view: View, quality: QualityTable
) -> Choice:
    """The plan in the view's codecs, with its prediction. The reason begins with `source`.

    Raises NoPlan, and InvalidRequest for more images than one of its stages can ever hold.
    """
    _check_possible(plan, request, view)
    predicted_s = finish.of_plan(plan, request, view)
    order = cost.models([span.stage for span in plan.spans], view)
    told = order, [span.steps for span in plan.spans], request.size
    value, bound = float(quality.relative_all(*told)[0]), float(quality.bound_all(*told)[0])
    reason = source
    if misses(predicted_s, request, view):
        reason += f"; predicted to miss the deadline of {request.deadline_s:g} s"
    if not quality.knows(order, plan.steps, request.size):
        reason += "; its quality is not measured"
    elif bound < request.quality_floor:
        reason += f"; below the quality floor {request.quality_floor:g}"
    settled = Plan(plan.spans, plan.codecs, reason).with_codecs(view.codecs)
    return Choice(
        plan=settled,
        predicted_s=predicted_s,
        cost=cost.of_plan(plan, request, view),
        quality=value,
        reason=reason,
        quality_bound=bound,
    )


def _check_possible(plan: Plan, request: ImageRequest, view: View) -> None:
    live = ", ".join(sorted(view.stages)) or "none"
    stages = [span.stage for span in plan.spans]
    for name in stages:
        if name not in view.stages:
            raise NoPlan(f"plan {plan}: stage {name!r} is not alive (alive: {live})")
    for source, target in pairwise(stages):
        if source != target and (source, target) not in view.links:
            raise NoPlan(f"plan {plan}: there is no link from {source!r} to {target!r}")
    small = {n: view.stages[n].capacity for n in stages if not can_hold(view.stages[n], request)}
    if small:
        raise too_many(request.images, small)
