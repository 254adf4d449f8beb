"""When a request is due, and when its work is given up.

Due times order the work of stages (`batching`). One that can be in time is due at its deadline, or
earlier if it is short: at a few times the seconds that it takes alone, so that a long request with
a far deadline lets short ones pass. One that cannot is due when it is promised, so what can still
be in time goes first; and it is given up by its promise, not by a deadline that is lost already.
"""

from __future__ import annotations

from diffusion_edge.batching import STRETCH
from diffusion_edge.request import ImageRequest, Times
from diffusion_edge.routing.cost import guided
from diffusion_edge.routing.kept import Kept
from diffusion_edge.view import Choice, StageStatus, View

PATIENCE = 2.0
"""Times the seconds that nine in ten stay below; then work is given up, if the deadline is past."""
LATE_PATIENCE = 5.0
"""The same for what is late in any case: others that are late fill its forward passes meanwhile."""


def is_late(request: ImageRequest, choice: Choice, view: View) -> bool:
    """Whether it was decided that the request cannot be in time."""
    return choice.late or misses(choice.counted_s, request, view)


def misses(forecast_s: float, request: ImageRequest, view: View) -> bool:
    """Whether it is not to be counted on that the deadline is met."""
    return forecast_s > view.within_s(request.deadline_s)


def late_s(forecast_s: float, request: ImageRequest, view: View) -> float:
    """By how much; below 0 where it is."""
    return view.safe_s(forecast_s) - request.deadline_s


def times(request: ImageRequest, choice: Choice, view: View) -> Times:
    """In seconds from the decision."""
    patience = LATE_PATIENCE if choice.late else PATIENCE
    give_up_s = max(request.deadline_s, patience * view.safe_s(choice.counted_s))
    return Times(decided_s(request, choice, view), give_up_s)


def decided_s(request: ImageRequest, choice: Choice, view: View) -> float:
    """When it is due, in seconds from the decision. A policy that does not say that it serves
    late has predicted by the due time of what can be in time, so that holds."""
    return choice.predicted_s if choice.late else due_s(request, view)


def due_s(request: ImageRequest, view: View) -> float:
    """Of a request that can be in time, in seconds from the decision."""
    return min(request.deadline_s, STRETCH * alone_s(request, view))


def alone_s(request: ImageRequest, view: View) -> float:
    """What one image takes on the fastest stage if that has nothing else to do, in as many steps as
    it may have."""
    asked = request.most_steps, view.cells
    return min(
        _alone_s(status, guided(name, request, view), *asked)
        for name, status in view.stages.items()
    )


_ALONE_S: Kept[float] = Kept(256)


def _alone_s(status: StageStatus, guided: bool, steps: int, cells: int) -> float:
    asked = guided, steps, cells
    return _ALONE_S.of_alike(status, asked, lambda: _made_alone_s(status, *asked))


def _made_alone_s(status: StageStatus, guided: bool, steps: int, cells: int) -> float:
    encode_s = status.seconds_to_encode(status.rows(guided))
    steps_s = steps * status.seconds_per_step(guided, cells)
    return encode_s + steps_s + status.seconds_to_decode(cells)
