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

Prediction = Literal["epsilon", "v_prediction", "flow_prediction"]
Scaling = Literal["preserving", "exploding", "flow"]


@dataclass(frozen=True)
class Schedule:
    """The resolved noise levels of one trajectory of N steps.

    sigmas: N+1 levels; `sigmas[i]` is the one that step i takes its input to have, the last one
        is where the trajectory ends.
    origins: N levels that steps depart from. They are `sigmas[:-1]`, except that PNDM's second
        evaluation takes the first step anew.
    targets: N levels where each step lands. They are `sigmas[1:]`, except that DDIM and PNDM step
        by a whole number of training timesteps, which may miss the next level by rounding.
    timesteps: N values for the denoiser.
    prediction: what the denoiser's output means.
    scaling: how the latent x is held, and with it what a sigma is. `preserving`: x = (x0 + sigma
        noise) / sqrt(1 + sigma^2); `exploding`: x = x0 + sigma noise; `flow`: x = (1 - sigma) x0
        + sigma noise.
    initial_scale: what unit noise is multiplied by to start.
    """

    sigmas: tuple[float, ...]
    origins: tuple[float, ...]
    targets: tuple[float, ...]
    timesteps: tuple[float, ...]
    prediction: Prediction
    scaling: Scaling
    initial_scale: float

    @property
    def steps(self) -> int:
        return len(self.timesteps)


def resolved_steps(solver: str, asked: int) -> int:
    """Evaluations that `asked` steps of a solver come to: PNDM takes its first step twice."""
    return asked + 1 if solver == "pndm" and asked > 1 else asked


def resolve(
    noise: Mapping[str, Any], solver: str, steps: int, tokens: int = 0, even: bool = False
) -> Schedule:
    """The schedule of `steps` resolved steps of `solver` under a family's noise config.

    `noise` is a diffusers scheduler config. tokens: of the picture, on which the shift of a flow
    may depend. even: flow-euler's levels go evenly from 1 to 1/N before the shift.

    Raises UnsupportedSolver for a solver that is not known or does not fit the config, and for
    configs whose steps are not linear in the state; InvalidRequest for the few step counts that
    the stock scheduler rounds to another one.
    """
    check(noise, solver, steps)
    if solver in _FLOW:
        schedule = _FLOW[solver](noise, steps, dynamic_shift(noise, tokens), even)
    else:
        schedule = _DIFFUSION[solver](noise, steps)
    if schedule.steps != steps:
        raise _other_count(solver, steps, schedule.steps)
    return schedule


def check(noise: Mapping[str, Any], solver: str, steps: int) -> None:
    """Raises what `resolve` raises of the same, whatever the picture's size; needs no diffusers,
    which takes seconds to import and 150 MiB."""
    if solver not in SOLVERS:
        raise UnsupportedSolver(
            f"solver {solver!r} is not known; known: {', '.join(SOLVERS)}", param="solver"
        )
    if solver not in fitting(noise):
        raise UnsupportedSolver(
            f"solver {solver!r} does not fit a model of {_prediction(noise)}; "
            f"those that do: {', '.join(fitting(noise))}",
            param="solver",
        )
    for option in ("thresholding", "clip_sample", "rescale_betas_zero_snr", "stochastic_sampling"):
        if noise.get(option):
            raise UnsupportedSolver(
                f"the noise config sets {option}, which a linear solver step cannot do",
                param="solver",
            )
    made = steps_made(noise, solver, steps)
    if made != steps:
        raise _other_count(solver, steps, made)


def steps_made(noise: Mapping[str, Any], solver: str, steps: int) -> int:
    """How many steps the stock scheduler makes where `steps` resolved ones are wanted.

    With spacing `trailing` it goes down from T by T / asked until it is below 0, and the rounding
    of that quotient may leave room for one more. PNDM takes its first step twice, if it has two.
    """
    asked = max(1, steps - 1) if solver == "pndm" else steps
    if _spaced_by_timesteps(noise, solver):
        timesteps = noise.get("num_train_timesteps") or 1000
        asked = math.ceil(timesteps / (timesteps / asked))
    return resolved_steps(solver, asked)


def _spaced_by_timesteps(noise: Mapping[str, Any], solver: str) -> bool:
    trailing = noise.get("timestep_spacing") == "trailing"
    return trailing and solver in _DIFFUSION and solver != "dpmpp-2m-karras"


def _other_count(solver: str, steps: int, made: int) -> InvalidRequest:
    return InvalidRequest(
        f"{steps} steps of {solver} come out as {made} on this model's noise levels, a rounding of "
        "the stock scheduler; ask for another number of steps",
        param="num_inference_steps",
    )


def dynamic_shift(noise: Mapping[str, Any], tokens: int) -> float | None:
    """The exponent of a flow's shift for a picture of `tokens`, linear in them; None if fixed.

    As the pipelines of FLUX and SD3 have it: base_shift at base_image_seq_len tokens, max_shift at
    max_image_seq_len.
    """
    if not noise.get("use_dynamic_shifting"):
        return None
    least, most = noise.get("base_image_seq_len", 256), noise.get("max_image_seq_len", 4096)
    low, high = noise.get("base_shift", 0.5), noise.get("max_shift", 1.15)
    slope: float = (high - low) / (most - least)
    exponent: float = tokens * slope + (low - slope * least)
    return exponent


def fitting(noise: Mapping[str, Any]) -> tuple[str, ...]:
    """The solvers for a family's noise config: those of flow matching, or all others."""
    return tuple(_FLOW if _prediction(noise) == "flow_prediction" else _DIFFUSION)


def _prediction(noise: Mapping[str, Any]) -> Prediction:
    if str(noise.get("_class_name", "")).startswith("FlowMatch") or noise.get("use_flow_sigmas"):
        return "flow_prediction"
    prediction = noise.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction", "flow_prediction"):
        raise UnsupportedSolver(
            f"prediction type {prediction!r} is not supported; epsilon, v_prediction and "
            "flow_prediction are",
            param="solver",
        )
    known: Prediction = prediction
    return known


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


@dataclass(frozen=True)
class Bounds:
    """What a model of some noise predicts, and the largest timestep and sigma that it has learned;
    both start at 0."""

    prediction: Prediction
    timestep: float
    sigma: float


def bounds(noise: Mapping[str, Any]) -> Bounds:
    """Raises UnsupportedSolver for a prediction type that is not known."""
    count = noise.get("num_train_timesteps") or _TRAINED["num_train_timesteps"]
    prediction = _prediction(noise)
    if prediction == "flow_prediction":
        return Bounds(prediction, float(count), 1.0)
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(scheduler_config(noise))
    return Bounds(prediction, float(count), _sigma_of(float(scheduler.alphas_cumprod[-1])))


# ---------------------------------------------------------------------------- what a model learned

_TRAINED: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
"""What ties a timestep to its noise, and what diffusers takes where a config leaves it out."""

_CHOICES = (
    "timestep_spacing",
    "steps_offset",
    "shift",
    "use_dynamic_shifting",
    "base_shift",
    "max_shift",
)
"""By which a config chooses the levels of a trajectory; any model can work at any of them."""


def trained_unlike(noise: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """One clause for each thing that a model of `noise` learned otherwise than one of `other`:
    what a timestep says of the noise in a latent, and what the denoiser's output means.

    Raises UnsupportedSolver for a prediction type that is not known.
    """
    ours, theirs = _trained(noise), _trained(other)
    return [
        f"{key} is {_short(value)}, not {_short(theirs.get(key))}"
        for key, value in ours.items()
        if value != theirs.get(key)
    ]


def chosen_unlike(noise: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """One clause for each choice of levels that both make, and differently."""
    both = [key for key in _CHOICES if key in noise and key in other]
    unlike = [key for key in both if noise[key] != other[key]]
    return [f"{key} is {_short(noise[key])}, not {_short(other[key])}" for key in unlike]


def _trained(noise: Mapping[str, Any]) -> dict[str, Any]:
    prediction = _prediction(noise)
    keys = ("num_train_timesteps",) if prediction == "flow_prediction" else tuple(_TRAINED)
    found = {key: _TRAINED[key] if noise.get(key) is None else noise[key] for key in keys}
    return {"prediction_type": prediction} | found


def _short(value: Any) -> str:
    return str(value)[:60]


# ---------------------------------------------------------------------------- by training timestep


def _sigma_of(alpha_product: float) -> float:
    """Noise to signal, from the share of the signal's power that is left."""
    return math.sqrt((1 - alpha_product) / alpha_product)


def _ddim(noise: Mapping[str, Any], steps: int) -> Schedule:
    from diffusers import DDIMScheduler

    one_at_end = noise.get("set_alpha_to_one", True)
    scheduler = DDIMScheduler.from_config(
        scheduler_config(noise, clip_sample=False, set_alpha_to_one=one_at_end)
    )
    scheduler.set_timesteps(steps)
    timesteps = [int(t) for t in scheduler.timesteps]
    return _by_timestep(scheduler, noise, timesteps, timesteps, steps)


def _pndm(noise: Mapping[str, Any], steps: int) -> Schedule:
    from diffusers import PNDMScheduler

    one_at_end = noise.get("set_alpha_to_one", False)
    scheduler = PNDMScheduler.from_config(
        scheduler_config(noise, skip_prk_steps=True, set_alpha_to_one=one_at_end)
    )
    asked = max(1, steps - 1)
    scheduler.set_timesteps(asked)
    timesteps = [int(t) for t in scheduler.timesteps]
    departures = list(timesteps)
    if len(timesteps) > 1:
        # The second evaluation is at the level that the first step reached, and repeats that step.
        departures[1] += int(scheduler.config.num_train_timesteps) // asked
    return _by_timestep(scheduler, noise, timesteps, departures, asked)


def _by_timestep(
    scheduler: Any,
    noise: Mapping[str, Any],
    timesteps: list[int],
    departures: list[int],
    asked: int,
) -> Schedule:
    """Steps of a whole stride of training timesteps down from `departures`."""
    stride = int(scheduler.config.num_train_timesteps) // asked
    alphas = scheduler.alphas_cumprod.double()
    final = _sigma_of(float(scheduler.final_alpha_cumprod))
    levels = [_sigma_of(float(alphas[t])) for t in timesteps]
    targets = [_sigma_of(float(alphas[t - stride])) if t >= stride else final for t in departures]
    return Schedule(
        sigmas=(*levels, targets[-1]),
        origins=tuple(_sigma_of(float(alphas[t])) for t in departures),
        targets=tuple(targets),
        timesteps=tuple(float(t) for t in timesteps),
        prediction=_prediction(noise),
        scaling="preserving",
        initial_scale=1.0,
    )


# ---------------------------------------------------------------------------- by sigma


def _euler(noise: Mapping[str, Any], steps: int) -> Schedule:
    from diffusers import EulerDiscreteScheduler

    return _by_sigma(EulerDiscreteScheduler.from_config(scheduler_config(noise)), noise, steps)


def _euler_ancestral(noise: Mapping[str, Any], steps: int) -> Schedule:
    from diffusers import EulerAncestralDiscreteScheduler

    scheduler = EulerAncestralDiscreteScheduler.from_config(scheduler_config(noise))
    return _by_sigma(scheduler, noise, steps)


def _lms(noise: Mapping[str, Any], steps: int) -> Schedule:
    from diffusers import LMSDiscreteScheduler

    return _by_sigma(LMSDiscreteScheduler.from_config(scheduler_config(noise)), noise, steps)


def _dpmpp_2m(noise: Mapping[str, Any], steps: int, **options: Any) -> Schedule:
    from diffusers import DPMSolverMultistepScheduler

    options = {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"} | options
    scheduler = DPMSolverMultistepScheduler.from_config(scheduler_config(noise, **options))
    return _by_sigma(scheduler, noise, steps)


def _dpmpp_2m_karras(noise: Mapping[str, Any], steps: int) -> Schedule:
    return _dpmpp_2m(noise, steps, use_karras_sigmas=True)


def _unipc(noise: Mapping[str, Any], steps: int, **options: Any) -> Schedule:
    from diffusers import UniPCMultistepScheduler

    options = {"final_sigmas_type": "zero"} | options
    scheduler = UniPCMultistepScheduler.from_config(scheduler_config(noise, **options))
    return _by_sigma(scheduler, noise, steps)


def _flow_euler(noise: Mapping[str, Any], steps: int, mu: float | None, even: bool) -> Schedule:
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler

    keys = ("num_train_timesteps", "shift", "shift_terminal", "use_dynamic_shifting")
    known = {key: noise[key] for key in (*keys, "time_shift_type") if noise.get(key) is not None}
    if "flow_shift" in noise:
        known.setdefault("shift", noise["flow_shift"])
    asked: dict[str, Any] = {} if mu is None else {"mu": mu}
    if even:
        asked["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(known)
    return _by_sigma(scheduler, noise, steps, **asked)


def _flow_options(noise: Mapping[str, Any], mu: float | None) -> dict[str, Any]:
    fixed = noise.get("flow_shift", noise.get("shift", 1.0))
    shift = fixed if mu is None else math.exp(mu)
    return {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}


def _flow_dpmpp_2m(noise: Mapping[str, Any], steps: int, mu: float | None, even: bool) -> Schedule:
    return _dpmpp_2m(noise, steps, **_flow_options(noise, mu))


def _flow_unipc(noise: Mapping[str, Any], steps: int, mu: float | None, even: bool) -> Schedule:
    return _unipc(noise, steps, **_flow_options(noise, mu))


def _by_sigma(scheduler: Any, noise: Mapping[str, Any], steps: int, **asked: Any) -> Schedule:
    """From a scheduler that keeps sigmas; the class says how it holds the latent."""
    scheduler.set_timesteps(steps, **asked)
    sigmas = tuple(float(s) for s in scheduler.sigmas)
    name, prediction = type(scheduler).__name__, _prediction(noise)
    if prediction == "flow_prediction":
        scaling: Scaling = "flow"
    else:
        scaling = "exploding" if name.startswith(("Euler", "LMS")) else "preserving"
    return Schedule(
        sigmas=sigmas,
        origins=sigmas[:-1],
        targets=sigmas[1:],
        timesteps=tuple(float(t) for t in scheduler.timesteps),
        prediction=prediction,
        scaling=scaling,
        initial_scale=float(getattr(scheduler, "init_noise_sigma", 1.0)),
    )


_DIFFUSION: Mapping[str, Callable[[Mapping[str, Any], int], Schedule]] = {
    "ddim": _ddim,
    "euler": _euler,
    "euler-ancestral": _euler_ancestral,
    "dpmpp-2m": _dpmpp_2m,
    "dpmpp-2m-karras": _dpmpp_2m_karras,
    "dpmpp-2m-sde": _dpmpp_2m,
    "unipc": _unipc,
    "lms": _lms,
    "pndm": _pndm,
}
_FLOW: Mapping[str, Callable[[Mapping[str, Any], int, float | None, bool], Schedule]] = {
    "flow-euler": _flow_euler,
    "flow-dpmpp-2m": _flow_dpmpp_2m,
    "flow-unipc": _flow_unipc,
}
SOLVERS = (*_DIFFUSION, *_FLOW)
