"""Bounds hold for all plans at once, also for the one that looked best."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_edge.plan import Plan
from diffusion_edge.profile import bounds, intervals
from diffusion_edge.profile.bounds import Bounded, bounded
from diffusion_edge.profile.grid import plans
from diffusion_edge.routing.losses import Model, StageCurve
from diffusion_edge.routing.quality import QualityRow

STEPS = 10
PLANS = plans(("small", "large"), STEPS)
TRUTH = Model(
    power=1.5,
    curves=(StageCurve(stage="small", steps=STEPS, loss=(0.0, 0.02, 0.08, 0.16, 0.22)),),
)
BASE = 0.9
"""Of the large stage alone."""


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "DRAWS", 40)


def quality(model: Model, plan: Plan) -> float:
    stages = [span.stage for span in plan.spans]
    return float(model.quality(stages, [span.steps for span in plan.spans])[0])


def drawn(captions: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """Zeros and ones; a prompt that is hard for one plan is often hard for the others."""
    rng = np.random.default_rng(seed)
    hard = rng.random(captions)
    found = {}
    for plan in PLANS:
        own = rng.random(captions)
        luck = np.where(rng.random(captions) < 0.6, hard, own)
        found[str(plan)] = (luck < BASE * quality(TRUTH, plan)).astype(float)
    return found


def rows(scores: dict[str, NDArray[np.float64]]) -> list[QualityRow]:
    reference = scores["large:10"]
    found = []
    for plan in PLANS:
        same = reference[: len(scores[str(plan)])]
        low, high = intervals.of_ratio(list(scores[str(plan)]), list(same))
        middle = (low + high) / 2
        found.append(
            QualityRow(
                stages=tuple(span.stage for span in plan.spans),
                steps=tuple(span.steps for span in plan.spans),
                score=float(scores[str(plan)].mean()),
                interval=(0.0, 1.0),
                relative=middle,
                relative_interval=(low, high),
                n=len(same),
            )
        )
    return found


def found_of(scores: dict[str, NDArray[np.float64]]) -> Bounded:
    return bounded(rows(scores), {k: list(v) for k, v in scores.items()}, "large", STEPS)


def test_bounds_of_all_plans_hold_and_the_luckiest_row_does_not() -> None:
    """In five worlds of 200 prompts, of which one may fail."""
    held, lucky = 0, []
    for seed in range(5):
        scores = drawn(200, seed)
        found = found_of(scores)
        true = {str(plan): quality(TRUTH, plan) for plan in PLANS}
        low = {str(plan): quality(found.low, plan) for plan in PLANS}
        held += all(low[plan] <= true[plan] + 0.003 for plan in true)
        best = max(rows(scores), key=lambda row: row.relative)
        lucky.append(best.relative - true[str(best.plan)])
    assert held >= 4
    assert np.mean(lucky) > 0.01


def test_bounds_lie_below_and_come_nearer_with_more_prompts() -> None:
    few, many = found_of(drawn(100, 1)), found_of(drawn(1600, 1))
    for plan in PLANS:
        if str(plan) != "large:10":
            assert quality(few.low, plan) <= quality(few.model, plan) + 1e-3
    short = [np.mean([quality(f.model, p) - quality(f.low, p) for p in PLANS]) for f in (few, many)]
    assert 0 < short[1] < short[0] / 2
    assert quality(few.low, Plan.parse("large:10")) == 1.0


def test_plans_with_more_prompts_of_their_own_are_more_certain() -> None:
    scores = drawn(1600, 2)
    some = {plan: values if plan in ("large:10", "small:10") else values[:100]
            for plan, values in scores.items()}  # fmt: skip
    few = {plan: values[:100] for plan, values in scores.items()}
    small = Plan.parse("small:10")
    margin = [quality(f.model, small) - quality(f.low, small) for f in map(found_of, (few, some))]
    assert margin[1] < 0.7 * margin[0]


def test_plans_off_the_model_lower_the_bounds() -> None:
    """One order is much worse than its neighbours: what no model has."""
    scores = drawn(1600, 3)
    before = found_of(scores)
    rng = np.random.default_rng(0)
    for steps in (2, 5, 8):
        plan = f"small:{steps},large:{STEPS - steps}"
        scores[plan] = scores[plan] * (rng.random(1600) < 0.93)
    after = found_of(scores)
    assert before.misfit < after.misfit
    assert after.misfit > 0.01


def test_a_reference_alone_loses_nothing() -> None:
    scores = {"large:10": np.ones(50)}
    row = rows(drawn(50, 0))[[str(plan) for plan in PLANS].index("large:10")]
    found = bounded([row], {"large:10": list(scores["large:10"])}, "large", STEPS)
    assert found.model == found.low == Model(power=1.0, curves=())
