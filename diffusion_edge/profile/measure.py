"""Scores plans: pictures of the same prompts and seeds by all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusion_edge.families.base import Family
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.plan import Plan
from diffusion_edge.profile import batch, grid
from diffusion_edge.profile.ledger import open_ledger
from diffusion_edge.profile.metric import Metric
from diffusion_edge.request import Picture
from diffusion_edge.schedule import resolved_steps

BATCH = 32

Scores = Mapping[str, Sequence[float]]
"""The scores of the first prompts' pictures, by plan. Some plans have more of them than others,
none more than the reference in its default number of steps."""


@dataclass(frozen=True)
class Task:
    """What is measured, at the card's default size. Prompt i is drawn with seed + i, by every plan
    that draws it. Among `plans`, whose steps are resolved, is the reference alone in its default
    number of them. `weights` is the fingerprint at the start; `source` says where the prompts came
    from, `execution` how the models are run."""

    card: FamilyCard
    weights: str
    metric: Metric
    prompts: Sequence[str]
    source: str
    plans: tuple[Plan, ...]
    seed: int
    execution: str = "eager"

    @property
    def default(self) -> int:
        """Steps in which the reference is 1.0."""
        return default_steps(self.card)

    @property
    def reference(self) -> Plan:
        return reference_of(self.card)

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(sorted({plan.steps for plan in self.plans}))

    def settings(self) -> dict[str, Any]:
        """All that a score depends on, but for the versions of libraries."""
        return {
            "weights": self.weights,
            "defaults": self.card.defaults.model_dump(),
            "metric": self.metric.name,
            "prompts": hashlib.blake2b("\n".join(self.prompts).encode()).hexdigest(),
            "plans": [str(plan) for plan in self.plans],
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Part:
    """These plans draw the prompts from `start` up to `stop`."""

    start: int
    stop: int
    plans: tuple[Plan, ...]


Following = Callable[[Task, Scores], Part | None]
"""What is to be drawn next, by what there is; None for enough."""


def default_steps(card: FamilyCard) -> int:
    """As they are resolved."""
    return resolved_steps(card.defaults.solver, card.defaults.steps)


def reference_of(card: FamilyCard) -> Plan:
    return Plan.of(((card.reference, default_steps(card)),))


def with_plans(task: Task, asked: Sequence[int]) -> Task:
    """With all plans of the grid, in these numbers of steps and in the default one."""
    stages = tuple(task.card.stages)
    plans = [plan for steps in _counts(task, asked) for plan in grid.plans(stages, steps)]
    return replace(task, plans=tuple(plans))


def alone(task: Task, asked: Sequence[int]) -> Task:
    """With every stage alone, in the same numbers of steps."""
    counts = _counts(task, asked)
    plans = [Plan.of(((name, steps),)) for steps in counts for name in task.card.stages]
    return replace(task, plans=tuple(plans))


def _counts(task: Task, asked: Sequence[int]) -> list[int]:
    solver = task.card.defaults.solver
    return sorted({task.default, *(resolved_steps(solver, steps) for steps in asked)})


def of_size(card: FamilyCard, size: int) -> FamilyCard:
    """The same family, making pictures of this size unless told otherwise."""
    return card.model_copy(update={"defaults": card.defaults.model_copy(update={"size": size})})


def fingerprint(card: FamilyCard) -> str:
    """Hex digest of all of the family's weights."""
    digest = hashlib.blake2b(digest_size=16)
    for stage in card.stages:
        for file in sorted(card.folder(stage).glob("*/*.safetensors")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def evenly(task: Task, scores: Scores) -> Part | None:
    """All prompts by all plans."""
    return up_to(len(task.prompts), task, scores)


def up_to(captions: int, task: Task, scores: Scores) -> Part | None:
    """The first so many prompts by all plans."""
    start = min(len(scores[str(plan)]) for plan in task.plans)
    if start >= captions:
        return None
    plans = [plan for plan in task.plans if len(scores[str(plan)]) == start]
    return Part(start, min(start + BATCH, captions), with_reference(task, plans))


def with_reference(task: Task, plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """The reference first: its pictures may be needed to score those of the others."""
    return tuple(dict.fromkeys((task.reference, *plans)))


def measure(
    task: Task, kept: Path, advance: Callable[[int], None], following: Following = evenly
) -> dict[str, list[float]]:
    """The scores by plan. `kept` holds what an earlier run of the same task has measured.

    `advance` is told how many pictures are done, as they are.
    """
    stages: dict[str, Family] = {}
    scores: dict[str, list[float]] = {str(plan): [] for plan in task.plans}
    ledger, entries = open_ledger(kept, task.settings())
    for entry in entries:
        advance(_taken(scores, entry))
    while (part := following(task, scores)) is not None:
        if not stages:  # the reference first, so that its pictures are there when others need them
            names = sorted(task.card.stages, key=lambda name: name != task.card.reference)
            stages.update(batch.load_stages(task.card, names, task.execution))
        drawn = _drawn(task, stages, part, advance)
        ledger.append(drawn)
        _taken(scores, drawn)
    return scores


def _taken(scores: Mapping[str, list[float]], entry: Mapping[str, Any]) -> int:
    """How many scores were added; those that were there already, the reference's, are not."""
    added = 0
    for plan, values in entry["scores"].items():
        if len(scores[plan]) == entry["start"]:
            scores[plan].extend(values)
            added += len(values)
    return added


def _drawn(
    task: Task, stages: Mapping[str, Family], part: Part, advance: Callable[[int], None]
) -> dict[str, Any]:
    """An entry of the ledger: the scores by plan, and from which prompt on."""
    prompts = task.prompts[part.start : part.stop]
    requests = [
        task.card.request(prompt, task.seed + part.start + i) for i, prompt in enumerate(prompts)
    ]
    scores: dict[str, list[float]] = {}
    reference: list[Picture] = []
    for plan, pictures in batch.pictures(stages, requests, part.plans):
        reference = reference or pictures  # the first of a part
        scores[str(plan)] = [
            task.metric.score(*each) for each in zip(prompts, pictures, reference, strict=True)
        ]
        advance(len(prompts))
    return {"start": part.start, "scores": scores}
