"""Noise levels: what is resolved is what was asked for."""

from __future__ import annotations

from typing import Any

import pytest

from diffusion_edge import schedule as module
from diffusion_edge.errors import EdgeError, InvalidRequest, UnsupportedSolver
from diffusion_edge.schedule import (
    SOLVERS,
    check,
    chosen_unlike,
    resolve,
    resolved_steps,
    steps_made,
)
from tests.fakes import NOISE

# 1000 / 61 and the like round so that the stock scheduler appends a timestep of -1.
ROUNDED = {61, 103, 121, 122}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
SIGMAS_OF_FLOW = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}
"""The same levels, as schedulers say it that were made for diffusion."""


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_step_count_is_kept_or_refused(solver: str) -> None:
    """Flow matching and Karras do not space their levels by training timesteps."""
    flow = solver.startswith("flow-")
    rounded = set() if flow or solver == "dpmpp-2m-karras" else ROUNDED
    for asked in range(1, 151):
        steps = resolved_steps(solver, asked)
        if asked in rounded:
            for refuse in (check, resolve):
                with pytest.raises(InvalidRequest, match=f"{steps} steps of {solver} come out as"):
                    refuse(NOISE, solver, steps)
        else:
            check(FLOW if flow else NOISE, solver, steps)
            schedule = resolve(FLOW if flow else NOISE, solver, steps)
            assert schedule.steps == steps
            assert min(schedule.timesteps) >= 0


def test_a_step_count_that_pndm_cannot_make_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="2 steps of pndm come out as 1"):
        resolve(NOISE, "pndm", 2)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("solver", module._DIFFUSION)
def test_the_count_is_known_without_the_stock_scheduler(solver: str, spacing: str) -> None:
    noise = NOISE | {"timestep_spacing": spacing}
    for steps in (1, 2, 3, *range(60, 64), 103, 104, *range(120, 125), 150):
        made = module._DIFFUSION[solver](noise, steps)
        assert steps_made(noise, solver, steps) == made.steps, steps


@pytest.mark.parametrize(
    ("noise", "solver"),
    [
        (NOISE, "magic"),
        (NOISE, "flow-euler"),
        (FLOW, "ddim"),
        (NOISE | {"thresholding": True}, "ddim"),
        (NOISE | {"rescale_betas_zero_snr": True}, "ddim"),
        (FLOW | {"stochastic_sampling": True}, "flow-euler"),
        (NOISE | {"prediction_type": "sample"}, "ddim"),
    ],
)
def test_what_cannot_be_resolved_is_told_beforehand_in_the_same_words(
    noise: dict[str, Any], solver: str
) -> None:
    told = []
    for refuse in (check, resolve):
        with pytest.raises(EdgeError) as caught:
            refuse(noise, solver, 20)
        told.append((caught.value.message, caught.value.param))
    assert told[0] == told[1]


@pytest.mark.parametrize("solver", [name for name in SOLVERS if not name.startswith("flow-")])
def test_noise_that_ends_without_any_signal_is_refused_and_not_taken_for_other_noise(
    solver: str,
) -> None:
    """Betas of zero SNR: the model has learned levels at which a sigma is infinite."""
    with pytest.raises(UnsupportedSolver, match="sets rescale_betas_zero_snr"):
        resolve(NOISE | {"rescale_betas_zero_snr": True}, solver, 20)
    assert resolve(NOISE | {"rescale_betas_zero_snr": False}, solver, 20) == resolve(
        NOISE, solver, 20
    )


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name.startswith("flow-")])
def test_a_shift_is_the_same_by_either_name(solver: str) -> None:
    by_either = [resolve(noise, solver, 12) for noise in (FLOW, SIGMAS_OF_FLOW)]
    assert by_either[0] == by_either[1]
    assert by_either[0] != resolve(FLOW | {"shift": 1.0}, solver, 12)


@pytest.mark.parametrize(
    "rare",
    [
        {"shift_terminal": 0.1},
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
        {"use_dynamic_shifting": True, "shift_terminal": 0.1, "max_shift": 2.0},
        {"num_train_timesteps": 500},
    ],
    ids=str,
)
def test_rare_flows_have_the_stock_levels(rare: dict[str, Any]) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    noise = FLOW | rare
    stock = FlowMatchEulerDiscreteScheduler.from_config(noise)
    stock.set_timesteps(12, mu=module.dynamic_shift(noise, 1024))
    found = resolve(noise, "flow-euler", 12, tokens=1024)
    assert found.sigmas == pytest.approx(stock.sigmas.tolist())
    assert found.timesteps == pytest.approx(stock.timesteps.tolist())
    assert found.sigmas != resolve(FLOW, "flow-euler", 12).sigmas or found.timesteps[0] == 500
    if "shift_terminal" in rare:
        assert found.sigmas[-2] == pytest.approx(0.1, abs=1e-5)


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 7000])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"base_shift": 0.7, "max_shift": 1.9},
        {"base_image_seq_len": 100, "max_image_seq_len": 9000},
    ],
    ids=["as flux", "own shifts", "own lengths"],
)
def test_a_dynamic_shift_is_the_stock_pipeline_s(own: dict[str, Any], tokens: int) -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    lengths = (own.get("base_image_seq_len", 256), own.get("max_image_seq_len", 4096))
    shifts = (own.get("base_shift", 0.5), own.get("max_shift", 1.15))
    found = module.dynamic_shift({"use_dynamic_shifting": True} | own, tokens)
    assert found == pytest.approx(calculate_shift(tokens, *lengths, *shifts))
    assert module.dynamic_shift(own, tokens) is None


@pytest.mark.parametrize(
    ("key", "mine", "reference"),
    [
        ("timestep_spacing", "leading", "trailing"),
        ("steps_offset", 1, 0),
        ("shift", 3.0, 1.0),
        ("use_dynamic_shifting", True, False),
        ("base_shift", 0.5, 0.7),
        ("max_shift", 1.15, 2.0),
    ],
)
def test_levels_that_two_models_choose_differently_are_told(
    key: str, mine: Any, reference: Any
) -> None:
    """What only one of them says is no difference, and neither is what both learned."""
    here, there = NOISE | {key: mine}, NOISE | {key: reference}
    assert chosen_unlike(here, there) == [f"{key} is {mine}, not {reference}"]
    assert chosen_unlike(here, here) == []
    assert chosen_unlike({key: mine}, {}) == chosen_unlike({}, {key: mine}) == []
    assert chosen_unlike(here | {"beta_end": 0.012}, here) == []


@pytest.mark.parametrize("solver", ["ddim", "pndm"])
def test_the_last_step_ends_where_the_family_s_own_config_says(solver: str) -> None:
    """At no noise at all, or at the noise of the first training timestep; DDIM's own default is
    the one, PNDM's the other."""
    first = resolve(NOISE | {"set_alpha_to_one": False}, solver, 10).targets[-1]
    assert first > 0
    assert resolve(NOISE | {"set_alpha_to_one": True}, solver, 10).targets[-1] == 0
    unsaid = {key: value for key, value in NOISE.items() if key != "set_alpha_to_one"}
    assert resolve(unsaid, solver, 10).targets[-1] == (0 if solver == "ddim" else first)


def test_even_levels_of_a_flow_go_from_all_noise_down_to_one_step_s_share() -> None:
    levels = resolve(FLOW | {"shift": 1.0}, "flow-euler", 4, even=True).sigmas
    assert levels == pytest.approx((1.0, 0.75, 0.5, 0.25, 0.0))
