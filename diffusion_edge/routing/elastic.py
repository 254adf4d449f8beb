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
from dataclasses import replace
from functools import partial
from math import inf

from diffusion_edge.errors import CannotBeInTime, InvalidRequest, NoPlan, QueueFull
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.cost import guided
from diffusion_edge.routing.due import late_s
from diffusion_edge.routing.finish import Table, Tables
from diffusion_edge.routing.holding import kind_of
from diffusion_edge.routing.late import soonest_s
from diffusion_edge.routing.options import Options, options
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.room import can_hold, has_room, opens_s, told, too_many
from diffusion_edge.view import Choice, View

CROWDING = 5.0
"""What a second of a stage is worth besides, in seconds of the dearest tier, when it has to do for
as long as the deadline allows (LOG.md: Prices of what others lack)."""

TURN = 2.0
"""Deadlines that a late request waits for at most before it takes a turn among those that can be in
time, if no other one does (LOG.md: The simulator)."""

FEW = 8
"""That wait at most where turns are taken."""

BESIDE = 1
"""Late images that a stage has beside those that it steps together, so that it waits for none."""


def choose(request: ImageRequest, view: View, quality: QualityTable) -> Choice:
    """The lowest price above the floor within the deadline, of the plans that make nobody else late
    who was promised to be in time; or else, as the request asks, the earliest above the floor.

    What is served late is due after all that is known. Ties go to the earlier
    finish (or the lower cost), then to fewer hops, then to the stages that come first by name and
    the earlier hand-off. The runner-up is the best plan over other stages or another order of them;
    the second best as such is nearly always the same plan cut one step aside. Raises NoPlan, saying
    what is missing, QueueFull, CannotBeInTime, or InvalidRequest for more images than the stages
    that are needed can ever hold.
    """
    known = considered(request, view, quality)
    if not (count := known.count()):
        raise below_floor(request, view, quality, known.best_quality())
    if in_time := known.cheapest():
        return known.choice(in_time, _reason(request, quality, count))
    why = _why_late(known)
    if request.late == "refuse":
        raise CannotBeInTime(why, soonest=partial(_retry_after_s, request, view, quality))
    last = served_late(request, view, quality)
    fastest = "the only plan" if count == 1 else f"the fastest of {count} plans"
    reason = f"{why}; this is {fastest} above the floor"
    return replace(last.choice(last.first(), reason), late=True)


def begun(
    request: ImageRequest,
    view: View,
    quality: QualityTable,
    waited_s: float = 0.0,
    waiting: int = 1,
) -> Choice | None:
    """The plan of a request that cannot be in time, if it is to be begun now.

    Until then no stage has it, so it takes nothing from those that can be in time: it is begun on
    stages that have nothing to do for these, and that would step it at once or next. Under load
    there may be none for long, so who has waited for TURN deadlines takes a turn: it is begun on
    any stages if nobody is made late who was promised to be in time, one at a time, and as long as
    few wait: where more comes than can be done, turns would cost those in time and bound no wait.
    waiting: how many there are.
    """
    has_waited = waiting <= FEW and waited_s >= TURN * request.deadline_s
    turn = has_waited and not _serves_late(view)
    names = [n for n in view.stages if (_could_take if turn else _is_free)(n, request, view)]
    if not names:
        return None
    known = options(names, request, view, quality, tables=Tables(request, view, last=not turn))
    found = known.earliest(barred=True)
    if not found:
        return None
    reason = f"it cannot be in time; this is the fastest of {known.count()} plans that can begin"
    return replace(known.choice(found, reason), late=True)


def _serves_late(view: View) -> bool:
    """Whether anything is under way that is not to be in time."""
    return any(image.latest_s == inf for status in view.stages.values() for image in status.held)


def _could_take(name: str, request: ImageRequest, view: View) -> bool:
    return can_hold(view.stages[name], request) and has_room(view.stages[name], request)


def _is_free(name: str, request: ImageRequest, view: View) -> bool:
    status = view.stages[name]
    kind = kind_of(status, view.cells, status.rows(guided(name, request, view)))
    in_time = any(image.latest_s < inf for image in status.held)
    return can_hold(status, request) and not in_time and len(status.held) < kind.places + BESIDE


def _why_late(known: Options) -> str:
    """Which of deadline and floor does not hold, and by how much."""
    asked = known.request
    deadline = f"the deadline of {asked.deadline_s:g} s"
    told = f"no plan meets {deadline} and the quality floor {asked.quality_floor:g}"
    missed_s = late_s(known.earliest_s(), asked, known.view)
    if missed_s <= 0:
        return f"{told} without making requests late that were promised to be in time"
    told += f": above the floor the earliest misses the deadline by {missed_s:.2f} s"
    best = known.best_in_time()
    return told if best is None else f"{told}, within the deadline the best reaches {best:.3g}"


def _retry_after_s(request: ImageRequest, view: View, quality: QualityTable) -> float | None:
    return soonest_s(view, lambda then: bool(considered(request, then, quality).cheapest()))


def considered(request: ImageRequest, view: View, quality: QualityTable) -> Options:
    """All plans, charged as above, with hops as slow as one in ten: a link's bad minutes must not
    cost what was promised. Raises NoPlan and QueueFull."""
    names = stages_with_room(request, view)
    return options(names, request, view, quality, worth(request, view), slowly=True)


def served_late(request: ImageRequest, view: View, quality: QualityTable) -> Options:
    """All plans of a request that cannot be in time: it is due after all that is known, and costs
    what is paid. Raises NoPlan and QueueFull."""
    tables = Tables(request, view, last=True)
    return options(stages_with_room(request, view), request, view, quality, tables=tables)


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
        retry_after_s=min(opens_s(name, request, view) for name in able),
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
        retry_after_s = min(opens_s(name, request, view) for name in full)
        return QueueFull(f"{message}; full: {', '.join(full)}", retry_after_s=retry_after_s)
    if small and not dead:
        return too_many(request.images, small, f"{message}; ")
    return NoPlan(message)


def _reason(request: ImageRequest, quality: QualityTable, count: int) -> str:
    floor = f"the quality floor {request.quality_floor:g}"
    if not quality.sizes:
        floor += f" ({quality.family!r} has no quality table: only {quality.reference!r} is known)"
    deadline = f"the deadline of {request.deadline_s:g} s"
    if count == 1:
        return f"the only plan that meets {floor}, and it meets {deadline}"
    cheapest = f"cheapest of the plans that meet {deadline}, of {count} that meet {floor}"
    return f"{cheapest}, counting what others wait for it"
