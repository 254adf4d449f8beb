"""The tables against the diffusers schedulers, step by step, on random model outputs."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch

from diffusion_edge.engine.run import step_noise
from diffusion_edge.errors import InvalidRequest, UnsupportedSolver
from diffusion_edge.schedule import SOLVERS, Schedule, fitting, resolve, resolved_steps
from diffusion_edge.solver import apply, build_table, history_length
from tests.stock import STOCK, stock_step

DIFFUSION = [solver for solver in SOLVERS if not solver.startswith("flow-")]
FLOW = [solver for solver in SOLVERS if solver.startswith("flow-")]


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


def a_flow(shift: float = 3.0) -> dict[str, Any]:
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": shift,
    }


CASES = [
    *((s, a_noise(p, sp)) for s in DIFFUSION for p in ("epsilon", "v_prediction")
      for sp in ("trailing", "leading", "linspace")),
    *((s, a_flow(shift)) for s in FLOW for shift in (1.0, 3.0)),
]  # fmt: skip
NAMES = [
    f"{solver}-{noise.get('prediction_type', 'flow')}-"
    f"{noise.get('timestep_spacing', noise.get('shift'))}"
    for solver, noise in CASES
]


@pytest.mark.parametrize("asked", [1, 2, 3, 4, 7, 10, 25])
@pytest.mark.parametrize(("solver", "noise"), CASES, ids=NAMES)
def test_the_table_is_the_stock_scheduler(solver: str, noise: dict[str, Any], asked: int) -> None:
    table = build_table(solver, resolve(noise, solver, resolved_steps(solver, asked)))
    assert table.history == history_length(solver)
    stock = STOCK[solver](noise)
    stock.set_timesteps(asked)
    assert len(stock.timesteps) == table.steps
    generator = torch.Generator().manual_seed(asked)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    theirs, ours = x * getattr(stock, "init_noise_sigma", 1.0), x * table.initial_scale
    history = [torch.zeros_like(x)] * table.history
    for step, timestep in enumerate(stock.timesteps):
        scaled = theirs
        if hasattr(stock, "scale_model_input"):
            scaled = stock.scale_model_input(theirs, timestep)
        torch.testing.assert_close(ours * table.input_scale[step], scaled, rtol=5e-5, atol=5e-5)
        assert float(table.timesteps[step]) == pytest.approx(float(timestep))
        output = torch.tanh(scaled) * 0.7 + 0.1 * torch.randn(x.shape, generator=generator)
        noise_now = step_noise(x.shape, 3, step)
        theirs = stock_step(stock, output, timestep, theirs, noise_now)
        ours, *history = apply(table.weights[step : step + 1], ours, output, noise_now, history)
    error = torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs)
    assert float(error) < 1e-5


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s not in ("lms", "pndm")])
def test_a_perfect_denoiser_lands_on_the_clean_latent(solver: str) -> None:
    """With the true clean latent at every level, the last step gives it, whatever was before.

    The multistep rules for the noise or the slope, lms and pndm, have no such last step.
    """
    config = a_flow() if solver in FLOW else a_noise()
    schedule = resolve(config, solver, 10)
    table = build_table(solver, schedule)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(1, 3, 4, 4, generator=generator).double()
    x = torch.randn(1, 3, 4, 4, generator=generator).double() * table.initial_scale
    history = [torch.zeros_like(x)] * table.history
    for step in range(table.steps):
        sigma = schedule.sigmas[step]
        a, b = {
            "preserving": (1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)),
            "exploding": (1.0, sigma),
            "flow": (1 - sigma, sigma),
        }[schedule.scaling]
        output = (x - clean) / sigma if schedule.scaling == "flow" else (x - a * clean) / b
        noise = step_noise(x.shape, 1, step).double()
        weights = table.weights[step : step + 1].double()
        x, *history = apply(weights, x, output, noise, history)
    torch.testing.assert_close(x, clean, rtol=1e-4, atol=2e-4)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    tables = [build_table(s, resolve(a_noise(), s, 10)) for s in ("ddim", "euler-ancestral")]
    weights = torch.stack([t.weights[4] for t in tables])
    x, output, noise = torch.randn(3, 2, 4, 8, 8)
    together = apply(weights, x, output, noise, [])[0]
    alone = [
        apply(weights[i : i + 1], x[i : i + 1], output[i : i + 1], given, [])[0]
        for i, given in enumerate((None, noise[1:]))
    ]
    assert torch.equal(together, torch.cat(alone))


def test_only_the_stochastic_solvers_add_noise() -> None:
    known = {s: a_flow() if s in FLOW else a_noise() for s in SOLVERS}
    adding = {s for s in SOLVERS if build_table(s, resolve(known[s], s, 10)).stochastic}
    assert adding == {"euler-ancestral", "dpmpp-2m-sde"}


def test_the_noise_of_a_step_comes_from_its_seed_and_number_alone() -> None:
    assert torch.equal(step_noise((1, 4, 8, 8), 7, 3), step_noise((1, 4, 8, 8), 7, 3))
    others = [step_noise((1, 4, 8, 8), *key) for key in ((7, 4), (8, 3), (3, 7), (2**63 + 7, 3))]
    for other in others:
        overlap = torch.corrcoef(
            torch.stack([other.flatten(), step_noise((1, 4, 8, 8), 7, 3).flatten()])
        )
        assert abs(float(overlap[0, 1])) < 0.25


def test_the_noise_of_a_step_is_unit_normal() -> None:
    drawn = torch.cat([step_noise((1, 16, 32, 32), 5, step) for step in range(20)]).double()
    assert abs(float(drawn.mean())) < 0.01
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.01)
    assert float((drawn.abs() > 1.959964).double().mean()) == pytest.approx(0.05, abs=0.003)


def test_the_noise_of_a_step_is_the_same_on_every_machine() -> None:
    """Recorded values: a change of generator would tear trajectories that cross machines."""
    drawn = step_noise((5,), 7, 3).tolist()
    assert drawn == RECORDED


RECORDED = [
    -1.4470674991607666,
    -0.9134206771850586,
    -0.5155606865882874,
    1.8603298664093018,
    -0.15436838567256927,
]


@pytest.mark.parametrize("option", ["thresholding", "clip_sample"])
def test_what_is_not_linear_is_refused_by_name(option: str) -> None:
    with pytest.raises(UnsupportedSolver, match=option):
        resolve(a_noise() | {option: True}, "ddim", 10)


def test_unknown_solvers_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedSolver, match="ddim, euler, euler-ancestral, dpmpp-2m"):
        resolve(a_noise(), "heun", 10)


def test_solvers_that_do_not_fit_are_refused_with_those_that_do() -> None:
    with pytest.raises(UnsupportedSolver, match=r"flow-euler.*epsilon.*ddim, euler"):
        resolve(a_noise(), "flow-euler", 10)
    with pytest.raises(UnsupportedSolver, match="flow-euler, flow-dpmpp-2m, flow-unipc"):
        resolve(a_flow(), "ddim", 10)
    assert set(fitting(a_noise())) | set(fitting(a_flow())) == set(SOLVERS)


def test_pndm_takes_one_evaluation_more_than_it_is_asked_for() -> None:
    assert [resolved_steps("pndm", n) for n in (1, 2, 20)] == [1, 3, 21]
    assert resolved_steps("ddim", 20) == 20
    assert resolve(a_noise(), "pndm", 21).steps == 21


@pytest.mark.parametrize("solver", ["ddim", "pndm", "dpmpp-2m", "euler"])
def test_step_counts_that_the_stock_scheduler_rounds_are_refused(solver: str) -> None:
    with pytest.raises(InvalidRequest, match="rounding of the stock scheduler"):
        resolve(a_noise(), solver, resolved_steps(solver, 61))


def test_no_table_takes_long_to_build() -> None:
    """A stage builds them in its loop; the most steps that a packet can have are 1000. Counted in
    calls, which neither neighbours nor machines lengthen."""
    schedules = {s: resolve(a_flow() if s in FLOW else a_noise(), s, 1000) for s in SOLVERS}
    calls = {solver: _calls(solver, schedules[solver]) for solver in SOLVERS}
    print(calls)
    assert max(calls.values()) < 10 * calls["euler"]


def _calls(solver: str, schedule: Schedule) -> int:
    """Functions that are called while a table is built."""
    seen: list[str] = []

    def count(frame: object, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            seen.append(event)

    sys.setprofile(count)
    try:
        build_table.__wrapped__(solver, schedule)
    finally:
        sys.setprofile(None)
    return len(seen)
