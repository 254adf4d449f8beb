"""A run in which every request takes a plan that is known: nobody looks at stages or links, and
nothing is forecast, so it takes a small part of what a run with a router takes.

What is acted out is the same. Work is given up at its deadline: what is late earns nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from diffusion_edge.errors import NoPlan
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import cost
from diffusion_edge.routing.board import Board
from diffusion_edge.routing.promises import Kept, Promises
from diffusion_edge.sim.loop import Arrival, Simulation
from diffusion_edge.sim.running import Asked
from diffusion_edge.sim.tally import Tally
from diffusion_edge.sim.world import Group, World
from diffusion_edge.view import Choice, View

Views = Callable[[World, Group, ImageRequest], View]
"""Of stages that have nothing to do."""
Known = dict[object, tuple[Choice, View]]
"""What was worked out of plans in one world."""


class _Unwatched(Board):
    """Nothing is promised to it, and it learns nothing of links."""

    def promised(self, *_: object) -> AbstractContextManager[Kept]:
        return nullcontext(Kept(Promises(), ()))


class Blind(Simulation):
    """known: of other runs in the same world, which have the use of what is added to it."""

    def __init__(self, world: World, known: Known, views: Views) -> None:
        super().__init__(replace(world, measure_links=False))
        stages = tuple(world.stages)
        self.board = _Unwatched(
            stages, {}, world.price_per_s, world.carriage, lambda: self.now, measure_links=False
        )
        self._known, self._views = known, views

    def _decide(self, asked: Asked) -> None:
        request = asked.request
        if request.plan is None:
            raise NoPlan("refused")
        key = asked.group, request.plan, request.deadline_s, request.images, request.size
        if key not in self._known:
            view = self._views(self.world, asked.group, request)
            self._known[key] = _chosen(request.plan, request, view, self.world), view
        self._begin(asked, *self._known[key])


def _chosen(plan: Plan, request: ImageRequest, view: View, world: World) -> Choice:
    known = cost.in_models(plan, view)
    settled = plan.with_codecs(view.codecs).with_guidance(view.guidance)
    return Choice(
        plan=settled,
        predicted_s=0.0,
        cost=cost.of_plan(plan, request, view),
        quality=world.quality.relative(known, request.size),
        reason="known",
        quality_bound=world.quality.bound(known, request.size),
    )


def blind(world: World, arrivals: Iterator[Arrival], known: Known, views: Views) -> Tally:
    return Blind(world, known, views).play(arrivals)
