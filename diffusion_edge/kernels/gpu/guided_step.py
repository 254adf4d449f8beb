"""`kernels.guided_step` as one launch: a program has a part of one sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
MOST_HISTORY = 3


@triton.jit
def kernel(
    out, x, weights, predicted, guidance, noise, h1, h2, h3, size, batch,
    H: tl.constexpr, DOUBLED: tl.constexpr, NOISY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """size: values of a sample."""
    sample = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    here = sample.to(tl.int64) * size + at
    value = tl.load(x + here, mask=inside)
    output = tl.load(predicted + here, mask=inside)
    if DOUBLED:
        wanted = tl.load(predicted + batch.to(tl.int64) * size + here, mask=inside)
        output = output + tl.load(guidance + sample) * (wanted - output)
    drawn = output
    if NOISY:
        drawn = tl.load(noise + here, mask=inside)
    old1, old2, old3 = output, output, output
    if H > 0:
        old1 = tl.load(h1 + here, mask=inside)
    if H > 1:
        old2 = tl.load(h2 + here, mask=inside)
    if H > 2:
        old3 = tl.load(h3 + here, mask=inside)
    for row in tl.static_range(1 + H):
        w = weights + (sample * (1 + H) + row) * (3 + H)
        total = tl.load(w) * value
        total = total + tl.load(w + 1) * output
        if NOISY:
            total = total + tl.load(w + 2) * drawn
        if H > 0:
            total = total + tl.load(w + 3) * old1
        if H > 1:
            total = total + tl.load(w + 4) * old2
        if H > 2:
            total = total + tl.load(w + 5) * old3
        if row == 0:
            tl.store(out + here, total, mask=inside)
        elif row == 1:
            tl.store(h1 + here, total, mask=inside)
        elif row == 2:
            tl.store(h2 + here, total, mask=inside)
        else:
            tl.store(h3 + here, total, mask=inside)


def launch(
    x: Tensor,
    weights: Tensor,
    predicted: Tensor,
    guidance: Tensor,
    noise: Tensor | None,
    history: Sequence[Tensor],
) -> Tensor:
    """Products and sums are not contracted, so that the bits are the reference's."""
    if len(history) > MOST_HISTORY:
        raise ValueError(f"{len(history)} history tensors; at most {MOST_HISTORY} are supported")
    if not all(tensor.is_contiguous() for tensor in history):
        raise ValueError("a history tensor is not contiguous")
    out = torch.empty_like(x)
    if not x.numel():
        return out
    batch, size = len(x), x[0].numel()
    olds = (*history, *(x,) * (MOST_HISTORY - len(history)))
    kernel[(batch, triton.cdiv(size, BLOCK))](
        out,
        x,
        weights.contiguous(),
        predicted.contiguous(),
        guidance.contiguous(),
        x if noise is None else noise.contiguous(),
        *olds,
        size,
        batch,
        H=len(history),
        DOUBLED=len(predicted) != batch,
        NOISY=noise is not None,
        BLOCK=BLOCK,
        enable_fp_fusion=False,
    )
    return out
