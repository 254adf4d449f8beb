"""Promises against fresh prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_edge.errors import InvalidRequest
from diffusion_edge.families.card import load_card
from diffusion_edge.plan import Plan
from diffusion_edge.profile.measure import Task, of_size, reference_of
from diffusion_edge.profile.metric import load_metric
from diffusion_edge.profile.picks import Pick
from diffusion_edge.profile.verify import check_fresh, lines, of_picks, verdicts

from ..routing.views import symmetric

PICKS = [
    Pick(0.9, Plan.parse("device:4,cloud:6"), 0.95, 0.91),
    Pick(0.95, Plan.parse("edge:4,cloud:6"), 0.97, 0.96),
    Pick(0.95, Plan.parse("cloud:10"), 1.0, 1.0),
]


@pytest.fixture
def task(tiny_family: Path) -> Task:
    card = of_size(load_card(tiny_family), 64)
    prompts = [f"p {i}" for i in range(100)]
    metric = load_metric("distance")
    return Task(card, "", metric, prompts, "here", (reference_of(card),), 500)


def test_a_floor_is_broken_by_more_than_a_point_and_not_by_less(task: Task) -> None:
    whole = of_picks(task, PICKS)
    assert [str(plan) for plan in whole.plans] == ["cloud:10", "device:4,cloud:6", "edge:4,cloud:6"]
    scores = {
        "cloud:10": [1.0, 0.6] * 50,
        "device:4,cloud:6": [0.89, 0.54] * 50,
        "edge:4,cloud:6": [0.93, 0.57] * 50,
    }
    found = verdicts(whole, PICKS, scores)
    assert [each.quality for each in found] == pytest.approx([1.43 / 1.6, 1.5 / 1.6, 1.0])
    assert [each.broken for each in found] == [False, True, False]  # 0.894, 0.9375, 1.0
    for each in found:
        assert each.interval[0] <= each.quality <= each.interval[1]
        assert each.n == 100
    told = lines(found)
    assert len(told) == 2 + 3
    assert ["**broken**" in line for line in told[2:]] == [False, True, False]
    assert "| 0.9 | `device:4,cloud:6` | 95.0 % | 91.0 % | 89.4 %" in told[2]


@pytest.mark.parametrize(("seed", "fresh"), [(64, True), (63, False), (0, False), (1000, True)])
def test_a_seed_that_the_table_used_is_refused(task: Task, seed: int, fresh: bool) -> None:
    """The table has 64 prompts from seed 0 on, the task 100."""
    (known,) = symmetric().sizes
    asked = Task(task.card, "", task.metric, task.prompts, "here", task.plans, seed)
    if fresh:
        check_fresh(asked, known)
        return
    with pytest.raises(InvalidRequest, match="not fresh"):
        check_fresh(asked, known)
