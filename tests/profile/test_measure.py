"""What is measured is the same however it is cut into batches: prompt i has seed + i."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from diffusion_edge.families.base import Family
from diffusion_edge.families.card import load_card
from diffusion_edge.profile import batch, measure
from diffusion_edge.profile.measure import Task
from diffusion_edge.profile.metric import load_metric
from diffusion_edge.types import ImageRequest, Picture, Plan

PROMPTS = ("a red circle", "a red square", "a blue circle", "a blue square", "a red")


def a_task(folder: Path, seed: int) -> Task:
    card = load_card(folder)
    return Task(card, "ab" * 16, load_metric("distance"), PROMPTS, "here", (2,), seed)


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
        reference = min(plans, key=lambda plan: str(plan) != "cloud:2")
        for plan in (reference, *(other for other in plans if other != reference)):
            yield plan, [Picture(1, 1, bytes([request.seed] * 3)) for request in requests]

    monkeypatch.setattr(measure, "BATCH", size)
    monkeypatch.setattr(batch, "pictures", pictures)
    monkeypatch.setattr(batch, "load_stages", lambda card, names: dict.fromkeys(names, None))
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
