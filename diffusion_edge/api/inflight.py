"""A request on its way: where its images are, and whether one is to go by another plan.

Events say which stage has an image, and when a packet has left and come (`routing.links.underway`).
Now and then the rule of `routing.replan` is asked, by the view of that moment. The stage that holds
the image is told, in the shape of a packet before step 0 with the whole plan anew; it takes what is
left of it at its next step boundary, or says that it is too late (`Worker.replan`). From then on
promises and what is told ahead follow the new plan.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from diffusion_edge.config import Replan
from diffusion_edge.plan import Plan
from diffusion_edge.request import Accepted, Done, Event, ImageRequest, Progress
from diffusion_edge.routing.links.taken import Links
from diffusion_edge.routing.promises import Kept
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.replan import again, standing
from diffusion_edge.view import View


@dataclass(frozen=True)
class Replanned:
    """An image went another way: chosen when `at` of its steps were done, by the last report of
    their stage. plans: whole ones; that of `after` says why."""

    image: int
    at: int
    before: Plan
    after: Plan


@dataclass
class Image:
    """plan: that it goes by. span: the number of the one that it is at, or was at last; here:
    whether its stage has it. wanted: another plan that its stage is told of."""

    plan: Plan
    span: int = -1
    here: bool = False
    wanted: Replanned | None = None
    replans: int = 0


@dataclass
class InFlight:
    """One request. view: what was decided from last. came: on the monotonic clock."""

    request: ImageRequest
    view: View
    kept: Kept
    links: Links
    came: float
    images: list[Image]
    replans: list[Replanned] = field(default_factory=list)

    def saw(self, number: int, event: Event) -> None:
        """Of an image, in order."""
        image = self.images[number]
        if isinstance(event, Accepted):
            image.span, image.here = image.span + 1, True
            self.links.came((id(self), number))
        elif isinstance(event, Progress):
            if image.wanted and image.wanted.after.spans[image.span].stop == event.position:
                self.takes(number)  # the stage has done so before it could say so
            self._leaves(number, image)
        elif isinstance(event, Done):
            image.here = False
        self.kept.saw(number, event)

    def _leaves(self, number: int, image: Image) -> None:
        """For the next stage of its plan."""
        image.here = False
        span, *later = image.plan.spans[image.span :]
        if later and later[0].stage != span.stage:
            nbytes = self.view.packet_bytes[span.stop]
            self.links.left((id(self), number), (span.stage, later[0].stage), nbytes)

    def takes(self, number: int) -> None:
        """Its stage has taken the plan that it was told."""
        image, wanted = self.images[number], self.images[number].wanted
        if wanted is None:
            return
        image.plan, image.wanted = wanted.after, None
        image.replans += 1
        self.replans.append(wanted)
        self.kept.revised(number, image.plan, image.span, self.request, self.view)

    def over(self) -> None:
        """Whatever is under way comes no more."""
        for number in range(len(self.images)):
            self.links.came((id(self), number))


Tell = Callable[[int, Plan, int, Plan], Awaitable[bool | None]]
"""(image, plan, span that it is at, plan before) -> whether its stage has taken the plan; None
where that is not known."""


async def keep_looking(
    flight: InFlight,
    replan: Replan,
    quality: QualityTable,
    view: Callable[[ImageRequest], View],
    tell: Tell,
) -> None:
    """Until it is cancelled."""
    while True:
        await asyncio.sleep(replan.look_s)
        flight.view = view(flight.request)
        for number, image in enumerate(flight.images):
            if image.here and image.wanted is None and image.replans < replan.most:
                await _look(flight, number, quality, tell)


async def _look(flight: InFlight, number: int, quality: QualityTable, tell: Tell) -> None:
    image, request, view = flight.images[number], flight.request, flight.view
    elapsed_s = time.monotonic() - flight.came
    found = standing(request, view, image.plan, image.span, number, elapsed_s)
    if found is None or (plan := again(request, view, quality, found)) is None:
        return
    image.wanted = Replanned(number, found.position, image.plan, plan)
    taken = await tell(number, plan, image.span, image.plan)
    if taken:
        flight.takes(number)
    elif taken is not None:
        image.wanted = None
