"""GroupNorm and SiLU: silu((x - mean) / sqrt(var + eps) * weight + bias), moments by group."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_edge.kernels.registry import DENSE, Implementation, Operation, layout_of, triton


def reference(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    normed = F.group_norm(x.float(), groups, weight.float(), bias.float(), eps)
    return F.silu(normed).to(x.dtype).contiguous(memory_format=_format(x))


def _in_place(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """SiLU takes no tensor of its own."""
    return F.silu(F.group_norm(x, groups, weight, bias, eps), inplace=True)


def _triton(*args: Any) -> Tensor:
    from diffusion_edge.kernels.gpu import group_norm_silu as gpu

    return gpu.launch(*args)


def _format(x: Tensor) -> torch.memory_format:
    """Of the result: NHWC where x is, else NCHW."""
    last = layout_of(x) == "channels_last"
    return torch.channels_last if last else torch.contiguous_format


OPERATION = Operation(
    "group_norm_silu",
    "GroupNorm + SiLU, NCHW and NHWC",
    reference,
    (
        triton(_triton, "lossless", layouts=DENSE),
        Implementation("cpu", _in_place, "exact", ("cpu",), (torch.float32,), DENSE, large=True),
    ),
)


@torch.library.custom_op("diffusion_edge::group_norm_silu", mutates_args=())
def _op(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    found: Tensor = OPERATION.run(x, weight, bias, groups, eps)
    return found


@_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    return torch.empty_like(x, memory_format=_format(x))


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """(B, C, ...) in x's dtype and layout; weight and bias (C,)."""
    found: Tensor = OPERATION(_op, x, weight, bias, groups, eps)
    return found
