"""What a VAE decodes, (B, C, H, W) in [-1, 1], as 8-bit pixels (B, H, W, C), rounded as diffusers
does. NaN becomes 0."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffusion_edge.kernels.registry import DENSE, Implementation, Operation, triton


def reference(images: Tensor) -> Tensor:
    levels = ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().nan_to_num(0.0)
    return levels.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def _by_bytes(images: Tensor) -> Tensor:
    """Rounded in one tensor and moved as bytes, a channel at a time, which is a fourth of the
    memory; numpy's casts are faster than torch's here."""
    levels = images.detach().mul(0.5).add_(0.5).clamp_(0, 1).mul_(255).round_()
    with np.errstate(invalid="ignore"):  # NaN
        cast = levels.numpy().astype(np.uint8, order="K").transpose(0, 2, 3, 1)
    if cast.flags.c_contiguous:
        return torch.from_numpy(cast)
    pixels = np.empty(cast.shape, np.uint8)
    for channel in range(cast.shape[-1]):
        pixels[..., channel] = cast[..., channel]
    return torch.from_numpy(pixels)


def _triton(images: Tensor) -> Tensor:
    from diffusion_edge.kernels.gpu import to_uint8 as gpu

    return gpu.launch(images)


OPERATION = Operation(
    "to_uint8",
    "VAE output to 8-bit pixels, NHWC",
    reference,
    (
        triton(_triton, "exact", layouts=DENSE),
        Implementation("cpu", _by_bytes, "exact", ("cpu",), (torch.float32,)),
    ),
)


@torch.library.custom_op("diffusion_edge::to_uint8", mutates_args=())
def _op(images: Tensor) -> Tensor:
    found: Tensor = OPERATION.run(images)
    return found


@_op.register_fake
def _(images: Tensor) -> Tensor:
    batch, channels, height, width = images.shape
    return images.new_empty((batch, height, width, channels), dtype=torch.uint8)


def to_uint8(images: Tensor) -> Tensor:
    """uint8 (B, H, W, C), contiguous."""
    found: Tensor = OPERATION(_op, images)
    return found
