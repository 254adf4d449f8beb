"""Latents as 8-bit levels with a scale for each channel, and back.

    scale = max |x| / 127 over the channel, level = round(x / scale)

bfloat16, the other codec of the wire, is one cast, and torch's own is one launch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_edge.kernels.registry import Operation, triton

LEVELS = 127
FLOAT32 = (torch.float32,)


def _quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x[0].reshape(x.shape[1], -1).abs().amax(1) / LEVELS
    by_channel = beside(scale, x)
    levels = torch.where(by_channel > 0, x / by_channel, 0.0).round()
    return levels.clamp(-LEVELS, LEVELS).to(torch.int8).contiguous(), scale


def _dequantised(levels: Tensor, scale: Tensor) -> Tensor:
    return (levels.float() * beside(scale, levels)).contiguous()


def beside(scale: Tensor, tensor: Tensor) -> Tensor:
    """A value for each channel, in a shape that multiplies the tensor."""
    return scale.view(1, -1, *(1,) * (tensor.ndim - 2))


def _triton_quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    from diffusion_edge.kernels.gpu import quantise as gpu

    return gpu.quantised(x)


def _triton_dequantised(levels: Tensor, scale: Tensor) -> Tensor:
    from diffusion_edge.kernels.gpu import quantise as gpu

    return gpu.dequantised(levels, scale)


QUANTISE = Operation(
    "quantise",
    "latent to 8-bit levels, a scale for each channel",
    _quantised,
    (triton(_triton_quantised, "exact", dtypes=FLOAT32, layouts=("contiguous",)),),
)
DEQUANTISE = Operation(
    "dequantise",
    "8-bit levels to latent",
    _dequantised,
    (triton(_triton_dequantised, "exact", dtypes=(torch.int8,), layouts=("contiguous",)),),
)


@torch.library.custom_op("diffusion_edge::quantise", mutates_args=())
def _quantise_op(x: Tensor) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = QUANTISE.run(x)
    return found


@_quantise_op.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[1])


@torch.library.custom_op("diffusion_edge::dequantise", mutates_args=())
def _dequantise_op(levels: Tensor, scale: Tensor) -> Tensor:
    found: Tensor = DEQUANTISE.run(levels, scale)
    return found


@_dequantise_op.register_fake
def _(levels: Tensor, scale: Tensor) -> Tensor:
    return scale.new_empty(levels.shape)


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 levels (1, C, ...) and float32 scales (C,) of x (1, C, ...) float32. NaN or an infinity
    in a channel makes its scale such a value."""
    found: tuple[Tensor, Tensor] = QUANTISE(_quantise_op, x)
    return found


def dequantise(levels: Tensor, scale: Tensor) -> Tensor:
    """float32 (1, C, ...)."""
    found: Tensor = DEQUANTISE(_dequantise_op, levels, scale)
    return found
