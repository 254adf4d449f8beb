"""What policies that choose again look at, replayed from a recording (`routing.signals`): picture i
of a run is picture i of the recording, over and over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from diffusion_edge.errors import InvalidRequest
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.rule import Rule, Standing
from diffusion_edge.routing.signals import Recording, Signals
from diffusion_edge.view import View


@dataclass(frozen=True)
class Replay:
    """reference: the model that a score is relative to."""

    signals: Signals
    reference: str

    def standing(
        self, plan: Plan, position: int, request: ImageRequest, image: int, view: View
    ) -> Standing:
        """As if the model that makes the present step had made all before it."""
        stage = next(span.stage for span in plan.spans if span.stop >= position)
        row = self._row(view.stages[stage].model, plan.steps)
        told = row.changes[(request.seed + image) % self.signals.pictures]
        if row.steps != plan.steps:
            scale = (row.steps - 1) / max(plan.steps - 1, 1)
            told = tuple(told[int(k * scale)] for k in range(plan.steps - 1))
        return Standing(plan, position, told[: position - 1])

    def score(self, plan: Plan, request: ImageRequest, view: View) -> float:
        """What the metric gives the worst picture of a request, by its last span's model."""
        row = self._row(view.stages[plan.spans[-1].stage].model, plan.steps)
        pictures = range(request.seed, request.seed + request.images)
        return min(row.scores[k % self.signals.pictures] for k in pictures)

    def relative(self, score: float, steps: int) -> float:
        """As quality is: over the reference's mean."""
        mean = fmean(self._row(self.reference, steps).scores)
        return score / mean if mean else 0.0

    def _row(self, model: str, steps: int) -> Recording:
        row = self.signals.row(model, steps)
        if row is None:
            raise InvalidRequest(f"the recording of {self.signals.family!r} has no model {model!r}")
        return row


def check(rules: Iterable[tuple[str, Rule]], replay: Replay | None) -> None:
    """Raises InvalidRequest where a policy that chooses again has nothing to look at."""
    for name, rule in rules:
        if replay is None and not rule.chooses_once:
            raise InvalidRequest(
                f"policy {name!r} looks at what `diffusion-edge profile --signals` records; the "
                "scenario names no such file (`signals:`)"
            )
