"""`kernels.to_uint8` as one launch: bytes are written side by side, values read where they lie."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from diffusion_edge.kernels.gpu.quantise import ROUND

BLOCK = 1024


@triton.jit
def kernel(
    out, images, size, channels, image_channel, image_pixel,
    ROUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """size: values of an image."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    base = tl.program_id(1).to(tl.int64) * size
    inside = at < size
    place = (at % channels) * image_channel + (at // channels) * image_pixel
    value = tl.load(images + base + place, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(value != value, -1.0, value)  # NaN becomes 0
    value = tl.minimum(tl.maximum(value * 0.5 + 0.5, 0.0), 1.0) * 255.0
    value = (value + ROUND) - ROUND
    tl.store(out + base + at, value.to(tl.uint8), mask=inside)


def launch(images: Tensor) -> Tensor:
    """images: (B, C, H, W), NCHW or NHWC. Sums and products are not contracted: the reference's
    bits."""
    batch, channels, height, width = images.shape
    out = images.new_empty((batch, height, width, channels), dtype=torch.uint8)
    if not out.numel():
        return out
    size, pixels = out[0].numel(), height * width
    strides = (pixels, 1) if images.is_contiguous() else (1, channels)
    kernel[(triton.cdiv(size, BLOCK), batch)](
        out, images, size, channels, *strides, ROUND=ROUND, BLOCK=BLOCK, enable_fp_fusion=False
    )
    return out
