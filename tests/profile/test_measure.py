"""What is measured is the same however it is cut into batches: prompt i has seed + i."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from diffusion_edge.families.base import Family
from diffusion_edge.families.card import load_card
from diffusion_edge.plan import Plan
from diffusion_edge.profile import batch, measure
from diffusion_edge.profile.measure import Part, Scores, Task, with_plans
from diffusion_edge.profile.metric import load_metric
from diffusion_edge.request import ImageRequest, Picture

PROMPTS = ("a red circle", "a red square", "a blue circle", "a blue square", "a red")


def a_task(folder: Path, seed: int) -> Task:
    """Of all plans of 2 steps, which are the default."""
    card = load_card(folder)
    card = card.model_copy(update={"defaults": card.defaults.model_copy(update={"steps": 2})})
    task = Task(card, "ab" * 16, load_metric("distance"), PROMPTS, "here", (), seed)
    return with_plans(task, [])


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("size", [1, 2, 32])
def test_every_prompt_has_a_seed_of_its_own_whatever_its_batch(
    seed: int, size: int, tiny_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, int]] = []

    def pictures(
        stages: Mapping[str, Family], requests: Sequence[ImageRequest], plans: Sequence[Plan]
    ) -> Iterator[tuple[Plan, list[Picture]]]:
        drawn.extend((request.prompt, request.seed) for request in requests)
        assert str(plans[0]) == "cloud:2"  # what pictures are compared with comes first
        for plan in plans:
            yield plan, [Picture(1, 1, bytes([request.seed] * 3)) for request in requests]

    monkeypatch.setattr(measure, "BATCH", size)
    monkeypatch.setattr(batch, "pictures", pictures)
    monkeypatch.setattr(batch, "load_stages", lambda card, names, _: dict.fromkeys(names, None))
    told: list[int] = []
    task = a_task(tiny_family, seed)
    scores = measure.measure(task, tmp_path / "kept.jsonl", told.append)
    assert drawn == [(prompt, seed + i) for i, prompt in enumerate(PROMPTS)]
    assert sum(told) == len(PROMPTS) * len(task.plans)
    assert {plan: len(values) for plan, values in scores.items()} == {
        str(plan): len(PROMPTS) for plan in task.plans
    }


def test_scores_are_those_of_any_other_batch(
    tiny_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size in (2, 32):
        monkeypatch.setattr(measure, "BATCH", size)
        kept = tmp_path / f"{size}.jsonl"
        found.append(measure.measure(a_task(tiny_family, 0), kept, lambda count: None))
    assert found[0].keys() == found[1].keys()
    for plan, scores in found[0].items():
        assert scores == pytest.approx(found[1][plan], abs=1e-3)
    assert len(set(found[0]["device:2"])) == len(PROMPTS)


def test_a_plan_that_catches_up_draws_what_the_others_drew(
    tiny_family: Path, tmp_path: Path
) -> None:
    """The reference is drawn again for its pictures, and its scores count once; also after a
    break."""
    task = a_task(tiny_family, 3)
    edge = next(plan for plan in task.plans if str(plan) == "edge:2")
    parts = [
        Part(0, 2, task.plans),
        Part(2, 5, (task.reference,)),
        Part(2, 5, (task.reference, edge)),
    ]

    def following(task: Task, scores: Scores) -> Part | None:
        drawn = {str(plan): len(scores[str(plan)]) for plan in task.plans}
        at = [drawn["device:2"] == 2, drawn["cloud:2"] == 5, drawn["edge:2"] == 5].count(True)
        if at == len(stops):
            raise KeyboardInterrupt
        return parts[at] if at < len(parts) else None

    kept, stops = tmp_path / "kept.jsonl", [1, 2]
    with pytest.raises(KeyboardInterrupt):
        measure.measure(task, kept, lambda count: None, following)
    stops.append(3)
    stops.append(4)
    told: list[int] = []
    scores = measure.measure(task, kept, told.append, following)
    whole = measure.measure(task, tmp_path / "whole.jsonl", lambda count: None)
    for plan in ("cloud:2", "edge:2"):
        assert scores[plan] == pytest.approx(whole[plan], abs=1e-3)
    assert scores["device:2"] == pytest.approx(whole["device:2"][:2], abs=1e-3)
    assert sum(told) == sum(map(len, scores.values())) + 3
