"""Noise levels: a solver and a step count, resolved once, before the first step.

diffusers decides which timesteps and sigmas a family's config means; what comes out is a plain
record that travels in the packet, so that every stage works on the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from diffusion_edge.errors import InvalidRequest, UnsupportedSolver

Prediction = Literal["epsilon", "v_prediction"]
Scaling = Literal["preserving", "exploding"]


@dataclass(frozen=True)
class Schedule:
    """The resolved noise levels of one trajectory of N steps.

    sigmas: N+1 ratios of noise to signal; `sigmas[i]` is the level that step i takes its input
        to have, the last one is where the trajectory ends.
    targets: N levels where each step lands. They are `sigmas[1:]`, except that DDIM steps by a
        whole number of training timesteps, which may miss the next level by rounding.
    timesteps: N values for the denoiser.
    prediction: what the denoiser's output means.
    scaling: how the latent x is held. `preserving`: x = (x0 + sigma noise) / sqrt(1 + sigma^2);
        `exploding`: x = x0 + sigma noise.
    initial_scale: what unit noise is multiplied by to start.
    """

    sigmas: tuple[float, ...]
    targets: tuple[float, ...]
    timesteps: tuple[float, ...]
    prediction: Prediction
    scaling: Scaling
    initial_scale: float

    @property
    def steps(self) -> int:
        return len(self.timesteps)


def resolve(noise: Mapping[str, Any], solver: str, steps: int) -> Schedule:
    """The schedule of `steps` steps of `solver` under a family's noise config.

    `noise` is a diffusers scheduler config. Raises UnsupportedSolver for a solver that is not
    known, and for configs whose steps are not linear in the state; InvalidRequest for the few
    step counts that the stock scheduler rounds to another one, with a timestep of -1.
    """
    if solver not in _RESOLVERS:
        raise UnsupportedSolver(
            f"solver {solver!r} is not known; known: {', '.join(_RESOLVERS)}", param="solver"
        )
    for option in ("thresholding", "clip_sample", "rescale_betas_zero_snr"):
        if noise.get(option):
            raise UnsupportedSolver(
                f"the noise config sets {option}, which a linear solver step cannot do",
                param="solver",
            )
    prediction = noise.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise UnsupportedSolver(
            f"prediction type {prediction!r} is not supported; epsilon and v_prediction are",
            param="solver",
        )
    schedule = _RESOLVERS[solver](noise, steps, prediction)
    if schedule.steps != steps:
        raise InvalidRequest(
            f"{steps} steps of {solver} come out as {schedule.steps} on this model's noise "
            "levels, a rounding of the stock scheduler; ask for another number of steps",
            param="num_inference_steps",
        )
    return schedule


_NOISE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
)


def scheduler_config(noise: Mapping[str, Any], **fixed: Any) -> dict[str, Any]:
    """The noise levels of a config of any diffusers scheduler, with `fixed` options on top."""
    return {key: noise[key] for key in _NOISE_KEYS if noise.get(key) is not None} | fixed


def _ddim(noise: Mapping[str, Any], steps: int, prediction: Prediction) -> Schedule:
    from diffusers import DDIMScheduler

    one_at_end = noise.get("set_alpha_to_one", True)
    scheduler = DDIMScheduler.from_config(
        scheduler_config(noise, clip_sample=False, set_alpha_to_one=one_at_end)
    )
    scheduler.set_timesteps(steps)
    timesteps = [int(t) for t in scheduler.timesteps]
    stride = scheduler.config.num_train_timesteps // steps
    alphas = scheduler.alphas_cumprod.double()

    def sigma(alpha: float) -> float:
        return math.sqrt((1 - alpha) / alpha)

    def after(t: int) -> float:
        last = float(scheduler.final_alpha_cumprod)
        return sigma(float(alphas[t - stride]) if t >= stride else last)

    targets = tuple(after(t) for t in timesteps)
    return Schedule(
        sigmas=(*(sigma(float(alphas[t])) for t in timesteps), targets[-1]),
        targets=targets,
        timesteps=tuple(float(t) for t in timesteps),
        prediction=prediction,
        scaling="preserving",
        initial_scale=1.0,
    )


def _euler(noise: Mapping[str, Any], steps: int, prediction: Prediction) -> Schedule:
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler.from_config(scheduler_config(noise))
    scheduler.set_timesteps(steps)
    return _from_sigmas(scheduler, prediction, "exploding", float(scheduler.init_noise_sigma))


def _dpmpp_2m(noise: Mapping[str, Any], steps: int, prediction: Prediction) -> Schedule:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler.from_config(
        scheduler_config(noise, algorithm_type="dpmsolver++", final_sigmas_type="zero")
    )
    scheduler.set_timesteps(steps)
    return _from_sigmas(scheduler, prediction, "preserving", 1.0)


def _from_sigmas(
    scheduler: Any, prediction: Prediction, scaling: Scaling, initial_scale: float
) -> Schedule:
    sigmas = tuple(float(s) for s in scheduler.sigmas)
    timesteps = tuple(float(t) for t in scheduler.timesteps)
    return Schedule(sigmas, sigmas[1:], timesteps, prediction, scaling, initial_scale)


_RESOLVERS: Mapping[str, Callable[[Mapping[str, Any], int, Prediction], Schedule]] = {
    "ddim": _ddim,
    "euler": _euler,
    "dpmpp-2m": _dpmpp_2m,
}
SOLVERS = tuple(_RESOLVERS)
