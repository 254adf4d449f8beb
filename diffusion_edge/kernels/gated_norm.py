"""A gated residual, the norm of it, and its scale and shift, as the blocks of a DiT have them.

residual = x + gate y
normed = norm(residual) (1 + scale) + shift
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_edge.kernels.registry import Implementation, Operation, triton


def reference(
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    rms: bool,
) -> tuple[Tensor, Tensor]:
    """residual is empty where there is no y."""
    total = x.float()
    if y is not None:
        total = total + (y.float() if gate is None else gate.float() * y.float())
    normed = _norm(total, eps, rms) * (1 + scale.float()) + shift.float()
    return x.new_empty(0) if y is None else total.to(x.dtype), normed.to(x.dtype)


def _in_place(
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    rms: bool,
) -> tuple[Tensor, Tensor]:
    """The same, without a tensor for each."""
    total = x
    if y is not None:
        total = x + y if gate is None else (gate * y).add_(x)
    normed = _norm(total, eps, rms).mul_(1 + scale).add_(shift)
    return x.new_empty(0) if y is None else total, normed


def _norm(x: Tensor, eps: float, rms: bool) -> Tensor:
    size = x.shape[-1:]
    return F.rms_norm(x, size, None, eps) if rms else F.layer_norm(x, size, None, None, eps)


def _triton(*args: Any) -> tuple[Tensor, Tensor]:
    from diffusion_edge.kernels.gpu import gated_norm as gpu

    return gpu.launch(*args)


OPERATION = Operation(
    "gated_norm",
    "gated residual + LayerNorm or RMSNorm + scale and shift",
    reference,
    (
        triton(_triton, "lossless", layouts=("contiguous",)),
        Implementation("cpu", _in_place, "exact", ("cpu",), (torch.float32,), large=True),
    ),
)


@torch.library.custom_op("diffusion_edge::gated_norm", mutates_args=())
def _op(
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    rms: bool,
) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = OPERATION.run(x, y, gate, scale, shift, eps, rms)
    return found


@_op.register_fake
def _(
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    rms: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(0) if y is None else torch.empty_like(x), torch.empty_like(x)


def gated_norm(
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    rms: bool = False,
) -> tuple[Tensor, Tensor]:
    """residual and normed, (B, N, D) in x's dtype.

    y: (B, N, D); None leaves x as it is. gate, scale, shift: (B, 1, D); no gate is one of 1. rms:
    RMSNorm instead of LayerNorm.
    """
    residual, normed = OPERATION(_op, x, y, gate, scale, shift, eps, rms)
    return (x if y is None else residual), normed
