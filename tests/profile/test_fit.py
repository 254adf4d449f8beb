"""The fit finds the curves that rows were made of, and says how well it fills gaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_edge.plan import Plan
from diffusion_edge.profile.fit import fit, left_out
from diffusion_edge.profile.grid import plans
from diffusion_edge.routing.losses import Curve, Model, StageCurve
from diffusion_edge.routing.quality import QualityRow

STAGES = ("device", "edge", "cloud")
TRUTH = Model(
    power=1.5,
    curves=(
        StageCurve(stage="edge", steps=20, loss=(0.0, 0.02, 0.05, 0.12, 0.15)),
        StageCurve(stage="device", steps=20, loss=(0.0, 0.03, 0.1, 0.3, 0.35)),
        StageCurve(stage="cloud", steps=20, loss=(0.0, 0.0, 0.0, 0.0, 0.0)),
        StageCurve(stage="cloud", steps=10, loss=(0.0, 0.02, 0.03, 0.03, 0.06)),
        StageCurve(stage="edge", steps=10, loss=(0.0, 0.1, 0.11, 0.11, 0.2)),
        StageCurve(stage="device", steps=10, loss=(0.0, 0.2, 0.3, 0.4, 0.5)),
    ),
    hops=(
        Curve(steps=20, loss=(0.0, 0.0, 0.05, 0.02, 0.0, 0.0)),
        Curve(steps=10, loss=(0.0, 0.1, 0.1, 0.0, 0.0, 0.0)),
    ),
)


@dataclass(frozen=True)
class Rows:
    """Rows of all plans of the grid, as a model says, with noise of some standard error."""

    model: Model
    error: float

    def __call__(self, *steps: int) -> tuple[QualityRow, ...]:
        rng = np.random.default_rng(0)
        found = []
        for plan in (plan for count in steps for plan in plans(STAGES, count)):
            error = 0.0 if str(plan) == "cloud:20" else self.error
            found.append(a_row(plan, quality(self.model, plan) + error * rng.normal(), error))
        return tuple(found)


def a_row(plan: Plan, value: float, error: float) -> QualityRow:
    around = (value - 1.96 * error, value + 1.96 * error)
    return QualityRow(
        stages=tuple(span.stage for span in plan.spans),
        steps=tuple(span.steps for span in plan.spans),
        score=0.5,
        interval=(0.4, 0.6),
        relative=max(0.0, value),
        relative_interval=around,
        n=100,
    )


def quality(model: Model, plan: Plan) -> float:
    stages = [span.stage for span in plan.spans]
    return float(model.quality(stages, [span.steps for span in plan.spans])[0])


def test_it_finds_the_curves_that_rows_were_made_of() -> None:
    rows = Rows(TRUTH, 0.0)(10, 20)
    found = fit(rows, "cloud", 20)
    for row in rows:
        assert quality(found, row.plan) == pytest.approx(row.relative, abs=0.004)
    off = left_out(rows, "cloud", 20)
    assert off
    assert off.rows == len(rows) - 6
    assert off.largest < 0.02
    plan = Plan.parse("edge:9,cloud:3,device:8")
    assert quality(found, plan) == pytest.approx(quality(TRUTH, plan), abs=0.01)


def test_the_reference_is_whole_in_its_default_number_of_steps_alone() -> None:
    found = fit(Rows(TRUTH, 0.0)(10, 20), "cloud", 20)
    assert quality(found, Plan.parse("cloud:20")) == 1.0
    assert quality(found, Plan.parse("cloud:10")) == pytest.approx(1 - 0.06**1.5, abs=0.004)


def test_noise_shows_in_the_error_on_left_out_rows_but_hardly_in_the_model() -> None:
    rows = Rows(TRUTH, 0.03)(20)
    found, off = fit(rows, "cloud", 20), left_out(rows, "cloud", 20)
    misses = [abs(quality(found, row.plan) - quality(TRUTH, row.plan)) for row in rows]
    assert off
    assert 0.018 < off.mean < 0.035  # the mean of |normal| is 0.8 of its deviation
    assert np.mean(misses) < 0.8 * 0.03 / 2


def test_the_error_of_a_row_is_that_of_a_model_which_has_not_seen_it() -> None:
    """One row lies off what all others say, and is certain: a model that has seen it bends."""
    plan = Plan.parse("edge:10,cloud:10")
    rows = [*Rows(TRUTH, 0.0)(20)]
    at = next(i for i, row in enumerate(rows) if str(row.plan) == str(plan))
    rows[at] = a_row(plan, rows[at].relative - 0.2, 0.005)
    others = [*rows[:at], *rows[at + 1 :]]
    unseen, seen = (
        abs(quality(fit(known, "cloud", 20), plan) - rows[at].relative) for known in (others, rows)
    )
    assert seen < unseen - 0.01
    off = left_out(rows, "cloud", 20)
    assert off
    assert off.largest == pytest.approx(unseen, abs=0.003)


def test_certain_rows_count_more() -> None:
    plan = Plan.parse("edge:10,cloud:10")
    rows = [*Rows(TRUTH, 0.0)(20)]
    at = next(i for i, row in enumerate(rows) if str(row.plan) == str(plan))
    off = []
    for error in (0.005, 0.3):
        wrong = [*rows[:at], a_row(plan, rows[at].relative - 0.2, error), *rows[at + 1 :]]
        off.append(abs(quality(fit(wrong, "cloud", 20), plan) - rows[at].relative))
    assert off[0] > 4 * off[1]


@settings(deadline=None, max_examples=15)
@given(
    qualities=st.lists(st.floats(0, 1.3), min_size=24, max_size=24),
    alone=st.tuples(st.floats(0.1, 1.1), st.floats(0.1, 1.1)),
)
def test_whatever_was_measured_the_model_keeps_its_shape(
    qualities: list[float], alone: tuple[float, float]
) -> None:
    """Curves rise, that of the stage that is worse alone is the steeper one; see the table's own
    properties for what follows from it."""
    some = [plan for plan in plans(STAGES, 10) if len(plan.spans) > 1][:24]
    rows = [a_row(plan, value, 0.05) for plan, value in zip(some, qualities, strict=True)]
    rows += [
        a_row(Plan.of(((name, 10),)), value, 0.0 if name == "cloud" else 0.05)
        for name, value in zip(STAGES, (*alone, 1.0), strict=True)
    ]
    found = fit(rows, "cloud", 10)
    curves = {curve.stage: np.diff(curve.loss) for curve in found.curves}
    worse, better = ("device", "edge") if alone[0] < alone[1] else ("edge", "device")
    assert not curves["cloud"].any()
    assert (curves[better] >= -1e-6).all()
    assert (curves[worse] >= curves[better] - 2e-6).all()
    assert min(min(curve.loss) for curve in found.hops) >= 0
    assert 0.25 <= found.power <= 4


def test_a_reference_alone_needs_no_model() -> None:
    found = fit([a_row(Plan.parse("cloud:10"), 1.0, 0.0)], "cloud", 10)
    assert found == Model(power=1.0, curves=())


def test_nothing_is_left_out_of_stages_alone() -> None:
    rows = [a_row(Plan.parse("cloud:10"), 1.0, 0.0), a_row(Plan.parse("edge:10"), 0.8, 0.01)]
    assert left_out(rows, "cloud", 10) is None
    found = fit(rows, "cloud", 10)
    assert quality(found, Plan.parse("edge:10")) == pytest.approx(0.8, abs=0.01)
