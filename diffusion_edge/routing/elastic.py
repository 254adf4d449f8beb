"""The policy `elastic`: the cheapest plan that meets deadline and quality floor, where seconds of a
stage are worth more the more it has to do.

What a request takes of a stage, those that come after it lack. The more a stage has to do, the
more of them wait, so its seconds have a price beside the one that is paid for them:

    price = cost + sum over stages of  CROWDING * dearest * taken_s * (idle_s / deadline_s)^2

with `cost` of `cost`; taken_s, seconds by which the request adds to what the stage has to do;
idle_s, when it has done all that it knows of; and `dearest`, the price of a second of the dearest
tier. This is drift plus penalty (Neely, Stochastic Network Optimization, 2010, chapter 4): the
penalty is the cost, the drift that of the sum over stages of idle_s cubed (there squared; cubes let
the price rise late and then fast). Where nothing waits the cheapest plan is taken, under load
stages get what evens them out, and where nothing costs anything the earliest plan is taken. As both
terms are prices times seconds and all else is a ratio, neither unit matters.
"""

from __future__ import annotations

from collections.abc import Callable

from diffusion_edge.errors import InvalidRequest, NoPlan, QueueFull
from diffusion_edge.routing.finish import Table
from diffusion_edge.routing.options import Options, options
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.room import can_hold, has_room, told, too_many
from diffusion_edge.types import Choice, ImageRequest, View

CROWDING = 5.0
"""What a second of a stage is worth besides, in seconds of the dearest tier, when it has to do for
as long as the deadline allows (LOG.md: Prices of what others lack)."""


def choose(request: ImageRequest, view: View, quality: QualityTable) -> Choice:
    """The lowest price above the floor within the deadline, or else the earliest above the floor.

    What cannot be in time is served all the same, as early as it can be. Ties go to the earlier
    finish (or the lower cost), then to fewer hops, then to the stages that come first by name and
    the earlier hand-off. The runner-up is the best plan over other stages or another order of them;
    the second best as such is nearly always the same plan cut one step aside. Raises NoPlan, saying
    what is missing, QueueFull, or InvalidRequest for more images than the stages that are needed
    can ever hold.
    """
    known = considered(request, view, quality)
    if not (count := known.count()):
        raise below_floor(request, view, quality, known.best_quality())
    in_time = known.cheapest()
    reason = _reason(request, quality, count, bool(in_time))
    return known.choice(in_time or known.earliest(), reason)


def considered(request: ImageRequest, view: View, quality: QualityTable) -> Options:
    """All plans, charged as above. Raises NoPlan and QueueFull."""
    return options(stages_with_room(request, view), request, view, quality, worth(request, view))


def worth(request: ImageRequest, view: View) -> Callable[[Table], float]:
    """What a second of a stage is worth to those that come after, see above, by its table."""
    dearest = max(view.price_per_s[status.tier] for status in view.stages.values())
    return lambda known: CROWDING * dearest * (known.idle_s / request.deadline_s) ** 2


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
    if not quality.sizes:
        message += f"; {quality.family!r} has no quality table, so other plans need a floor of 0"
    elif quality.at(request.size) is None:
        message += f"; nothing else is known of {request.width}x{request.height} pixels"
    if request.steps < (fewest := quality.counts(request.size)[0]):
        message += f"; nothing is known of fewer than {fewest} steps"
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
    if not quality.sizes:
        floor += f" ({quality.family!r} has no quality table: only {quality.reference!r} is known)"
    deadline = f"the deadline of {request.deadline_s:g} s"
    if in_time and count == 1:
        return f"the only plan that meets {floor}, and it meets {deadline}"
    if in_time:
        cheapest = f"cheapest of the plans that meet {deadline}, of {count} that meet {floor}"
        return f"{cheapest}, counting what others wait for it"
    fastest = "the only plan" if count == 1 else f"the fastest of {count} plans"
    return f"no plan meets {deadline} and {floor}; this is {fastest} above the floor"
