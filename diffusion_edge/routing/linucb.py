"""The policy `linucb`: a contextual bandit over coarse plans.

It stands in for RISE (arXiv 2606.17378), which picks one of a few relay configurations by the
prompt's complexity, the user's preference, the network's quality and the nodes' load, and has no
public code. The bandit is disjoint LinUCB (Li et al., arXiv 1003.0146): for every arm a ridge
regression of the reward on the context, and the arm is taken whose upper confidence bound is the
highest:

    theta . x + ALPHA sqrt(x . A^-1 x),    A = I + sum of x x^T,    theta = A^-1 sum of reward x

Changed against RISE: small first and three tiers are arms, too; the reward is that of `reward`; the
number of steps, where a request leaves it open, is the fewest in which an arm reaches the floor by
the quality table, and arms that do not are left out if any does: it knows what the others know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray

from diffusion_edge.plan import TIERS, Plan, Tier
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import cost
from diffusion_edge.routing.due import alone_s
from diffusion_edge.routing.elastic import stages_with_room
from diffusion_edge.routing.fixed import first_done
from diffusion_edge.routing.kept import Kept
from diffusion_edge.routing.pairs import handoff, linked
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.rule import Outcome, Rule
from diffusion_edge.routing.steps import fewest
from diffusion_edge.view import Choice, View

Vector = NDArray[np.float64]
Arm = tuple[tuple[Tier, ...], float]
"""Tiers in order, and the share of the steps on the first of them."""

ALPHA = 0.5
SHARES = (0.25, 0.5, 0.75)
ARMS: tuple[Arm, ...] = (
    *(((tier,), 1.0) for tier in TIERS),
    *((order, share) for order in permutations(TIERS, 2) for share in SHARES),
)
WORDS = 20
"""A prompt of so many words is as complex as one can be."""
FEATURES = 5 + len(TIERS)


@dataclass(frozen=True)
class Known:
    """What one arm has taught. inverse: of A, (FEATURES, FEATURES); total: of reward times context,
    (FEATURES,)."""

    inverse: Vector = field(default_factory=lambda: np.eye(FEATURES))
    total: Vector = field(default_factory=lambda: np.zeros(FEATURES))

    def bound(self, x: Vector) -> float:
        """The upper confidence bound of the reward."""
        spread = sqrt(float(x @ self.inverse @ x))
        return float(self.inverse @ self.total @ x) + ALPHA * spread

    def with_one(self, x: Vector, reward: float) -> Known:
        """By Sherman and Morrison's formula."""
        turned = self.inverse @ x
        inverse = self.inverse - np.outer(turned, turned) / (1.0 + float(x @ turned))
        return Known(inverse, self.total + reward * x)


FRESH = Known()
Learned = Mapping[Arm, Known]
"""Arms that were never taken are not in it."""


def rule(learned: Learned | None = None) -> Rule:
    known = learned or {}
    return Rule(
        partial(choose, known),
        frees_steps=True,
        observe=lambda outcome: rule(observe(known, outcome)),
    )


def choose(learned: Learned, request: ImageRequest, view: View, quality: QualityTable) -> Choice:
    """Of the arm's tiers the stages that are done first. Ties go to the first of ARMS. Raises
    NoPlan and QueueFull."""
    names = sorted(stages_with_room(request, view))
    ways = {arm: found for arm in ARMS if (found := _ways(arm, names, view))}
    asked = {arm: _fewest(arm, found[0], request, view, quality) for arm, found in ways.items()}
    good = [arm for arm in ways if _reaches(arm, ways[arm][0], asked[arm], view, quality)]
    x = context(request, view)
    bounds = {arm: learned.get(arm, FRESH).bound(x) for arm in good or ways}
    arm = max(bounds, key=bounds.__getitem__)
    counts, seen = _counts(arm, asked[arm].steps), view.of_steps(asked[arm].steps)
    plans = [Plan.of(tuple(zip(way, counts, strict=True))) for way in ways[arm]]
    reason = f"{' then '.join(arm[0])}, which may earn {bounds[arm]:.2f}"
    return first_done(plans, reason, asked[arm], seen, quality)


def _ways(arm: Arm, names: Sequence[str], view: View) -> Sequence[tuple[str, ...]]:
    """Stages in order; there may be none."""
    tiers, _ = arm
    stages = [[name for name in names if view.stages[name].tier == tier] for tier in tiers]
    if len(tiers) == 1:
        return [(name,) for name in stages[0]]
    return linked(stages[0], stages[1], view)


def _counts(arm: Arm, steps: int) -> tuple[int, ...]:
    tiers, share = arm
    if len(tiers) == 1:
        return (steps,)
    at = handoff(share, steps)
    return at, steps - at


def _fewest(
    arm: Arm, way: Sequence[str], request: ImageRequest, view: View, quality: QualityTable
) -> ImageRequest:
    """In the number of steps that the arm takes."""

    def reaches(steps: int) -> bool:
        return _reaches(arm, way, request.in_steps(steps), view, quality)

    return request.in_steps(fewest(request, reaches))


_BOUNDS: Kept[float] = Kept(1024)


def _reaches(
    arm: Arm, way: Sequence[str], request: ImageRequest, view: View, quality: QualityTable
) -> bool:
    """Whether the arm reaches the floor on these stages; nothing is cut that has one step only."""
    counts = _counts(arm, request.steps)
    asked = cost.models(way, view), counts, request.size

    def bound() -> float:
        return quality.bound(Plan.of(tuple(zip(*asked[:2], strict=True))), request.size)

    return min(counts) > 0 and _BOUNDS.of(quality, asked, bound) >= request.quality_floor


def context(request: ImageRequest, view: View) -> Vector:
    """(FEATURES,), each from 0 to 1: a constant; the prompt's words; the floor; what one image
    takes at least, what a packet takes between two tiers, and what the least busy stage of every
    tier has to do, over the deadline each."""
    nbytes = view.packet_bytes[len(view.packet_bytes) // 2]
    wires_s = [link.transfer_s(nbytes) for link in view.links.values()]
    seconds = [alone_s(request, view), min(wires_s, default=0.0)]
    seconds += [_waits_s(tier, view) for tier in TIERS]
    shares = [min(s / request.deadline_s, 1.0) for s in seconds]
    words = min(len(request.prompt.split()) / WORDS, 1.0)
    return np.array([1.0, words, request.quality_floor, *shares])


def _waits_s(tier: Tier, view: View) -> float:
    """inf where there is no stage."""
    return min((s.queue_s for s in view.stages.values() if s.tier == tier), default=inf)


def observe(learned: Learned, outcome: Outcome) -> Learned:
    arm = arm_of(outcome.choice.plan, outcome.view)
    known = learned.get(arm, FRESH)
    x = context(outcome.request, outcome.view)
    return {**learned, arm: known.with_one(x, outcome.reward)}


def arm_of(plan: Plan, view: View) -> Arm:
    """The arm that the plan is of; of arms that come to the same plan, the nearest."""
    tiers = tuple(view.stages[span.stage].tier for span in plan.spans)
    if len(tiers) == 1:
        return tiers, 1.0
    share = plan.spans[0].steps / plan.steps
    return tiers, min(SHARES, key=lambda known: abs(known - share))
