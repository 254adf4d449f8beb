"""All plans are drawn coarsely, then those that decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffusion_edge.families.card import load_card
from diffusion_edge.plan import Plan
from diffusion_edge.profile import bounds, measure, picks, wanted
from diffusion_edge.profile.measure import Part, Task, with_plans
from diffusion_edge.profile.metric import load_metric
from diffusion_edge.profile.wanted import Where, nearest, reach

from .test_bounds import PLANS, drawn, rows

PROMPTS = tuple(f"a red circle {i}" for i in range(208))
ALONE = {"device": 0.85, "edge": 0.96, "cloud": 1.0}


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "DRAWS", 8)
    monkeypatch.setattr(picks, "DEADLINES", 2)
    for module in (measure, wanted):
        monkeypatch.setattr(module, "BATCH", 64)


@pytest.fixture
def task(tiny_family: Path) -> Task:
    card = load_card(tiny_family)
    metric = load_metric("distance")
    return with_plans(Task(card, "ab" * 16, metric, PROMPTS, "here", (), 0), [])


def followed(task: Task, where: Where) -> tuple[list[Part], dict[str, list[float]]]:
    """All parts, each scored as they come; by how much of it a stage does."""
    rng = np.random.default_rng(0)
    hard = rng.random(len(PROMPTS))
    scores: dict[str, list[float]] = {str(plan): [] for plan in task.plans}
    parts = []
    while (part := where.following(task, scores)) is not None:
        parts.append(part)
        for plan in part.plans:
            value = sum(ALONE[span.stage] * span.steps for span in plan.spans) / plan.steps
            if len(scores[str(plan)]) == part.start:
                scores[str(plan)] += (
                    (hard[part.start : part.stop] < 0.9 * value).astype(float).tolist()
                )
    return parts, scores


def test_all_draw_the_coarse_prompts_and_decisive_ones_more(task: Task) -> None:
    parts, scores = followed(task, Where(coarse=80, pictures=20_000))
    assert [(part.start, part.stop) for part in parts[:2]] == [(0, 64), (64, 80)]
    assert all(set(part.plans) == set(task.plans) for part in parts[:2])
    counts = {plan: len(values) for plan, values in scores.items()}
    more = {plan for plan, count in counts.items() if count > 80}
    assert min(counts.values()) == 80
    assert 1 < len(more) < len(counts) / 2
    assert counts[str(task.reference)] == max(counts.values())
    assert all(part.plans[0] == task.reference for part in parts)


def test_it_stops_when_the_pictures_are_spent(task: Task) -> None:
    coarse = 80 * len(task.plans)
    parts, scores = followed(task, Where(coarse=80, pictures=coarse + 50))
    assert len(parts) == 3
    assert coarse + 50 <= sum(map(len, scores.values())) < coarse + 50 + 64 * len(task.plans)
    assert len(followed(task, Where(coarse=80, pictures=1))[0]) == 2


def test_what_is_narrow_is_enough(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wanted, "NARROW", 0.5)
    assert len(followed(task, Where(coarse=80, pictures=20_000))[0]) == 2


def test_the_nearest_row_has_the_same_stages_in_the_same_order() -> None:
    found = rows(drawn(50, 0))
    assert len(found) == len(PLANS)
    for plan, near in (
        ("small:6,large:4", ("small:5,large:5", "small:7,large:3")),
        ("large:9,small:1", ("large:9,small:1",)),
        ("small:10", ("small:10",)),
    ):
        assert str(nearest(Plan.parse(plan), found).plan) in near
    assert reach(found[0]) == found[0].relative_interval[1] - found[0].relative
