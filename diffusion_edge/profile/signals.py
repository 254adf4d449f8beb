"""Records what policies that choose again look at: every model alone, picture by picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from diffusion_edge.engine import run
from diffusion_edge.families.base import Family
from diffusion_edge.plan import Plan
from diffusion_edge.profile import batch
from diffusion_edge.profile.measure import BATCH, Task
from diffusion_edge.request import ImageRequest, Picture
from diffusion_edge.routing.signals import Recording, Signals

DIGITS = 5

Made = tuple[list[Picture], list[tuple[float, ...]]]
"""Pictures, and how their model's output changed from step to step."""


def record(task: Task, advance: Callable[[int], None]) -> Signals:
    """Of the task's plans, which are over one stage each. `advance` is told how many pictures are
    done, as they are."""
    names = dict.fromkeys(plan.spans[0].stage for plan in (task.reference, *task.plans))
    stages = batch.load_stages(task.card, names)
    found: dict[Plan, list[tuple[float, tuple[float, ...]]]] = {plan: [] for plan in task.plans}
    for start in range(0, len(task.prompts), BATCH):
        requests = _requests(task, start)
        reference, _ = made(stages[task.card.reference], requests, task.reference)
        for plan, told in found.items():
            pictures, changes = made(stages[plan.spans[0].stage], requests, plan)
            told += zip(_scores(task, requests, pictures, reference), changes, strict=True)
            advance(len(requests))
    return Signals(
        family=task.card.name,
        metric=task.metric.name,
        size=task.card.defaults.size,
        seed=task.seed,
        prompts=task.source,
        weights=task.weights,
        rows=tuple(
            Recording(
                model=plan.spans[0].stage,
                steps=plan.steps,
                scores=tuple(score for score, _ in told),
                changes=tuple(changes for _, changes in told),
            )
            for plan, told in found.items()
        ),
    )


def _requests(task: Task, start: int) -> list[ImageRequest]:
    return [
        task.card.request(prompt, task.seed + start + i)
        for i, prompt in enumerate(task.prompts[start : start + BATCH])
    ]


def _scores(
    task: Task,
    requests: Sequence[ImageRequest],
    pictures: Sequence[Picture],
    reference: Sequence[Picture],
) -> Iterator[float]:
    for request, picture, known in zip(requests, pictures, reference, strict=True):
        yield round(task.metric.score(request.prompt, picture, known), DIGITS)


def made(family: Family, requests: Sequence[ImageRequest], plan: Plan) -> Made:
    """By a plan over one stage."""
    trajectories = batch.begun(family, requests, plan)
    outputs: list[Tensor] = []
    for _ in range(plan.steps):
        outputs.append(run.output(family, trajectories))
        trajectories = run.advance(trajectories, outputs[-1])
    steps = [changes(*pair) for pair in pairwise(outputs)]
    of_picture = zip(*(step.tolist() for step in steps), strict=True)
    rounded = [tuple(round(value, DIGITS) for value in each) for each in of_picture]
    return run.decode_all(family, trajectories), rounded or [()] * len(requests)


def changes(before: Tensor, now: Tensor) -> Tensor:
    """(B,): by how much outputs (B, ...) of one step differ from those of the step before, mean of
    absolute values over mean of absolute values; 0 where there were none."""
    inner = tuple(range(1, now.ndim))
    moved, size = (now - before).abs().mean(inner), before.abs().mean(inner)
    return torch.where(size > 0, moved / size, torch.zeros_like(size))
