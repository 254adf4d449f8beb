"""The tables against the diffusers schedulers, step by step, on random model outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)

from diffusion_edge.errors import UnsupportedSolver
from diffusion_edge.schedule import SOLVERS, resolve
from diffusion_edge.solver import apply, build_table

STOCK: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ddim": lambda noise: DDIMScheduler.from_config(noise | {"clip_sample": False}),
    "euler": EulerDiscreteScheduler.from_config,
    "dpmpp-2m": DPMSolverMultistepScheduler.from_config,
}


def a_noise(prediction: str = "epsilon", spacing: str = "trailing") -> dict[str, Any]:
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "steps_offset": 1 if spacing == "leading" else 0,
    }


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 4, 7, 10, 25])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_table_is_the_stock_scheduler(
    solver: str, steps: int, prediction: str, spacing: str
) -> None:
    noise = a_noise(prediction, spacing)
    table = build_table(solver, resolve(noise, solver, steps))
    stock = STOCK[solver](noise)
    stock.set_timesteps(steps)
    generator = torch.Generator().manual_seed(steps)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    theirs, ours = x * stock.init_noise_sigma, x * table.initial_scale
    history = [torch.zeros_like(x)] * table.history
    for step, timestep in enumerate(stock.timesteps):
        scaled = stock.scale_model_input(theirs, timestep)
        torch.testing.assert_close(ours * table.input_scale[step], scaled, rtol=5e-5, atol=5e-5)
        assert float(table.timesteps[step]) == pytest.approx(float(timestep))
        output = torch.tanh(scaled) * 0.7 + 0.1 * torch.randn(x.shape, generator=generator)
        theirs = stock.step(output, timestep, theirs, return_dict=False)[0]
        ours, *history = apply(table.weights[step : step + 1], ours, output, history)
    error = torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs)
    assert float(error) < 1e-5


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_perfect_denoiser_lands_on_the_clean_latent(solver: str) -> None:
    """With the true noise of x = x0 + noise at every level, the last step gives x0."""
    schedule = resolve(a_noise(), solver, 10)
    table = build_table(solver, schedule)
    clean, noise = torch.randn(1, 3, 4, 4).double(), torch.randn(1, 3, 4, 4).double()
    first = schedule.sigmas[0]
    scale = 1.0 if schedule.scaling == "exploding" else 1 / (1 + first**2) ** 0.5
    x = (clean + first * noise) * scale
    history = [torch.zeros_like(x)] * table.history
    for step in range(table.steps):
        x, *history = apply(table.weights[step : step + 1].double(), x, noise, history)
    torch.testing.assert_close(x, clean, rtol=1e-4, atol=2e-4)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    tables = [build_table(s, resolve(a_noise(), s, 10)) for s in ("ddim", "euler")]
    weights = torch.stack([t.weights[4] for t in tables])
    x, output = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    together = apply(weights, x, output, [])[0]
    alone = [apply(weights[i : i + 1], x[i : i + 1], output[i : i + 1], [])[0] for i in (0, 1)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("option", ["thresholding", "clip_sample"])
def test_what_is_not_linear_is_refused_by_name(option: str) -> None:
    with pytest.raises(UnsupportedSolver, match=option):
        resolve(a_noise() | {option: True}, "ddim", 10)


def test_unknown_solvers_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedSolver, match="ddim, euler, dpmpp-2m"):
        resolve(a_noise(), "heun", 10)
