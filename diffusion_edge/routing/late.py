"""Requests that cannot be in time: when they could be, and which of them are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from diffusion_edge.errors import CannotBeInTime
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import finish
from diffusion_edge.routing.due import is_late, late_s, misses
from diffusion_edge.routing.forecast import ahead
from diffusion_edge.view import Choice, View

HALVINGS = 7
"""So the moment is right to the 128th part of the time until all is done."""

AGAIN_S = 0.1
"""Between two looks whether one that waits can be begun."""

WAITING = 256
"""That wait at most."""


def soonest_s(view: View, could: Callable[[View], bool]) -> float | None:
    """Seconds until a request could come and be in time, if nothing else came meanwhile; None if it
    could not be even when all is done. could: whether it is if it comes to such a view. It is taken
    to stay so once it is, and found by halving."""

    def later(seconds: float) -> View:
        """Then the reports are older, and stages have done what their rules say by then."""
        return replace(view, age_s={n: view.age_s.get(n, 0.0) + seconds for n in view.stages})

    idle = (max(ahead(s), default=0.0) - view.age_s.get(n, 0.0) for n, s in view.stages.items())
    late_s, enough_s = 0.0, max(0.0, *idle)
    if not could(later(enough_s)):
        return None
    for _ in range(HALVINGS):
        middle_s = (late_s + enough_s) / 2
        late_s, enough_s = (late_s, middle_s) if could(later(middle_s)) else (middle_s, enough_s)
    return view.safe_s(enough_s)


def refuse(request: ImageRequest, choice: Choice, view: View) -> None:
    """Raises CannotBeInTime, whatever policy it was that chose, if the request would rather be
    refused than be late."""
    if request.late == "serve" or not is_late(request, choice, view):
        return

    def in_time(then: View) -> bool:
        return not misses(finish.of_plan(choice.plan, request, then), request, view)

    missed_s = late_s(choice.counted_s, request, view)
    raise CannotBeInTime(
        f"by policy {request.policy!r} the plan {choice.plan} misses the deadline of "
        f"{request.deadline_s:g} s by {missed_s:.2f} s",
        soonest=partial(soonest_s, view, in_time),
    )
