"""The policy `elastic`: the cheapest plan that meets deadline and quality floor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusion_edge.errors import InvalidRequest, NoPlan, QueueFull
from diffusion_edge.routing.cost import Floats, bundles, guided, models, predict
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.room import can_hold, has_room, told, too_many
from diffusion_edge.types import Choice, ImageRequest, Plan, View

# Seconds, costs and qualities are compared to so many digits: the order of a sum is no reason.
DIGITS = 9


def choose(request: ImageRequest, view: View, quality: QualityTable) -> Choice:
    """Cheapest above the floor within the deadline, or else the fastest above the floor.

    Ties go to the earlier finish (or the lower cost), then to fewer hops, then to the stages that
    come first by name and the earlier hand-off. The runner-up is the best plan over other stages
    or another order of them; the second best as such is nearly always the same plan cut one step
    aside. Raises NoPlan, saying what is missing, QueueFull, or InvalidRequest for more images than
    the stages that are needed can ever hold.
    """
    names = stages_with_room(request, view)
    options = bundles(names, request.steps, view.links)
    if not options:
        raise NoPlan(f"no live stage can run {request.steps} steps of {request.family!r}")
    guide = {name: guided(name, request, view) for name in names}
    forecasts = [
        predict(b.stages, b.steps, [guide[name] for name in b.stages], request.images, view)
        for b in options
    ]
    finish_s = _joined([forecast.finish_s for forecast in forecasts])
    cost = _joined([forecast.cost for forecast in forecasts])
    value = _joined([quality.relative_all(models(b.stages, view), b.steps) for b in options])
    order = np.repeat(np.arange(len(options)), [len(b) for b in options])
    within = np.concatenate([np.arange(len(b)) for b in options])
    hops = np.array([len(b.stages) - 1 for b in options])[order]

    good = value >= round(request.quality_floor, DIGITS)
    if not good.any():
        raise below_floor(request, view, quality, float(value.max()))
    in_time = good & (finish_s <= round(request.deadline_s, DIGITS))
    if in_time.any():
        allowed, keys = in_time, (within, order, hops, finish_s, cost)
    else:
        allowed, keys = good, (within, order, hops, cost, finish_s)
    ranked = np.lexsort(keys)
    ranked = ranked[allowed[ranked]]
    best = int(ranked[0])
    others = ranked[order[ranked] != order[best]]
    second = int(others[0]) if len(others) else None

    def plan_at(index: int, reason: str = "") -> Plan:
        plan = options[int(order[index])].plan(int(within[index]), reason)
        return plan.with_codecs(view.codecs)

    reason = _reason(request, quality, int(allowed.sum()), bool(in_time.any()))
    return Choice(
        plan=plan_at(best, reason),
        predicted_s=float(finish_s[best]),
        cost=float(cost[best]),
        quality=float(value[best]),
        reason=reason,
        runner_up=None if second is None else plan_at(second),
        runner_up_s=None if second is None else float(finish_s[second]),
    )


def _joined(parts: Sequence[Floats]) -> Floats:
    return np.concatenate(parts).round(DIGITS)


def stages_with_room(request: ImageRequest, view: View) -> list[str]:
    if not view.stages:
        raise NoPlan(f"no stage of {request.family!r} is alive")
    able = [name for name, status in view.stages.items() if can_hold(status, request)]
    if not able:
        raise NoPlan(told(request.images, {n: s.capacity for n, s in view.stages.items()}))
    room = [name for name in able if has_room(view.stages[name], request)]
    if room:
        return room
    raise QueueFull(
        f"every stage's queue is full ({', '.join(sorted(able))})",
        retry_after_s=min(view.stages[name].queue_s for name in able),
    )


def below_floor(
    request: ImageRequest, view: View, quality: QualityTable, best: float
) -> NoPlan | QueueFull | InvalidRequest:
    live = ", ".join(sorted(view.stages))
    alive = {status.model for status in view.stages.values()}
    dead = [name for name in quality.stages if name not in alive]
    without_room = [n for n, status in view.stages.items() if not has_room(status, request)]
    full = [name for name in without_room if can_hold(view.stages[name], request)]
    small = {n: s.capacity for n, s in view.stages.items() if not can_hold(s, request)}
    message = (
        f"no plan over the live stages ({live}) is known to reach the quality floor "
        f"{request.quality_floor:g}; the best of them reaches {best:.3g}"
    )
    if not quality.rows:
        message += f"; {quality.family!r} has no quality table, so other plans need a floor of 0"
    if dead:
        message += f"; no live stage runs the model {' or '.join(map(repr, dead))}"
    if full and not dead:
        retry_after_s = min(view.stages[name].queue_s for name in full)
        return QueueFull(f"{message}; full: {', '.join(full)}", retry_after_s=retry_after_s)
    if small and not dead:
        return too_many(request.images, small, f"{message}; ")
    return NoPlan(message)


def _reason(request: ImageRequest, quality: QualityTable, count: int, in_time: bool) -> str:
    floor = f"the quality floor {request.quality_floor:g}"
    if not quality.rows:
        floor += f" ({quality.family!r} has no quality table: only {quality.reference!r} is known)"
    deadline = f"the deadline of {request.deadline_s:g} s"
    if in_time and count == 1:
        return f"the only plan that meets {deadline} and {floor}"
    if in_time:
        return f"cheapest of {count} plans that meet {deadline} and {floor}"
    fastest = "the only plan" if count == 1 else f"the fastest of {count} plans"
    return f"no plan meets {deadline} and {floor}; this is {fastest} above the floor"
