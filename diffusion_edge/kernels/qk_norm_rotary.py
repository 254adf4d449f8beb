"""RMSNorm of the heads' queries and keys, and the rotary embedding of their places.

v = x / sqrt(mean(x^2) + eps) weight
(v[2i], v[2i+1]) turned by the angle i of the token
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_edge.kernels.registry import Implementation, Operation, triton


def reference(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    return _one(query, query_weight, cos, sin, eps), _one(key, key_weight, cos, sin, eps)


def _one(x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float) -> Tensor:
    value = x.float()
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + eps) * weight.float()
    if cos is None or sin is None:
        return value.to(x.dtype)
    cos, sin = cos.float()[:, None], sin.float()[:, None]
    a, b = value.reshape(*value.shape[:-1], value.shape[-1] // 2, 2).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).to(x.dtype)


def _complex(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """A turn is the product with a complex number."""
    normed = [
        F.rms_norm(x.contiguous(), x.shape[-1:], weight, eps)
        for x, weight in ((query, query_weight), (key, key_weight))
    ]
    if cos is not None and sin is not None:
        turn = torch.complex(cos.float(), sin.float())[:, None]
        for value in normed:
            torch.view_as_complex(value.view(*value.shape[:-1], value.shape[-1] // 2, 2)).mul_(turn)
    return normed[0], normed[1]


def _triton(*args: Any) -> tuple[Tensor, Tensor]:
    from diffusion_edge.kernels.gpu import qk_norm_rotary as gpu

    return gpu.launch(*args)


FLOAT32 = (torch.float32,)
OPERATION = Operation(
    "qk_norm_rotary",
    "RMSNorm of queries and keys + rotary embedding",
    reference,
    (
        triton(_triton, "lossless", layouts=("contiguous",)),
        Implementation("cpu", _complex, "lossless", ("cpu",), FLOAT32, ("contiguous",)),
    ),
)


@torch.library.custom_op("diffusion_edge::qk_norm_rotary", mutates_args=())
def _op(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = OPERATION.run(
        query, key, query_weight, key_weight, cos, sin, eps
    )
    return found


@_op.register_fake
def _(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape)


def qk_norm_rotary(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Both as they came: (B, tokens, heads, D), D even.

    weights: (D,). cos, sin: (tokens, D / 2), of an angle for each pair; None turns nothing.
    """
    args = (query, key, query_weight, key_weight, cos, sin, eps)
    found: tuple[Tensor, Tensor] = OPERATION(_op, *args)
    return found
