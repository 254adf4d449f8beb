"""Measures a family's quality table: every plan of the grid on the same prompts and seeds."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_edge.errors import ConfigError
from diffusion_edge.families.base import Family
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.profile import batch, grid, intervals
from diffusion_edge.profile.fit import fit, left_out
from diffusion_edge.profile.ledger import results
from diffusion_edge.profile.metric import Metric
from diffusion_edge.routing.quality import (
    CONFIDENCE,
    OrderRow,
    QualityRow,
    QualityTable,
    SizeQuality,
)
from diffusion_edge.schedule import resolved_steps
from diffusion_edge.types import Picture, Plan

BATCH = 32
DIGITS = 4
ONE_SIDED = 1.644854
"""Standard errors to the lower end of a one-sided 95 % interval."""

Scores = Mapping[str, Sequence[float]]
"""The score of every prompt's picture, by plan."""


@dataclass(frozen=True)
class Task:
    """What is measured. Prompt i is drawn with seed + i, by every plan. `steps` are resolved;
    `weights` is the fingerprint at the start; `source` says where the prompts came from."""

    card: FamilyCard
    weights: str
    metric: Metric
    prompts: Sequence[str]
    source: str
    steps: tuple[int, ...]
    seed: int

    @property
    def default(self) -> int:
        """Steps in which the reference is 1.0."""
        return resolved_steps(self.card.defaults.solver, self.card.defaults.steps)

    @property
    def plans(self) -> list[Plan]:
        return [plan for steps in self.steps for plan in grid.plans(tuple(self.card.stages), steps)]

    def settings(self) -> dict[str, Any]:
        """All that the scores depend on, but for the versions of libraries."""
        return {
            "weights": self.weights,
            "defaults": self.card.defaults.model_dump(),
            "metric": self.metric.name,
            "prompts": hashlib.blake2b("\n".join(self.prompts).encode()).hexdigest(),
            "plans": [str(plan) for plan in self.plans],
            "seed": self.seed,
        }


def fingerprint(card: FamilyCard) -> str:
    """Hex digest of all of the family's weights."""
    digest = hashlib.blake2b(digest_size=16)
    for stage in card.stages:
        for file in sorted(card.folder(stage).glob("*/*.safetensors")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def measure(task: Task, kept: Path, advance: Callable[[int], None]) -> dict[str, list[float]]:
    """The scores by plan. `kept` holds what an earlier run of the same task has measured.

    `advance` is told how many pictures are done, as they are.
    """
    stages: dict[str, Family] = {}

    def of_batch(start: int) -> dict[str, list[float]]:
        if not stages:  # the reference first, so that its pictures are there when others need them
            names = sorted(task.card.stages, key=lambda name: name != task.card.reference)
            stages.update(batch.load_stages(task.card, names))
        return _of_batch(task, stages, start, advance)

    scores: dict[str, list[float]] = {str(plan): [] for plan in task.plans}
    starts = range(0, len(task.prompts), BATCH)
    for found, was_there in results(kept, task.settings(), starts, of_batch):
        for plan, values in found.items():
            scores[plan] += values
            if was_there:
                advance(len(values))
    return scores


def _of_batch(
    task: Task, stages: Mapping[str, Family], start: int, advance: Callable[[int], None]
) -> dict[str, list[float]]:
    """The scores of the prompts from `start` on, by plan."""
    prompts = task.prompts[start : start + BATCH]
    requests = [
        batch.request(task.card, prompt, task.seed + start + i) for i, prompt in enumerate(prompts)
    ]
    scores: dict[str, list[float]] = {}
    reference: list[Picture] = []
    for plan, pictures in batch.pictures(stages, requests, task.plans):
        if _is_alone(plan, task.card.reference):
            reference = pictures
        scores[str(plan)] = [
            task.metric.score(*each) for each in zip(prompts, pictures, reference, strict=True)
        ]
        advance(len(prompts))
    return scores


def _is_alone(plan: Plan, stage: str) -> bool:
    return [span.stage for span in plan.spans] == [stage]


# ---------------------------------------------------------------------------- the table


def table(task: Task, scores: Scores) -> QualityTable:
    """Means, intervals, the models between them. Raises ConfigError for a reference of score 0."""
    card = task.card
    reference = scores[f"{card.reference}:{task.default}"]
    if not any(reference):
        raise ConfigError(
            f"{card.reference}:{task.default} scored 0 on every prompt by {task.metric.name!r}: "
            "nothing can be measured relative to it"
        )
    rows = tuple(_row(plan, scores[str(plan)], reference) for plan in task.plans)
    cautious = tuple(_cautious(row) for row in rows)
    defaults = card.defaults
    size = SizeQuality(
        size=defaults.size,
        seed=task.seed,
        prompts=task.source,
        captions=len(task.prompts),
        measured=datetime.datetime.now(datetime.UTC).date().isoformat(),
        model=fit(rows, card.reference, task.default),
        low=fit(cautious, card.reference, task.default),
        left_out=left_out(rows, card.reference, task.default),
        orders=tuple(_orders(task, scores, reference)),
        rows=rows,
    )
    return QualityTable(
        family=card.name,
        metric=task.metric.name,
        reference=card.reference,
        steps=task.default,
        solver=defaults.solver,
        guidance=defaults.guidance,
        confidence=CONFIDENCE,
        weights=task.weights,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "diffusers", "transformers")},
        },
        sizes=(size,),
    )


def _cautious(row: QualityRow) -> QualityRow:
    """The same with the lower end of its one-sided 95 % interval for its quality."""
    error = (row.relative_interval[1] - row.relative) / intervals.Z
    return row.model_copy(update={"relative": max(0.0, row.relative - ONE_SIDED * error)})


def _row(plan: Plan, scores: Sequence[float], reference: Sequence[float]) -> QualityRow:
    mean, other = float(np.mean(scores)), float(np.mean(reference))
    return QualityRow(
        stages=tuple(span.stage for span in plan.spans),
        steps=tuple(span.steps for span in plan.spans),
        score=round(mean, DIGITS),
        interval=_rounded(intervals.of_mean(scores)),
        relative=round(mean / other, DIGITS),
        relative_interval=_rounded(intervals.of_ratio(scores, reference)),
        n=len(scores),
    )


def _orders(task: Task, scores: Scores, reference: Sequence[float]) -> Iterator[OrderRow]:
    """Every two stages in both orders, in plans with the same steps on each. A card lists its
    stages from small to large."""
    for steps in task.steps:
        for small, large in combinations(task.card.stages, 2):
            differences = [
                np.subtract(scores[str(plan)], scores[f"{large}:{steps - at},{small}:{at}"])
                for plan in grid.plans((small, large), steps)
                if [span.stage for span in plan.spans] == [small, large]
                for at in (plan.spans[0].steps,)
            ]
            if differences:
                mean = np.mean(differences, axis=0)
                yield OrderRow(
                    small=small,
                    large=large,
                    steps=steps,
                    difference=round(float(np.mean(mean) / np.mean(reference)), DIGITS),
                    interval=_rounded(intervals.of_ratio(mean, reference)),
                )


def _rounded(interval: intervals.Interval) -> intervals.Interval:
    return round(interval[0], DIGITS), round(interval[1], DIGITS)


def as_text(table: QualityTable) -> str:
    """The table as JSON, a row to a line."""
    return _json(table.model_dump(mode="json"), "\n") + "\n"


def _json(value: Any, newline: str) -> str:
    if not _has_rows(value):
        return json.dumps(value)
    inner = newline + "  "
    if isinstance(value, list):
        return "[" + ",".join(inner + _json(each, inner) for each in value) + newline + "]"
    parts = (f"{inner}{json.dumps(key)}: {_json(each, inner)}" for key, each in value.items())
    return "{" + ",".join(parts) + newline + "}"


def _has_rows(value: Any) -> bool:
    """Whether it is a list of objects, or has one in it."""
    if isinstance(value, dict):
        return any(map(_has_rows, value.values()))
    return isinstance(value, list) and any(isinstance(each, dict) for each in value)
