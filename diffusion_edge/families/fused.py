"""A family's models with the fused operations in place of diffusers' modules, where some are faster
on its device, after a look at whether the models still say the same."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_edge.families.pipeline import PipelineFamily
from diffusion_edge.kernels.operations import OPERATIONS
from diffusion_edge.kernels.registry import REFERENCE, Case, all_large
from diffusion_edge.kernels.swaps import RULES, Swap, put, swaps
from diffusion_edge.rounding import BOUND, allowed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fused:
    """By operation: how many places it took in the models, or why it took none."""

    places: Mapping[str, int]
    refused: Mapping[str, str]


def fuse(family: PipelineFamily) -> Fused:
    """Fuses what is faster on the family's device; leaves out an operation whose models say
    something else than before, beyond rounding."""
    wanted, refused = _wanted(family)
    if not wanted:
        return Fused({}, refused)
    known, taken = said(family, 0.0), dict(wanted)
    undo = put([swap for each in wanted.values() for swap in each])
    if not same(family, known):
        put(undo)
        taken = {name: each for name, each in wanted.items() if _alone(family, each, known)}
        put([swap for each in taken.values() for swap in each])
    refused |= dict.fromkeys(wanted.keys() - taken, "the models said something else with it")
    found = Fused({name: len(each) for name, each in taken.items()}, refused)
    log.info("%s: fused %s; not fused %s", family.stage, found.places, found.refused)
    return found


def _wanted(family: PipelineFamily) -> tuple[dict[str, Sequence[Swap]], dict[str, str]]:
    case = Case(family.device.type, family.dtype, "contiguous")
    wanted: dict[str, Sequence[Swap]] = {}
    refused: dict[str, str] = {}
    for operation in (each for each in OPERATIONS if each.name in RULES):
        choice = operation.choice(case)
        found = swaps(operation.name, (family.denoiser, family.parts["vae"]))
        if not found:
            refused[operation.name] = "the models have no place for it"
        elif choice.taken.name == REFERENCE:
            refused[operation.name] = "; ".join(f"{n}: {w}" for n, w in choice.refused.items())
        else:
            wanted[operation.name] = found
    return wanted, refused


def _alone(family: PipelineFamily, wanted: Sequence[Swap], known: Sequence[Tensor]) -> bool:
    """Whether the models say the same with one operation fused; it is not when this returns."""
    undo = put(wanted)
    alike = same(family, known)
    put(undo)
    if not alike:
        log.warning("%s: %s makes a difference", family.stage, wanted[0])
    return alike


# ---------------------------------------------------------------------------- equality


def same(family: PipelineFamily, known: Sequence[Tensor]) -> bool:
    """Beyond BOUND a difference still is rounding if one unit in the last place of the input makes
    one about as large; both are asked of the models as they are now."""
    own = said(family, 0.0)
    errors = [_relative(x, y) for x, y in zip(own, known, strict=True)]
    if all(error <= BOUND for error in errors):
        return True
    nudged = said(family, torch.finfo(family.dtype).eps)
    floors = [_relative(x, y) for x, y in zip(nudged, own, strict=True)]
    return all(error <= allowed(floor) for error, floor in zip(errors, floors, strict=True))


@torch.inference_mode()
@all_large()
def said(family: PipelineFamily, nudge: float) -> tuple[Tensor, Tensor]:
    """What denoiser and VAE make of a noise of the smallest size, all of it larger by a share."""
    edge = family.sizes.smallest
    shape = (1, *family.latent_shape(edge, edge))
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * (1 + nudge)
    latent = drawn.to(family.device)
    timestep, guidance = (torch.tensor([v], device=family.device) for v in (500.0, 3.5))
    predicted = family.predict(latent, timestep, guidance, family.encode_text([""]))
    vae = family.parts["vae"]
    decoded: Tensor = vae.decode(latent.to(vae.dtype), return_dict=False)[0]
    return predicted, decoded.float()


def _relative(x: Tensor, reference: Tensor) -> float:
    """L2; NaN where either has one."""
    return float((x - reference).norm() / reference.norm())
