"""Whether a way makes what eager makes, on the weights that are there."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from diffusion_edge.engine.measure import probe
from diffusion_edge.engine.run import Trajectory, begin, run_steps
from diffusion_edge.families.base import Family, Loaded
from diffusion_edge.rounding import BOUND, allowed

STEPS = 8
GUIDANCE = 4.0
"""A guided pass has more rows, and makes more of an error."""


def relative(x: Tensor, reference: Tensor) -> float:
    """Relative L2 error."""
    return float(torch.linalg.vector_norm(x - reference) / torch.linalg.vector_norm(reference))


def final_error(stock: Family, own: Family, edge: int, solver: str) -> tuple[float, float]:
    """Relative L2 error of a square's final latent by `own`, and the largest that is rounding."""
    packet = replace(probe(stock, edge, solver, STEPS), guidance=GUIDANCE)
    start = begin(stock, packet)
    expected = run_steps(stock, start, STEPS).latent
    error = relative(run_steps(own, begin(own, packet), STEPS).latent, expected)
    if error <= BOUND:
        return error, BOUND
    return error, allowed(relative(run_steps(stock, _one_ulp(start), STEPS).latent, expected))


@torch.inference_mode()
def image_error(stock: Loaded, own: Loaded, edge: int) -> tuple[float, float]:
    """The same of the image of a square, made of a latent drawn at random."""
    latent = drawn(stock, edge, 1)
    return relative(own.images(latent), stock.images(latent)), BOUND


def drawn(family: Loaded, edge: int, rows: int) -> Tensor:
    """Latents of squares."""
    noise = torch.Generator().manual_seed(0)
    return torch.randn(rows, *family.latent_shape(edge, edge), generator=noise).to(family.device)


def _one_ulp(start: Trajectory) -> Trajectory:
    """Its noise changed in the last place."""
    return replace(start, latent=torch.nextafter(start.latent, start.latent + 1))
