"""Makes a quality table of scores, and keeps what an earlier one knows of other sizes."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_edge.errors import ConfigError
from diffusion_edge.plan import Plan
from diffusion_edge.profile import grid, intervals
from diffusion_edge.profile.bounds import Bounded, bounded
from diffusion_edge.profile.fit import left_out
from diffusion_edge.profile.measure import Scores, Task
from diffusion_edge.routing.quality import (
    CONFIDENCE,
    OrderRow,
    QualityRow,
    QualityTable,
    SizeQuality,
)
from diffusion_edge.routing.tables import Table

DIGITS = 4


def table(task: Task, scores: Scores) -> QualityTable:
    """Of one size, with all that is known of it. Raises ConfigError for a reference of score 0."""
    found = draft(task, scores)
    (size,) = found.sizes
    off = left_out(size.rows, task.card.reference, task.default)
    whole = size.model_copy(update={"left_out": off, "orders": tuple(_orders(task, scores))})
    return found.model_copy(update={"sizes": (whole,)})


def draft(task: Task, scores: Scores) -> QualityTable:
    """What a router reads of it: rows, estimates and bounds."""
    found = rows(task, scores)
    card, defaults = task.card, task.card.defaults
    models: Bounded = bounded(found, scores, card.reference, task.default)
    size = SizeQuality(
        size=defaults.size,
        seed=task.seed,
        prompts=task.source,
        captions=max(row.n for row in found),
        measured=datetime.datetime.now(datetime.UTC).date().isoformat(),
        model=models.model,
        low=models.low,
        rows=found,
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
        versions=versions(),
        sizes=(size,),
    )


def versions() -> dict[str, str]:
    """Of what makes the pictures."""
    libraries = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {"python": platform.python_version()} | libraries


def rows(task: Task, scores: Scores) -> tuple[QualityRow, ...]:
    """Of every plan over the prompts that it has. Raises ConfigError for a reference of score 0."""
    reference = scores[str(task.reference)]
    if not any(reference):
        raise ConfigError(
            f"{task.reference} scored 0 on every prompt by {task.metric.name!r}: "
            "nothing can be measured relative to it"
        )
    return tuple(_row(plan, scores[str(plan)], reference) for plan in task.plans)


def _row(plan: Plan, scores: Sequence[float], reference: Sequence[float]) -> QualityRow:
    same = reference[: len(scores)]
    return QualityRow(
        stages=tuple(span.stage for span in plan.spans),
        steps=tuple(span.steps for span in plan.spans),
        score=round(float(np.mean(scores)), DIGITS),
        interval=_rounded(intervals.of_mean(scores)),
        relative=round(float(np.mean(scores)) / float(np.mean(same)), DIGITS),
        relative_interval=_rounded(intervals.of_ratio(scores, same)),
        n=len(scores),
    )


def _orders(task: Task, scores: Scores) -> Iterator[OrderRow]:
    """Every two stages in both orders, in plans with the same steps on each, over the prompts that
    all of these have. A card lists its stages from small to large."""
    for steps in task.steps:
        for small, large in combinations(task.card.stages, 2):
            pairs = [
                (str(plan), f"{large}:{steps - at},{small}:{at}")
                for plan in grid.plans((small, large), steps)
                if [span.stage for span in plan.spans] == [small, large]
                for at in (plan.spans[0].steps,)
            ]
            if pairs:
                n = min(len(scores[plan]) for pair in pairs for plan in pair)
                mean = np.mean(
                    [np.subtract(scores[a][:n], scores[b][:n]) for a, b in pairs], axis=0
                )
                reference = scores[str(task.reference)][:n]
                yield OrderRow(
                    small=small,
                    large=large,
                    steps=steps,
                    difference=round(float(np.mean(mean) / np.mean(reference)), DIGITS),
                    interval=_rounded(intervals.of_ratio(mean, reference)),
                )


def _rounded(interval: intervals.Interval) -> intervals.Interval:
    return round(interval[0], DIGITS), round(interval[1], DIGITS)


# ---------------------------------------------------------------------------- the file


SAME = ("family", "metric", "reference", "steps", "solver", "guidance", "weights")
"""What two sizes must have in common to stand in one table."""


def with_others(found: QualityTable, path: Path) -> tuple[QualityTable, tuple[int, ...]]:
    """The table with the sizes that the file at `path` has beside its own; and the sizes there that
    were measured of other weights or otherwise, and so have to go."""
    if not path.exists():
        return found, ()
    try:
        before = QualityTable.read(path)
    except ConfigError:  # of an older form
        return found, ()
    own = {each.size for each in found.sizes}
    others = [each for each in before.sizes if each.size not in own]
    if any(getattr(before, name) != getattr(found, name) for name in SAME):
        return found, tuple(each.size for each in others)
    sizes = sorted((*found.sizes, *others), key=lambda each: each.size)
    return found.model_copy(update={"sizes": tuple(sizes)}), ()


def write(table: Table, path: Path) -> None:
    """At once, so that nobody reads a half."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(as_text(table))
    beside.replace(path)


def as_text(table: Table) -> str:
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
