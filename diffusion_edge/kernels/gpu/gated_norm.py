"""`kernels.gated_norm` as one launch: a program has a token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDE = 2048
"""A token of more values is read by eight warps."""


@triton.jit
def kernel(
    residual, normed, x, y, gate, scale, shift, tokens, size, gate_batch, scale_batch, shift_batch,
    eps, ADDS: tl.constexpr, GATED: tl.constexpr, RMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    batch = row // tokens
    at = tl.arange(0, BLOCK)
    inside = at < size
    here = row.to(tl.int64) * size + at
    value = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        added = tl.load(y + here, mask=inside, other=0.0).to(tl.float32)
        if GATED:
            added = added * tl.load(gate + batch * gate_batch + at, mask=inside, other=0.0).to(
                tl.float32
            )
        value = value + added
        tl.store(residual + here, value.to(residual.dtype.element_ty), mask=inside)
    if not RMS:
        mean = tl.sum(value, 0) / size
        value = tl.where(inside, value - mean, 0.0)
    value = value / tl.sqrt(tl.sum(value * value, 0) / size + eps)
    scaled = tl.load(scale + batch * scale_batch + at, mask=inside, other=0.0).to(tl.float32)
    shifted = tl.load(shift + batch * shift_batch + at, mask=inside, other=0.0).to(tl.float32)
    value = value * (1.0 + scaled) + shifted
    tl.store(normed + here, value.to(normed.dtype.element_ty), mask=inside)


def launch(
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    rms: bool,
) -> tuple[Tensor, Tensor]:
    """x: (B, N, D), contiguous."""
    residual = x.new_empty(0) if y is None else torch.empty_like(x)
    normed = torch.empty_like(x)
    if not x.numel():
        return residual, normed
    batch, tokens, size = x.shape
    steering = [_rows(each, batch) for each in (scale if gate is None else gate, scale, shift)]
    block = triton.next_power_of_2(size)
    kernel[(batch * tokens,)](
        residual,
        normed,
        x,
        x if y is None else y.contiguous(),
        *steering,
        tokens,
        size,
        *(each.stride(0) for each in steering),
        eps,
        ADDS=y is not None,
        GATED=gate is not None,
        RMS=rms,
        BLOCK=block,
        num_warps=8 if block > WIDE else 4,
    )
    return residual, normed


def _rows(values: Tensor, batch: int) -> Tensor:
    """(B, 1, D) whose last values lie side by side; as it is where it is a part of a wider one."""
    wide = values.expand(batch, 1, -1)
    return wide if wide.stride(-1) == 1 else wide.contiguous()
