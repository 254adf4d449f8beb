"""`kernels.group_norm_silu` in three launches and two reads of x, for NCHW and NHWC alike.

A program has a tile of channels by pixels. `moments`: mean and sum of squared deviations of each
channel over a part of its pixels. `combine`: those of each group (Chan et al. 1979), folded with
the weight into a centre and a scale for each channel. `finish`: the result.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NCHW_TILE, NHWC_TILE = (4, 512), (64, 32)
"""Channels by pixels; the ones that lie side by side come in long runs."""
PROGRAMS = 1024
"""That `moments` has at least, where there are as many tiles."""
MOST_PARTS = 64


@triton.jit
def moments(
    x, means, squares, channels, pixels, part_pixels, parts, x_batch, x_channel, x_pixel,
    TILE_C: tl.constexpr, TILE_P: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    channel = tl.program_id(1) * TILE_C + tl.arange(0, TILE_C)
    batch = tl.program_id(2).to(tl.int64)
    known = channel < channels
    start = part * part_pixels
    end = tl.minimum(start + part_pixels, pixels)
    base = x + batch * x_batch + channel[:, None].to(tl.int64) * x_channel
    count = 0.0
    mean = tl.zeros((TILE_C,), tl.float32)
    square = tl.zeros((TILE_C,), tl.float32)
    for first in range(start, end, TILE_P):
        pixel = first + tl.arange(0, TILE_P)
        inside = known[:, None] & (pixel < end)[None, :]
        value = tl.load(base + pixel[None, :] * x_pixel, mask=inside, other=0.0).to(tl.float32)
        here = tl.minimum(end - first, TILE_P).to(tl.float32)
        mean_here = tl.sum(value, 1) / here
        off = tl.where(inside, value - mean_here[:, None], 0.0)
        delta = mean_here - mean
        mean += delta * (here / (count + here))
        square += tl.sum(off * off, 1) + delta * delta * (count * here / (count + here))
        count += here
    at = (batch * channels + channel) * parts + part
    tl.store(means + at, mean, mask=known)
    tl.store(squares + at, square, mask=known)


@triton.jit
def combine(
    means, squares, weight, centres, scales, channels, size, pixels, part_pixels, parts, eps,
    TILE_C: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """size: channels of a group."""
    group, batch = tl.program_id(0), tl.program_id(1)
    place = tl.arange(0, TILE_C)
    channel = group * size + place
    part = tl.arange(0, TILE_K)
    known = place < size
    inside = known[:, None] & (part < parts)[None, :]
    at = (batch * channels + channel)[:, None] * parts + part[None, :]
    mean = tl.load(means + at, mask=inside, other=0.0)
    square = tl.load(squares + at, mask=inside, other=0.0)
    count = tl.maximum(tl.minimum(pixels - part * part_pixels, part_pixels), 0).to(tl.float32)
    weights = tl.where(inside, count[None, :], 0.0)
    total = pixels.to(tl.float32) * size
    centre = tl.sum(tl.sum(mean * weights, 1), 0) / total
    off = mean - centre
    variance = tl.sum(tl.sum(square + weights * off * off, 1), 0) / total
    scale = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    to = batch * channels + channel
    tl.store(centres + to, tl.zeros((TILE_C,), tl.float32) + centre, mask=known)
    tl.store(scales + to, scale / tl.sqrt(variance + eps), mask=known)


@triton.jit
def finish(
    out, x, centres, scales, bias, channels, pixels, x_batch, x_channel, x_pixel,
    TILE_C: tl.constexpr, TILE_P: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * TILE_P + tl.arange(0, TILE_P)
    channel = tl.program_id(1) * TILE_C + tl.arange(0, TILE_C)
    batch = tl.program_id(2).to(tl.int64)
    known = channel < channels
    inside = known[:, None] & (pixel < pixels)[None, :]
    at = batch * x_batch + channel[:, None].to(tl.int64) * x_channel + pixel[None, :] * x_pixel
    of = batch * channels + channel
    centre = tl.load(centres + of, mask=known, other=0.0)
    scale = tl.load(scales + of, mask=known, other=0.0)
    shift = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    value = (value - centre[:, None]) * scale[:, None] + shift[:, None]
    value = value / (1.0 + tl.exp(-value))
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


def launch(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """x: (B, C, ...), NCHW or NHWC."""
    out = torch.empty_like(x)
    if not x.numel():
        return out
    batch, channels = x.shape[:2]
    pixels, size = x[0, 0].numel(), channels // groups
    nhwc = not x.is_contiguous()
    strides = (channels * pixels, *((1, channels) if nhwc else (pixels, 1)))
    tile_c, tile_p = NHWC_TILE if nhwc else NCHW_TILE
    rows = triton.cdiv(channels, tile_c)
    tiles = triton.cdiv(pixels, tile_p)
    parts = min(MOST_PARTS, tiles, triton.cdiv(PROGRAMS, batch * rows))
    part_pixels = triton.cdiv(tiles, parts) * tile_p
    means, squares = torch.empty((2, batch, channels, parts), device=x.device)
    centres, scales = torch.empty((2, batch, channels), device=x.device)
    moments[(parts, rows, batch)](
        x, means, squares, channels, pixels, part_pixels, parts, *strides, tile_c, tile_p
    )
    combine[(groups, batch)](
        means, squares, weight, centres, scales, channels, size, pixels, part_pixels, parts, eps,
        triton.next_power_of_2(size), triton.next_power_of_2(parts),
    )  # fmt: skip
    finish[(tiles, rows, batch)](
        out, x, centres, scales, bias, channels, pixels, *strides, tile_c, tile_p
    )
    return out
