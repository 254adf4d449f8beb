"""The number of steps as a choice: the best plan of all numbers that a request may have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from diffusion_edge.errors import CannotBeInTime, InvalidRequest, NoPlan, QueueFull
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.due import is_late
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.view import Choice, View


class Policy(Protocol):
    def __call__(self, request: ImageRequest, view: View, quality: QualityTable) -> Choice: ...


Order = Callable[[ImageRequest, Choice, View], tuple[float, ...]]
"""By what a policy's choices for different numbers of steps are ordered, the best first."""


def by_price(request: ImageRequest, choice: Choice, view: View) -> tuple[float, ...]:
    """As `elastic` does: in time and of least price, or else done first."""
    if is_late(request, choice, view):
        return 1.0, choice.predicted_s, choice.cost
    return 0.0, choice.price, choice.predicted_s


def by_finish(_: ImageRequest, choice: Choice, __: View) -> tuple[float, ...]:
    """As `earliest` does."""
    return choice.predicted_s, choice.cost


def by_floor(request: ImageRequest, choice: Choice, view: View) -> tuple[float, ...]:
    """For policies that the floor does not bind: above it, in time and cheap, or else done first.
    Below the floor what comes nearest to it."""
    below = max(request.quality_floor - choice.quality_bound, 0.0)
    if is_late(request, choice, view):
        return below, 1.0, choice.predicted_s, choice.cost
    return below, 0.0, choice.cost, choice.predicted_s


def fewest(request: ImageRequest, reaches: Callable[[int], bool]) -> int:
    """The fewest steps that the request may have in which something is reached; its most, if it is
    in none."""
    counts = sorted({request.steps, *request.free_steps})
    return next(filter(reaches, counts), counts[-1])


def free(policy: Policy, order: Order) -> Policy:
    """The policy where it may choose the number of steps; of equal choices the request's own number
    of steps is taken, then the first. Raises what the policy raises for the request as it is, if no
    number has a plan."""

    def choose(request: ImageRequest, view: View, quality: QualityTable) -> Choice:
        others = [steps for steps in request.free_steps if steps != request.steps]
        if not others:
            return policy(request, view, quality)
        found, refused = [], []
        for steps in (request.steps, *others):
            try:
                choice = policy(request.in_steps(steps), view.of_steps(steps), quality)
            except (NoPlan, QueueFull, CannotBeInTime, InvalidRequest) as error:
                refused.append(error)
            else:
                found.append(choice)
        if not found:
            raise refused[0]
        best = min(found, key=lambda choice: order(request, choice, view))
        numbers = ", ".join(map(str, sorted(request.free_steps)))
        reason = f"{best.reason}; best in {best.plan.steps} of {numbers} steps"
        plan = Plan(best.plan.spans, best.plan.codecs, reason)
        return replace(best, plan=plan, reason=reason)

    return choose
