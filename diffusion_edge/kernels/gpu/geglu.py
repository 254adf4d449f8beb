"""`kernels.geglu` as one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def kernel(out, x, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    value = tl.load(x + row * 2 * size + at, mask=inside).to(tl.float32)
    gate = tl.load(x + row * 2 * size + size + at, mask=inside).to(tl.float32)
    value = value * (0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476)))
    tl.store(out + row * size + at, value.to(out.dtype.element_ty), mask=inside)


def launch(x: Tensor) -> Tensor:
    """x: (..., 2D), contiguous."""
    size = x.shape[-1] // 2
    out = x.new_empty((*x.shape[:-1], size))
    if out.numel():
        kernel[(out.numel() // size, triton.cdiv(size, BLOCK))](out, x, size, BLOCK=BLOCK)
    return out
