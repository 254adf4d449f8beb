"""Requests that were begun, and their images on the way through their plans."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from diffusion_edge.plan import Plan, Span
from diffusion_edge.request import Done, HopRecord, ImageRequest, Picture, SpanRecord, Times
from diffusion_edge.routing.cost import span_guided
from diffusion_edge.routing.promises import Kept
from diffusion_edge.sim.stage import Coming, Guest
from diffusion_edge.sim.world import Group
from diffusion_edge.view import Choice, View

PICTURE = Picture(1, 1, b"\0\0\0")


@dataclass(eq=False)
class Asked:
    """A request that has come: its number in the tally, and when. stages: those that were there
    when it began to wait. steps: that were asked for, whatever was chosen."""

    number: int
    request: ImageRequest
    group: Group
    came_s: float
    stages: frozenset[str] = frozenset()
    steps: int = 0


@dataclass(eq=False)
class Running:
    """One that was begun. told: what was decided. times: by the clock. left: images that are not
    done. score: of what the first plan made, where a policy looks at it."""

    asked: Asked
    told: Choice
    view: View
    times: Times
    began_s: float
    promises: AbstractContextManager[Kept]
    kept: Kept
    left: int
    jobs: list[Job] = field(default_factory=list)
    over: bool = False
    score: float | None = None


@dataclass(eq=False)
class Job:
    """An image, its plan, and the span that it is at. came_s: when it came to that span's stage;
    position: the steps that were done when its policy was last asked. wanted: a plan that is to be
    taken at the next step boundary. replans: how many were so taken."""

    running: Running
    image: int
    plan: Plan
    position: int = 0
    at: int = 0
    guest: Guest | None = None
    came_s: float = 0.0
    wanted: Plan | None = None
    replans: int = 0
    spans: list[SpanRecord] = field(default_factory=list)
    hops: list[HopRecord] = field(default_factory=list)

    @property
    def span(self) -> Span:
        return self.plan.spans[self.at]

    @property
    def last(self) -> bool:
        return self.at == len(self.plan.spans) - 1

    def coming(self) -> Coming:
        request, view, span = self.running.asked.request, self.running.view, self.span
        status, guided = view.stages[span.stage], span_guided(span, request, view)
        return Coming(
            request=request.request_id,
            image=self.image,
            steps=span.stop - max(span.start, self.position),
            rows=status.rows(guided),
            cells=view.cells,
            due_s=self.running.times.due,
            encodes=self.position <= span.start,
            decodes=self.last,
            doubled=status.doubles(guided),
        )

    def left_stage(self, now: float) -> None:
        """What the span took, all of it as `queue_s`: nobody asks for its parts."""
        span, took_s = self.span, now - self.came_s
        tier = self.running.view.stages[span.stage].tier
        self.spans.append(
            SpanRecord(span.stage, tier, span.start, span.stop, took_s, 0.0, 0.0, 0.0)
        )

    def done(self) -> Done:
        return Done(PICTURE, tuple(self.spans), tuple(self.hops))
