"""The diffusers schedulers that our solvers are held against."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import ModuleType
from typing import Any
from unittest.mock import patch

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor


class FlowEuler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]  # untyped base
    """The stock scheduler with what a pipeline that is not of flow matching asks it for."""

    init_noise_sigma = 1.0

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        return sample


def _with(name: str, **options: Any) -> Callable[[Mapping[str, Any]], Any]:
    def make(noise: Mapping[str, Any]) -> Any:
        config = {k: v for k, v in dict(noise).items() if not k.startswith("_")}
        if "use_flow_sigmas" in options:
            config["flow_shift"] = config.pop("shift", 1.0)
        return getattr(diffusers, name).from_config(config | options)

    return make


def _flow_euler(noise: Mapping[str, Any]) -> Any:
    return FlowEuler.from_config({k: v for k, v in dict(noise).items() if not k.startswith("_")})


_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
_DPM = {"algorithm_type": "dpmsolver++"}

STOCK: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "ddim": _with("DDIMScheduler", clip_sample=False),
    "euler": _with("EulerDiscreteScheduler"),
    "euler-ancestral": _with("EulerAncestralDiscreteScheduler"),
    "dpmpp-2m": _with("DPMSolverMultistepScheduler", **_DPM),
    "dpmpp-2m-karras": _with("DPMSolverMultistepScheduler", **_DPM, use_karras_sigmas=True),
    "dpmpp-2m-sde": _with("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
    "unipc": _with("UniPCMultistepScheduler"),
    "lms": _with("LMSDiscreteScheduler"),
    "pndm": _with("PNDMScheduler", skip_prk_steps=True),
    "flow-euler": _flow_euler,
    "flow-dpmpp-2m": _with("DPMSolverMultistepScheduler", **_DPM, **_FLOW),
    "flow-unipc": _with("UniPCMultistepScheduler", **_FLOW),
}


def random_source(scheduler: Any) -> ModuleType | None:
    """The module whose `randn_tensor` gives the scheduler its noise, if it draws any."""
    module = sys.modules[getattr(diffusers, type(scheduler).__name__, type(scheduler)).__module__]
    return module if hasattr(module, "randn_tensor") else None


def stock_step(
    scheduler: Any, output: Tensor, timestep: Tensor, x: Tensor, noise: Tensor
) -> Tensor:
    """One step of a stock scheduler that draws `noise` where it draws any."""
    source = random_source(scheduler)
    drawing = (
        patch.object(source, "randn_tensor", lambda *args, **kwargs: noise)
        if source
        else nullcontext()
    )
    with drawing:
        stepped: Tensor = scheduler.step(output, timestep, x, return_dict=False)[0]
    return stepped
