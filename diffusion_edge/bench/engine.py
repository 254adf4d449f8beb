"""The benchmark of the engine: equality first, then all arms in turns, then what it came to."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from diffusion_edge.bench import solver_step, workload
from diffusion_edge.bench.arms import BY_WAITING, EACH_CORE, IN_FLIGHT, ONE_BY_ONE, TOGETHER_OFF
from diffusion_edge.bench.isolated import Arm, all_arms, errors_of
from diffusion_edge.bench.report import Group, Report, machine, versions
from diffusion_edge.bench.stock import StockPipeline
from diffusion_edge.bench.timing import Timed, interleaved, rows
from diffusion_edge.bench.workload import Asked
from diffusion_edge.families.card import Dtype, FamilyCard
from diffusion_edge.families.load import load_family
from diffusion_edge.families.pipeline import Loading

PRECISION: Dtype = "float32"
WALKS = 10
"""Of the solver steps, in a round."""


@dataclass(frozen=True)
class Task:
    """steps: of the first request, as a stock pipeline is asked for them; the others take shares
    of them. seed: of the first image. command: as the user would give it."""

    card: FamilyCard
    stage: str
    requests: int
    rounds: int
    steps: int
    seed: int
    command: str = ""


@dataclass(frozen=True)
class _Plan:
    """A group that is ready to be timed: its arms are equal."""

    key: str
    what: str
    arms: dict[str, Timed]
    errors: dict[str, float]


def measure(task: Task, tell: Callable[[str], None]) -> Report:
    """`tell` gets a line before every part. Raises UnequalArm before anything is timed."""
    card = task.card
    family = load_family(card, task.stage, Loading(dtype=PRECISION))
    pipeline = StockPipeline(card, task.stage, family.device)
    threads = torch.get_num_threads()
    tell("starting a process for every arm")
    with all_arms(card, task.stage, threads) as arms:
        tell("equality of all arms")
        plans = [
            *_workloads(task, arms, pipeline),
            _Plan(
                "solver",
                f"One solver step, {solver_step.BATCH} trajectories with mixed rows, float32 "
                "latents of the family",
                *solver_step.arms(card, family, WALKS),
            ),
        ]
        before = os.getloadavg()
        groups = [
            Group(
                plan.key,
                plan.what,
                rows(
                    interleaved(plan.arms, task.rounds, partial(_round, plan, task.rounds, tell)),
                    plan.errors,
                    PRECISION,
                ),
            )
            for plan in plans
        ]
    return Report(
        command=task.command,
        measured=datetime.datetime.now(datetime.UTC).date().isoformat(),
        family=card.name,
        stage=task.stage,
        pipeline=pipeline.name,
        precision=PRECISION,
        rounds=task.rounds,
        machine=machine(str(family.device), threads),
        versions=versions(),
        load_before=before,
        load_after=os.getloadavg(),
        groups=tuple(groups),
    )


def _workloads(task: Task, arms: Sequence[Arm], pipeline: StockPipeline) -> list[_Plan]:
    """Checked, and every arm has made its pictures once."""
    by_name = {arm.name: arm for arm in arms}
    some = [
        by_name[name]
        for name in (ONE_BY_ONE, BY_WAITING, EACH_CORE, IN_FLIGHT, TOGETHER_OFF)
        if name in by_name
    ]
    mixed = workload.mixed(task.card, task.requests, task.steps, task.seed)
    equal = workload.equal(task.card, task.requests, task.steps, task.seed)
    alone = equal[:1]
    calls = len(workload.grouped(mixed))
    told = ", ".join(map(str, mixed))
    return [
        _plan(
            "mixed",
            f"{len(mixed)} requests at once, mixed (solver, steps/guidance: {told}); batched by "
            f"waiting they are {calls} calls",
            arms,
            mixed,
            pipeline,
        ),
        _plan("equal", f"{len(equal)} equal requests at once ({equal[0]})", some, equal, pipeline),
        _plan(
            "alone",
            f"One request alone ({alone[0]})",
            [by_name[name] for name in (ONE_BY_ONE, IN_FLIGHT)],
            alone,
            pipeline,
        ),
    ]


def _plan(
    key: str,
    what: str,
    arms: Sequence[Arm],
    requests: Sequence[Asked],
    pipeline: StockPipeline,
) -> _Plan:
    errors = errors_of(arms, requests, pipeline)
    for arm in arms:
        arm.seconds(requests[:1])
    timings: dict[str, Timed] = {arm.name: partial(arm.seconds, requests) for arm in arms}
    return _Plan(key, what, timings, errors)


def _round(plan: _Plan, rounds: int, tell: Callable[[str], None], turn: int) -> None:
    tell(f"{plan.key}: round {turn + 1} of {rounds}")
