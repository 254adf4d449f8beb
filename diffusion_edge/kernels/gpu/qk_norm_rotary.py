"""`kernels.qk_norm_rotary` as one launch: a program has some heads of queries and of keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUES = 2048
"""Of queries that a program has, and as many of keys."""


@triton.jit
def _one(out, x, weight, cos, sin, row, pair, rows, tokens, heads, size, eps, ROTARY: tl.constexpr,
         ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    at = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (at < size)[None, :]
    here = row[:, None].to(tl.int64) * size + at[None, :]
    value = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    value = value / tl.sqrt(tl.sum(value * value, 1) / size + eps)[:, None]
    value = value * tl.load(weight + at, mask=at < size, other=0.0).to(tl.float32)[None, :]
    if ROTARY:
        token = (row // heads) % tokens
        known = (row < rows)[:, None] & (pair < size // 2)[None, :]
        angle = token[:, None] * (size // 2) + pair[None, :]
        c = tl.load(cos + angle, mask=known, other=0.0).to(tl.float32)
        s = tl.load(sin + angle, mask=known, other=0.0).to(tl.float32)
        a, b = tl.split(tl.reshape(value, (ROWS, BLOCK // 2, 2)))
        value = tl.reshape(tl.join(a * c - b * s, b * c + a * s), (ROWS, BLOCK))
    tl.store(out + here, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def kernel(
    query_out, key_out, query, key, query_weight, key_weight, cos, sin, rows, tokens, heads, size,
    eps, ROTARY: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    pair = tl.arange(0, BLOCK // 2)
    _one(query_out, query, query_weight, cos, sin, row, pair, rows, tokens, heads, size, eps,
         ROTARY, ROWS, BLOCK)  # fmt: skip
    _one(key_out, key, key_weight, cos, sin, row, pair, rows, tokens, heads, size, eps,
         ROTARY, ROWS, BLOCK)  # fmt: skip


def launch(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """query and key: (B, tokens, heads, D), of one shape; query contiguous."""
    key = key.contiguous()
    if query.shape != key.shape:
        raise ValueError(f"queries {tuple(query.shape)} and keys {tuple(key.shape)} are not alike")
    outs = torch.empty_like(query), torch.empty_like(key)
    if not query.numel():
        return outs
    tokens, heads, size = query.shape[1:]
    rows, block = query[..., 0].numel(), triton.next_power_of_2(size)
    at_once = max(1, VALUES // block)
    angles = (query, query)
    if cos is not None and sin is not None:
        angles = (cos.contiguous(), sin.contiguous())
    kernel[(triton.cdiv(rows, at_once),)](
        *outs, query, key, query_weight, key_weight, *angles, rows, tokens, heads, size, eps,
        ROTARY=cos is not None, ROWS=at_once, BLOCK=block,
    )  # fmt: skip
    return outs
