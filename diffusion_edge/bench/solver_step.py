"""One solver step of eight trajectories, each with a solver and a position of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_edge.bench.stock import stock_scheduler
from diffusion_edge.bench.timing import Timed, check_equal
from diffusion_edge.bench.workload import steady
from diffusion_edge.engine import run as core
from diffusion_edge.engine.run import Trajectory
from diffusion_edge.execution.check import relative
from diffusion_edge.families.base import Conditioning, Family
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.plan import Span
from diffusion_edge.schedule import resolved_steps
from diffusion_edge.solver import apply, build_table

STOCK = "eight stock schedulers' `step`"
PREPARED = "`solver.apply`, rows and histories prepared"
WHOLE = "`engine.run.step` around a model that costs nothing"
BATCH = 8
STEPS = 20
WALK = 12
"""Steps that every trajectory goes on for; trajectory i begins at step i."""

Walk = Callable[[], tuple[float, Sequence[Tensor]]]
"""Seconds of a step of the whole batch, the mean over a walk, and the latents at its end."""


class Given:
    """A family whose denoiser's outputs are given, by call, for a walk."""

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        self._outputs = outputs
        self.calls = 0

    def predict(self, latent: Tensor, *_: Any) -> Tensor:
        self.calls += 1
        return self._outputs[self.calls - 1]


@dataclass(frozen=True)
class Bench:
    """The trajectories before their first step, and the outputs (B, C, h, w) of every step."""

    trajectories: tuple[Trajectory, ...]
    solvers: tuple[str, ...]
    outputs: tuple[Tensor, ...]
    noise: dict[str, Any]

    @classmethod
    def of(cls, card: FamilyCard, family: Family) -> Bench:
        size, noise = card.defaults.size, dict(card.noise())
        shape = family.latent_shape(size, size)
        known = steady(card)
        solvers = tuple(known[i % len(known)] for i in range(BATCH))
        trajectories = []
        for i, solver in enumerate(solvers):
            steps = resolved_steps(solver, STEPS)
            schedule = family.schedule(solver, steps, size, size)
            table = build_table(solver, schedule)
            latent = core.initial_noise(shape, i) * table.initial_scale
            history = tuple(torch.zeros_like(latent) for _ in range(table.history))
            nothing, span = Conditioning({}), Span(family.stage, 0, steps)
            trajectories.append(
                Trajectory(latent, history, 0, schedule, table, i, 1.0, nothing, None, span)
            )
        outputs = tuple(
            torch.cat([0.5 * core.initial_noise(shape, 1000 + BATCH * k + i) for i in range(BATCH)])
            for k in range(BATCH + WALK)
        )
        return cls(tuple(trajectories), solvers, outputs, noise)

    def output(self, trajectory: int, position: int) -> Tensor:
        return self.outputs[position][trajectory : trajectory + 1]

    def started(self) -> list[Trajectory]:
        """Trajectory i at step i."""
        found = []
        for i, trajectory in enumerate(self.trajectories):
            given = Given([self.output(i, k) for k in range(i)])
            found.append(core.run_steps(cast(Family, given), trajectory, i))
        return found

    def walked(self) -> tuple[Tensor, ...]:
        """By step of the walk, the outputs that the started trajectories get."""
        return tuple(torch.cat([self.output(i, i + k) for i in range(BATCH)]) for k in range(WALK))


def stock_walk(bench: Bench) -> Walk:
    """Only the calls of `step` are timed, not the scaling of the model's input before them."""
    schedulers = [stock_scheduler(solver, bench.noise) for solver in bench.solvers]

    def one(i: int, position: int, x: Tensor) -> tuple[float, Tensor]:
        scheduler = schedulers[i]
        timestep, output = scheduler.timesteps[position], bench.output(i, position)
        scheduler.scale_model_input(x, timestep)
        began = time.perf_counter()
        x = scheduler.step(output, timestep, x, return_dict=False)[0]
        return time.perf_counter() - began, x

    @torch.inference_mode()
    def walk() -> tuple[float, list[Tensor]]:
        latents, taken_s = [], 0.0
        for i, scheduler in enumerate(schedulers):
            scheduler.set_timesteps(STEPS)
            x = bench.trajectories[i].latent
            for position in range(i):
                _, x = one(i, position, x)
            latents.append(x)
        for k in range(WALK):
            for i in range(BATCH):
                seconds, latents[i] = one(i, i + k, latents[i])
                taken_s += seconds
        return taken_s / WALK, latents

    return walk


def prepared_walk(bench: Bench) -> Walk:
    """`apply` alone: rows are stacked and latents and histories joined beforehand."""
    started, outputs = bench.started(), bench.walked()
    longest = max(t.table.history for t in started)
    weights = [
        torch.stack(
            [
                F.pad(t.table.weights[i + k], (0, extra, 0, extra))
                for i, t in enumerate(started)
                for extra in (longest - t.table.history,)
            ]
        )
        for k in range(WALK)
    ]
    latent = torch.cat([t.latent for t in started])
    empty = torch.zeros_like(latent[:1])
    histories = [
        torch.cat([t.history[age] if age < t.table.history else empty for t in started])
        for age in range(longest)
    ]

    @torch.inference_mode()
    def walk() -> tuple[float, Sequence[Tensor]]:
        x, history = latent, histories
        began = time.perf_counter()
        for rows, output in zip(weights, outputs, strict=True):
            x, *history = apply(rows, x, output, None, history)
        return (time.perf_counter() - began) / WALK, torch.split(x, 1)

    return walk


def whole_walk(bench: Bench) -> Walk:
    """All that the engine does in a step but the model: scales, rows, histories, splitting."""
    started, outputs = bench.started(), bench.walked()

    def walk() -> tuple[float, list[Tensor]]:
        trajectories, family = list(started), cast(Family, Given(outputs))
        began = time.perf_counter()
        for _ in range(WALK):
            trajectories = core.step(family, trajectories)
        return (time.perf_counter() - began) / WALK, [t.latent for t in trajectories]

    return walk


def arms(
    card: FamilyCard, family: Family, repeats: int
) -> tuple[dict[str, Timed], dict[str, float]]:
    """By arm, what measures the mean of `repeats` walks, and its worst error. Raises UnequalArm."""
    bench = Bench.of(card, family)
    walks = {
        STOCK: stock_walk(bench),
        PREPARED: prepared_walk(bench),
        WHOLE: whole_walk(bench),
    }
    expected = walks[STOCK]()[1]
    errors = {
        name: check_equal(
            name,
            {
                f"trajectory {i}, {solver}": relative(x, y)
                for i, (solver, x, y) in enumerate(
                    zip(bench.solvers, walk()[1], expected, strict=True)
                )
            },
        )
        for name, walk in walks.items()
    }

    def measured(walk: Walk) -> Timed:
        return lambda: sum(walk()[0] for _ in range(repeats)) / repeats

    return {name: measured(walk) for name, walk in walks.items()}, errors
