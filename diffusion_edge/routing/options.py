"""All plans that a request could take over some stages, and the best of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from diffusion_edge.plan import Tier
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import cost, finish
from diffusion_edge.routing.best import Asked, Found
from diffusion_edge.routing.cost import Line
from diffusion_edge.routing.finish import Table, Tables
from diffusion_edge.routing.harm import allows
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.search import search
from diffusion_edge.routing.shapes import Shapes, above, shapes
from diffusion_edge.routing.stations import Stations, stations
from diffusion_edge.view import Choice, View


@dataclass(frozen=True)
class Options:
    """known: the stages. charged: what they charge; paid: what of it is cost. good: what reaches
    the floor, by shape. slowly: whether the finish of a plan is found with slow hops."""

    request: ImageRequest
    view: View
    quality: QualityTable
    known: Stations
    charged: Mapping[str, Line]
    paid: Mapping[str, Line]
    good: Shapes
    tables: Tables
    slowly: bool

    @property
    def within_s(self) -> float:
        """The longest forecast that is in time."""
        return self.view.within_s(self.request.deadline_s)

    def count(self) -> int:
        """How many plans reach the floor."""
        return self.good.count(self.known.paths())

    def best_quality(self) -> float:
        """The highest bound of all plans; 0 where there are none."""
        return self.every().best(self.known.paths())

    def every(self) -> Shapes:
        """Whether they reach the floor or not."""
        asked = self.request.steps, self.quality, self.request.size
        return shapes(self.known.layout.groups, *asked)

    def cheapest(self, barred: bool = True) -> list[Found]:
        """In time, by what is charged. barred: with nobody else made late (`harm`)."""
        in_time = Asked("price", finish_s=self.within_s, barred=barred)
        return search(self.good, self.known, in_time)

    def earliest(self, barred: bool = False) -> list[Found]:
        """By what is paid where the finish is the same."""
        return search(self.good, self.known.charging(self.paid), Asked("finish", barred=barred))

    def earliest_s(self) -> float:
        """When the earliest is done."""
        (first,) = search(self.good, self.known, Asked("finish", second=False))
        return first.finish_s

    def first(self) -> list[Found]:
        """The earliest that makes nobody else late, or else the earliest."""
        return self.earliest(barred=True) or self.earliest()

    def best_in_time(self) -> float | None:
        """The highest bound of the plans in time that make nobody else late; None without any."""
        in_time = Asked("bound", finish_s=self.within_s, barred=True, second=False)
        found = search(self.every(), self.known, in_time)
        return found[0].bound if found else None

    def charged_for(self, found: Found) -> float:
        return sum(amount for _, amount in found.of(self.charged))

    def paid_by_tier(self, found: Found) -> dict[Tier, float]:
        paid: dict[Tier, float] = {}
        for name, amount in found.of(self.paid):
            tier = self.view.stages[name].tier
            paid[tier] = paid.get(tier, 0.0) + amount
        return paid

    def choice(self, found: Sequence[Found], reason: str) -> Choice:
        """The first one is chosen, the other one, if there is one, is the runner-up."""
        best, *others = found
        plan = best.plan(self.view, reason)
        return Choice(
            plan=plan,
            predicted_s=self.usual_s(best),
            slow_s=best.finish_s if self.slowly else None,
            cost=cost.of_plan(plan, self.request, self.view),
            quality=best.quality,
            reason=reason,
            runner_up=others[0].plan(self.view) if others else None,
            runner_up_s=self.usual_s(others[0]) if others else None,
            quality_bound=best.bound,
            price=best.price,
        )

    def usual_s(self, found: Found) -> float:
        """What is forecast of a plan, with hops as they are expected."""
        if not self.slowly:
            return found.finish_s
        return finish.of_plan(found.plan(self.view), self.request, self.view, self.tables)


def options(
    names: Sequence[str],
    request: ImageRequest,
    view: View,
    quality: QualityTable,
    worth: Callable[[Table], float] = lambda _: 0.0,
    tables: Tables | None = None,
    slowly: bool = False,
) -> Options:
    """Of one to three spans over these stages. There may be none, or none above the floor.

    worth: what a second of a stage is charged with besides what it costs, by its table. tables: of
    the request as one that can be in time, unless given. slowly: with hops as slow as one in ten.
    """
    tables, paid, charged = tables or Tables(request, view), {}, {}
    of_all, of_one = {}, {}
    guide = {name: cost.guided(name, request, view) for name in names}
    for name, guided in guide.items():
        of_all[name] = tables.of(name, guided, request.images)
        if request.images > 1:
            of_one[name] = tables.of(name, guided, 1)
        asked = view.stages[name], guided, request.images, view
        paid[name], charged[name] = cost.charged(*asked, worth(of_all[name]))
    may = partial(allows, guide=guide, images=request.images, tables=tables, view=view)
    seen = view.slowed() if slowly else view
    known = stations(seen, request.steps, charged, of_all, of_one, may)
    floor = request.size, request.quality_floor
    good = above(known.layout.groups, request.steps, quality, *floor)
    return Options(request, view, quality, known, charged, paid, good, tables, seen is not view)
