"""`kernels.quantise`, each way one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from diffusion_edge.kernels.quantise import LEVELS

BLOCK = 1024
ROUND = 12582912.0
"""1.5 * 2^23: a float32 below 2^22 that it is added to, and taken off again, is rounded, to even
where it lies between two."""


@triton.jit
def quantising(
    levels, scales, x, size, MOST: tl.constexpr, ROUND: tl.constexpr, BLOCK: tl.constexpr
):
    """A program has a channel; it reads it twice."""
    channel = tl.program_id(0)
    base = channel.to(tl.int64) * size
    largest = tl.zeros((BLOCK,), tl.float32)
    broken = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        value = tl.load(x + base + at, mask=at < size, other=0.0)
        broken = tl.where(value != value, 1, broken)
        largest = tl.maximum(largest, tl.where(value != value, 0.0, tl.abs(value)))
    scale = tl.div_rn(tl.max(largest, 0), MOST * 1.0)
    scale = tl.where(tl.max(broken, 0) > 0, float("nan"), scale)
    tl.store(scales + channel, scale)
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        value = tl.load(x + base + at, mask=at < size, other=0.0)
        value = tl.where(scale > 0, tl.div_rn(value, tl.where(scale > 0, scale, 1.0)), 0.0)
        value = tl.minimum(tl.maximum((value + ROUND) - ROUND, -1.0 * MOST), 1.0 * MOST)
        tl.store(levels + base + at, value.to(tl.int8), mask=at < size)


@triton.jit
def dequantising(out, levels, scales, size, BLOCK: tl.constexpr):
    channel = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = channel.to(tl.int64) * size + at
    value = tl.load(levels + here, mask=at < size, other=0).to(tl.float32)
    tl.store(out + here, value * tl.load(scales + channel), mask=at < size)


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: (1, C, ...), contiguous. Sums and products are not contracted: the reference's bits."""
    levels = torch.empty_like(x, dtype=torch.int8)
    scales = x.new_empty(x.shape[1])
    quantising[(x.shape[1],)](
        levels, scales, x, x[0, 0].numel(), LEVELS, ROUND, BLOCK, enable_fp_fusion=False
    )
    return levels, scales


def dequantised(levels: Tensor, scale: Tensor) -> Tensor:
    out = scale.new_empty(levels.shape)
    size = levels[0, 0].numel()
    dequantising[(levels.shape[1], triton.cdiv(size, BLOCK))](
        out, levels, scale.contiguous(), size, BLOCK
    )
    return out
