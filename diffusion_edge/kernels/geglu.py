"""GEGLU: the first half of x times the GELU of the second (Shazeer 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_edge.kernels.registry import Implementation, Operation, triton


def reference(x: Tensor) -> Tensor:
    value, gate = x.float().chunk(2, -1)
    return (value * F.gelu(gate)).to(x.dtype).contiguous()


def _in_place(x: Tensor) -> Tensor:
    """The product takes no tensor of its own."""
    value, gate = x.chunk(2, -1)
    return F.gelu(gate).mul_(value).contiguous()


def _triton(x: Tensor) -> Tensor:
    from diffusion_edge.kernels.gpu import geglu as gpu

    return gpu.launch(x)


OPERATION = Operation(
    "geglu",
    "GEGLU",
    reference,
    (
        triton(_triton, "lossless", layouts=("contiguous",)),
        Implementation("cpu", _in_place, "exact", ("cpu",), (torch.float32,), large=True),
    ),
)


@torch.library.custom_op("diffusion_edge::geglu", mutates_args=())
def _op(x: Tensor) -> Tensor:
    found: Tensor = OPERATION.run(x)
    return found


@_op.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def geglu(x: Tensor) -> Tensor:
    """(..., D) of x (..., 2D), contiguous."""
    found: Tensor = OPERATION(_op, x)
    return found
