"""Modules of diffusers over the fused operations.

A module is fused by giving it another class (`swaps.py`), so that parameters, names and hooks stay
what they are. Where gradients are wanted, or nothing is gained (`registry.pays`), all of them are
the stock modules.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    AdaLayerNormZeroSingle,
)
from torch import Tensor, nn

from diffusion_edge.kernels.gated_norm import gated_norm
from diffusion_edge.kernels.geglu import geglu
from diffusion_edge.kernels.group_norm_silu import group_norm_silu
from diffusion_edge.kernels.registry import pays


class GroupNormSilu(nn.GroupNorm):
    """The SiLU after it, too."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not pays(x):
            return F.silu(super().forward(x))
        return group_norm_silu(x, self.weight, self.bias, self.num_groups, self.eps)


class SiluLinear(nn.Linear):
    """The SiLU before it, too: a block's one activation module served this as well."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.silu(x))


class Geglu(GEGLU):  # type: ignore[misc]
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.is_grad_enabled():
            stock: Tensor = super().forward(hidden_states, *args, **kwargs)
            return stock
        x: Tensor = self.proj(hidden_states)
        if pays(x):
            return geglu(x)
        value, gate = x.chunk(2, -1)
        return value * F.gelu(gate)


# ---------------------------------------------------------------------------- norms of a DiT


class NormZero(AdaLayerNormZero):  # type: ignore[misc]
    """The norm, scaled and shifted, and what steers the rest of the block."""

    def forward(
        self,
        x: Tensor,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        hidden_dtype: torch.dtype | None = None,
        emb: Tensor | None = None,
    ) -> Any:
        if torch.is_grad_enabled() or not pays(x) or self.emb is not None:
            return super().forward(x, timestep, class_labels, hidden_dtype, emb)
        shift, scale, *others = self.linear(self.silu(emb)).chunk(6, dim=1)
        return modulated(x, scale, shift, self.norm.eps), *others


class NormZeroSingle(AdaLayerNormZeroSingle):  # type: ignore[misc]
    def forward(self, x: Tensor, emb: Tensor | None = None) -> Any:
        if torch.is_grad_enabled() or not pays(x):
            return super().forward(x, emb)
        shift, scale, gate = self.linear(self.silu(emb)).chunk(3, dim=1)
        return modulated(x, scale, shift, self.norm.eps), gate


class NormContinuous(AdaLayerNormContinuous):  # type: ignore[misc]
    def forward(self, x: Tensor, conditioning_embedding: Tensor) -> Any:
        if torch.is_grad_enabled() or not pays(x):
            return super().forward(x, conditioning_embedding)
        embedded = self.linear(self.silu(conditioning_embedding).to(x.dtype))
        scale, shift = embedded.chunk(2, dim=1)
        return modulated(x, scale, shift, self.norm.eps)


def modulated(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """LayerNorm of x (B, N, D), scaled and shifted by (B, D)."""
    return gated_norm(x, None, None, scale[:, None], shift[:, None], eps)[1]
