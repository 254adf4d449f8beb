"""The policy `earliest`: of the plans above the quality floor the one that is done first.

It looks at nobody but its own request, and at no price: what a router that weighs them has to beat.
"""

from __future__ import annotations

from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.due import misses
from diffusion_edge.routing.elastic import below_floor, stages_with_room
from diffusion_edge.routing.options import Options, options
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.view import Choice, View


def choose(request: ImageRequest, view: View, quality: QualityTable) -> Choice:
    """Ties go to the lower cost, then to fewer hops, then to the stages that come first by name and
    the earlier hand-off. The runner-up is the best plan over other stages or another order of them.
    Raises NoPlan, QueueFull and InvalidRequest, as `elastic` does.
    """
    known = considered(request, view, quality)
    if not (count := known.count()):
        raise below_floor(request, view, quality, known.best_quality())
    found = known.earliest()
    reason = f"done first of {count} plans above the floor {request.quality_floor:g}"
    if misses(found[0].finish_s, request, view):
        reason += f"; predicted to miss the deadline of {request.deadline_s:g} s"
    return known.choice(found, reason)


def considered(request: ImageRequest, view: View, quality: QualityTable) -> Options:
    """All plans, for what they cost. Raises NoPlan and QueueFull."""
    return options(stages_with_room(request, view), request, view, quality)
