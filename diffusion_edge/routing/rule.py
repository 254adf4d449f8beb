"""What a policy is made of: `choose`, and what it needs beyond that.

All of it is pure: what may be known is in the arguments. What a policy learns is a value of its
own, which it takes and returns: `observe` gives the rule that has learned (`linucb` shows how).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from diffusion_edge.plan import Plan, Span
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.options import Options
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.steps import Policy
from diffusion_edge.routing.why import Why, why
from diffusion_edge.view import Choice, View


@dataclass(frozen=True)
class Standing:
    """Where one image stands at a step boundary: `position` steps of `plan`, whole, are done.

    changes[k]: by how much the model's output of step k + 1 differs from that of step k, mean of
    absolute values over mean of absolute values; so there are position - 1 of them, or none where
    nobody looks. elapsed_s: since the request came.
    """

    plan: Plan
    position: int
    changes: tuple[float, ...] = ()
    image: int = 0
    elapsed_s: float = 0.0

    @property
    def left(self) -> tuple[Span, ...]:
        """Spans that have steps to take, whole, the one that the image is at first."""
        return tuple(span for span in self.plan.spans if span.stop > self.position)


@dataclass(frozen=True)
class Finished:
    """The pictures of a request are made by `plan`. score: what the family's metric gives the worst
    of them, in [0, 1]. elapsed_s: since the decision."""

    plan: Plan
    score: float
    elapsed_s: float


@dataclass(frozen=True)
class Outcome:
    """What became of a request. view: what was known when the choice was made. came_s: when it came
    on any one clock. seconds: until its last image, inf where there is none. score: as in
    `Finished`, of what the choice's own plan made, where something judged it. reward: `reward`'s.
    """

    request: ImageRequest
    view: View
    choice: Choice
    came_s: float
    seconds: float
    reward: float
    score: float | None = None


Considered = Callable[[ImageRequest, View, QualityTable], Options]
Revise = Callable[[ImageRequest, View, Standing], Plan | None]
After = Callable[[ImageRequest, View, Finished], Plan | None]


@dataclass(frozen=True)
class Rule:
    """A policy. The optional functions return None where all stays as it is.

    choose: the plan, when the request comes. considered: all plans that it chose from, of those
    that compare them; served_late: those that it chose from where none of them is in time, if these
    are others, and the least price counts where one is. frees_steps: whether it chooses the number
    of steps where the request leaves that out. revise: at a step boundary, the whole plan anew; the
    steps that are done stay as they are. after: when the pictures are made, a plan for making them
    again from step 0. observe: after a request, the rule that has learned from it.
    """

    choose: Policy
    considered: Considered | None = None
    served_late: Considered | None = None
    frees_steps: bool = False
    revise: Revise | None = None
    after: After | None = None
    observe: Callable[[Outcome], Rule] | None = None

    def why(self, request: ImageRequest, view: View, quality: QualityTable) -> Why | None:
        """Why it chose what it did; None where it compares no plans, and where none reaches the
        floor. Raises NoPlan and QueueFull."""
        if self.considered is None:
            return None
        known, late = self.considered(request, view, quality), self.served_late
        return why(known, None if late is None else lambda: late(request, view, quality))

    @property
    def may_replan(self) -> bool:
        """Whether its choice may be made again in flight as `replan` does: it compares all plans,
        and has no way of its own."""
        return self.considered is not None and self.chooses_once

    @property
    def chooses_once(self) -> bool:
        """Whether all is decided when the request comes."""
        return self.revise is None and self.after is None
