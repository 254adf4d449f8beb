"""The policy `cascade`: a whole picture by the small model, and again by the large one if it is not
good enough.

DiffServe (arXiv 2411.15381) judges every picture of a small model by a discriminator and sends the
prompts of those below a threshold to a large one; a mixed-integer program sets that threshold and
the split of servers, so that as much is made by the large model as demand and deadlines allow.
Changed: which stage runs which model is the deployment's to say, so the threshold is the program's
one unknown that is left and has a closed form (`threshold`); the judge is the family's own metric,
so the best that a discriminator could be; a second picture that would be late is not begun; and
both models take the fewest steps in which the large one alone reaches the floor, where a request
leaves the number open. No latent travels, so there is no codec to choose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import cost, finish
from diffusion_edge.routing.fixed import first_done
from diffusion_edge.routing.pairs import two, whole
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.rule import Finished, Outcome, Rule
from diffusion_edge.routing.steps import fewest
from diffusion_edge.view import Choice, View

WINDOW = 200
"""Pictures and arrivals that are remembered."""
LEAST = 9
"""Arrivals before a demand is told of them."""


@dataclass(frozen=True)
class Seen:
    """What the threshold is made of: the scores of the small model's last pictures, and when the
    last pictures were asked for, in seconds of one clock."""

    scores: tuple[float, ...] = ()
    came_s: tuple[float, ...] = ()

    @property
    def demand(self) -> float:
        """Pictures asked for in a second; 0 before LEAST were."""
        if len(self.came_s) < LEAST:
            return 0.0
        passed_s = max(self.came_s) - min(self.came_s)
        return (len(self.came_s) - 1) / passed_s if passed_s else 0.0


def rule(seen: Seen = Seen()) -> Rule:
    return Rule(
        choose,
        frees_steps=True,
        after=partial(after, seen),
        observe=lambda outcome: rule(observe(seen, outcome)),
    )


def choose(request: ImageRequest, view: View, quality: QualityTable) -> Choice:
    """All steps on a stage of the small model, the one that is done first. Raises NoPlan and
    QueueFull."""
    pair = two(request, view)

    def reaches(steps: int) -> bool:
        (large, *_) = whole(pair.large, request.in_steps(steps))
        return quality.bound(cost.in_models(large, view), request.size) >= request.quality_floor

    asked = request.in_steps(fewest(request, reaches))
    plans, reason = whole(pair.small, asked), "the small model first"
    return first_done(plans, reason, asked, view.of_steps(asked.steps), quality)


def after(seen: Seen, request: ImageRequest, view: View, finished: Finished) -> Plan | None:
    """All steps on the large model, if the score is below the threshold and it would be in time."""
    if finished.score >= threshold(seen, request, view):
        return None
    large = two(request, view).large
    if finished.plan.spans[0].stage in large:
        return None
    plans = whole(large, request.in_steps(finished.plan.steps))
    ends_s = {plan: finish.of_plan(plan, request, view) for plan in plans}
    best = min(plans, key=ends_s.__getitem__)
    if finished.elapsed_s + view.safe_s(ends_s[best]) > request.deadline_s:
        return None
    return replace(best, reason=f"the small model's picture scores {finished.score:.3g}")


def threshold(seen: Seen, request: ImageRequest, view: View) -> float:
    """The highest score that the large model can bear: of the pictures asked for, it makes those
    again that score less, and can make so many in a second. 1 where it bears all."""
    large = two(request, view).large
    share = rate(large, request, view) / seen.demand if seen.demand else 1.0
    scores = sorted(seen.scores)
    kept = int(share * len(scores))
    return scores[kept] if kept < len(scores) else 1.0


def rate(names: tuple[str, ...], request: ImageRequest, view: View) -> float:
    """Pictures that these stages can make in a second, if they have nothing else to do."""
    found = 0.0
    for name in names:
        line = cost.full_s(view.stages[name], cost.guided(name, request, view), 1, view)
        found += 1.0 / (line.start + request.steps * line.step + line.end)
    return found


def observe(seen: Seen, outcome: Outcome) -> Seen:
    """Of a request that was begun; those that are refused are not told of."""
    came_s = (*seen.came_s, *(outcome.came_s,) * outcome.request.images)[-WINDOW:]
    if outcome.score is None:
        return replace(seen, came_s=came_s)
    return Seen((*seen.scores, outcome.score)[-WINDOW:], came_s)
