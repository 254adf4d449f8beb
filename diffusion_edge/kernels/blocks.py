"""Blocks and attention processors of diffusers' DiTs over the fused operations; as `modules.py`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import JointAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, FluxTransformerBlock
from torch import Tensor

from diffusion_edge.kernels.gated_norm import gated_norm
from diffusion_edge.kernels.qk_norm_rotary import qk_norm_rotary
from diffusion_edge.kernels.registry import pays

LARGEST_HALF = 65504.0


class SingleBlock(BasicTransformerBlock):  # type: ignore[misc]
    """Self-attention, cross-attention and MLP, steered by one table and one embedding for all
    blocks (PixArt)."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if _stock(hidden_states, cross_attention_kwargs) or timestep is None:
            return super().forward(
                hidden_states,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                timestep,
                cross_attention_kwargs,
                class_labels,
                added_cond_kwargs,
            )
        steering = self.scale_shift_table[None] + timestep.reshape(len(hidden_states), 6, -1)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = steering.chunk(6, dim=1)
        _, normed = gated_norm(hidden_states, None, None, scale, shift, self.norm1.eps)
        hidden = gate * self.attn1(normed, attention_mask=attention_mask) + hidden_states
        read = self.attn2(
            hidden,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=encoder_attention_mask,
        )
        hidden, normed = gated_norm(hidden, read, None, scale_mlp, shift_mlp, self.norm2.eps)
        return gate_mlp * self.ff(normed) + hidden


class FluxBlock(FluxTransformerBlock):  # type: ignore[misc]
    """Attention over picture and text at once, then an MLP for each."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if _stock(hidden_states, joint_attention_kwargs):
            return super().forward(
                hidden_states, encoder_hidden_states, temb, image_rotary_emb, joint_attention_kwargs
            )
        normed, *steering = self.norm1(hidden_states, emb=temb)
        normed_text, *steering_text = self.norm1_context(encoder_hidden_states, emb=temb)
        seen, read = self.attn(
            hidden_states=normed,
            encoder_hidden_states=normed_text,
            image_rotary_emb=image_rotary_emb,
        )
        hidden = _after(self.norm2, self.ff, hidden_states, seen, *steering)
        text = _after(
            self.norm2_context, self.ff_context, encoder_hidden_states, read, *steering_text
        )
        if text.dtype == torch.float16:
            text = text.clip(-LARGEST_HALF, LARGEST_HALF)
        return text, hidden


class JointBlock(JointTransformerBlock):  # type: ignore[misc]
    """The same for Stable Diffusion 3, whose last block has no use for the text; some have a second
    attention over the picture alone."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if _stock(hidden_states, joint_attention_kwargs):
            return super().forward(
                hidden_states, encoder_hidden_states, temb, joint_attention_kwargs
            )
        normed, gate, *steering = self.norm1(hidden_states, emb=temb)
        normed_text, *steering_text = (
            (self.norm1_context(encoder_hidden_states, temb),)
            if self.context_pre_only
            else self.norm1_context(encoder_hidden_states, emb=temb)
        )
        seen, read = self.attn(hidden_states=normed, encoder_hidden_states=normed_text)
        hidden = hidden_states
        if self.use_dual_attention:
            *steering, again, gate_again = steering
            hidden = hidden + gate[:, None] * seen
            seen, gate = self.attn2(hidden_states=again), gate_again
        hidden = _after(self.norm2, self.ff, hidden, seen, gate, *steering)
        if self.context_pre_only:
            return None, hidden
        args = (encoder_hidden_states, read, *steering_text)
        return _after(self.norm2_context, self.ff_context, *args), hidden


def _stock(hidden: Tensor, told: dict[str, Any] | None) -> bool:
    """Whether the stock block does it: where nothing is gained, or attention is told more."""
    return torch.is_grad_enabled() or not pays(hidden) or bool(told)


def _after(
    norm: Any,
    mlp: Any,
    hidden: Tensor,
    seen: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    gate_mlp: Tensor,
) -> Tensor:
    """What follows attention: its gated residual, norm, MLP, and the MLP's. Steering: (B, D)."""
    hidden, normed = gated_norm(
        hidden, seen, gate[:, None], scale[:, None], shift[:, None], norm.eps
    )
    after: Tensor = hidden + gate_mlp[:, None] * mlp(normed)
    return after


# ---------------------------------------------------------------------------- attention


class FluxProcessor(FluxAttnProcessor):  # type: ignore[misc]
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        """hidden_states (B, N, D), encoder_hidden_states (B, T, D); places are the text's first."""
        if torch.is_grad_enabled() or attn.fused_projections or image_rotary_emb is None:
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
        cos, sin = (table[:, ::2] for table in image_rotary_emb)
        text = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        ways, norms = (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k)
        parts = [_projected(hidden_states, ways, norms, cos[text:], sin[text:])]
        if encoder_hidden_states is not None:
            ways = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            norms = (attn.norm_added_q, attn.norm_added_k)
            read = _projected(encoder_hidden_states, ways, norms, cos[:text], sin[:text])
            parts = [read, *parts]
        query, key, value = (torch.cat(each, dim=1) for each in zip(*parts, strict=True))
        seen = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        ).flatten(2, 3)
        if encoder_hidden_states is None:
            return seen
        picture = attn.to_out[1](attn.to_out[0](seen[:, text:].contiguous()))
        return picture, attn.to_add_out(seen[:, :text].contiguous())


class JointProcessor(JointAttnProcessor2_0):  # type: ignore[misc]
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """hidden_states (B, N, D), encoder_hidden_states (B, T, D)."""
        if torch.is_grad_enabled():
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs
            )
        tokens = hidden_states.shape[1]
        ways, norms = (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k)
        parts = [_projected(hidden_states, ways, norms, None, None)]
        if encoder_hidden_states is not None:
            ways = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            norms = (attn.norm_added_q, attn.norm_added_k)
            parts.append(_projected(encoder_hidden_states, ways, norms, None, None))
        query, key, value = (
            torch.cat(each, dim=1).transpose(1, 2) for each in zip(*parts, strict=True)
        )
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        picture = attn.to_out[1](attn.to_out[0](seen[:, :tokens]))
        if encoder_hidden_states is None:
            return picture
        read = seen[:, tokens:]
        return picture, read if attn.context_pre_only else attn.to_add_out(read)


def _projected(
    x: Tensor,
    ways: tuple[Any, Any, Any],
    norms: tuple[Any, Any],
    cos: Tensor | None,
    sin: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (B, N, heads, size) of x (B, N, D); the first two normed and turned."""
    size = norms[0].weight.shape[0]
    query, key, value = (way(x).unflatten(-1, (-1, size)) for way in ways)
    weights = norms[0].weight, norms[1].weight
    query, key = qk_norm_rotary(query, key, *weights, cos, sin, norms[0].eps)
    return query, key, value
