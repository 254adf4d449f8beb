"""The stock diffusers pipeline that our engine is held against, and its schedulers by solver."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffusion_edge.bench.workload import Asked, grouped
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.families.hub import INDEX, parts
from diffusion_edge.families.weights import json_object, only, part_files

# ---------------------------------------------------------------------------- schedulers


class FlowEuler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]  # untyped base
    """The stock scheduler with what a pipeline that is not of flow matching asks it for."""

    init_noise_sigma = 1.0

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        return sample


def stock_scheduler(solver: str, config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler of a solver under a family's noise config. KeyError if unknown."""
    return _SCHEDULERS[solver]({k: v for k, v in dict(config).items() if not k.startswith("_")})


def _with(name: str, **options: Any) -> Callable[[dict[str, Any]], Any]:
    def make(config: dict[str, Any]) -> Any:
        if "use_flow_sigmas" in options:
            config["flow_shift"] = config.pop("shift", 1.0)
        return getattr(diffusers, name).from_config(config | options)

    return make


_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
_DPM = {"algorithm_type": "dpmsolver++"}

_SCHEDULERS: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    "ddim": _with("DDIMScheduler", clip_sample=False),
    "euler": _with("EulerDiscreteScheduler"),
    "euler-ancestral": _with("EulerAncestralDiscreteScheduler"),
    "dpmpp-2m": _with("DPMSolverMultistepScheduler", **_DPM),
    "dpmpp-2m-karras": _with("DPMSolverMultistepScheduler", **_DPM, use_karras_sigmas=True),
    "dpmpp-2m-sde": _with("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
    "unipc": _with("UniPCMultistepScheduler"),
    "lms": _with("LMSDiscreteScheduler"),
    "pndm": _with("PNDMScheduler", skip_prk_steps=True),
    "flow-euler": lambda config: FlowEuler.from_config(config),
    "flow-dpmpp-2m": _with("DPMSolverMultistepScheduler", **_DPM, **_FLOW),
    "flow-unipc": _with("UniPCMultistepScheduler", **_FLOW),
}

# ---------------------------------------------------------------------------- the pipeline


def _loaded(folder: Path) -> Any:
    """The pipeline of a folder from the files that our stages are loaded from, without a safety
    checker and the like."""
    index = json_object(folder / INDEX)
    used = parts(index)
    files = {
        f"{part}/{name}": at for part in used for name, at in part_files(folder / part).items()
    }
    unused = [name for name, kind in index.items() if isinstance(kind, list) and name not in used]
    with only({INDEX: folder / INDEX} | files) as shown:
        return DiffusionPipeline.from_pretrained(
            shown,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            **dict.fromkeys(unused),
        )


class StockPipeline:
    """The pipeline that a stage's `model_index.json` names, in float32. InvalidRequest where it
    packs its latents, as FLUX does.

    Schedulers are built once, one for each solver, which costs the stock pipeline less than a
    server that builds one for each request.
    """

    def __init__(self, card: FamilyCard, stage: str, device: torch.device) -> None:
        self._pipeline: Any = _loaded(card.folder(stage)).to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._config = dict(self._pipeline.scheduler.config)
        self._schedulers: dict[str, Any] = {}
        self._size = card.defaults.size
        # What only some pipelines know: no changes to size and prompt, as many tokens as ours.
        told = {
            "use_resolution_binning": False,
            "clean_caption": False,
            "max_sequence_length": card.max_tokens,
        }
        known = inspect.signature(type(self._pipeline).__call__).parameters
        self._options = {name: value for name, value in told.items() if name in known}

    @property
    def name(self) -> str:
        """Of the pipeline's class."""
        return type(self._pipeline).__name__

    def one_by_one(self, requests: Sequence[Asked], output: str = "pil") -> list[Any]:
        """Pictures, or with output `latent` final latents (1, C, h, w), in the requests' order."""
        return [image for asked in requests for image in self._call([asked], output)]

    def by_waiting(self, requests: Sequence[Asked], output: str = "pil") -> list[Any]:
        """As `one_by_one`; those that agree in solver, steps and guidance share a call."""
        found: dict[int, Any] = {}
        for indices in grouped(requests):
            images = self._call([requests[i] for i in indices], output)
            found |= dict(zip(indices, images, strict=True))
        return [found[i] for i in range(len(requests))]

    def one_ulp(self, asked: Asked) -> Tensor:
        """The final latent when the initial noise changes by one unit in the last place."""
        (like,) = self.one_by_one([asked], "latent")
        noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(asked.seed))
        moved: Tensor = self._call([asked], "latent", latents=torch.nextafter(noise, noise + 1))[0]
        return moved

    def _call(self, requests: Sequence[Asked], output: str, **more: Any) -> list[Any]:
        """One call of the pipeline for requests of one group."""
        first = requests[0]
        if first.solver not in self._schedulers:
            self._schedulers[first.solver] = stock_scheduler(first.solver, self._config)
        self._pipeline.scheduler = self._schedulers[first.solver]
        images = self._pipeline(
            [asked.prompt for asked in requests],
            num_inference_steps=first.steps,
            guidance_scale=first.guidance,
            width=self._size,
            height=self._size,
            generator=[torch.Generator().manual_seed(asked.seed) for asked in requests],
            output_type=output,
            **self._options,
            **more,
        ).images
        return self._latents(images) if output == "latent" else list(images)

    def _latents(self, latents: Tensor) -> list[Tensor]:
        if latents.ndim != 4:
            raise InvalidRequest(
                f"{self.name} packs its latents; the benchmark compares those of shape "
                f"(B, C, h, w), not {tuple(latents.shape)}"
            )
        return list(torch.split(latents, 1))
