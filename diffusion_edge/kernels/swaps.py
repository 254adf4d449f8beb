"""Which modules of diffusers' models are fused, and into what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    AdaLayerNormZeroSingle,
    RMSNorm,
)
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxAttnProcessor,
    FluxTransformerBlock,
)
from torch import nn

from diffusion_edge.kernels import blocks, modules

Swap = tuple[Any, str, Any]
"""An object, one of its attributes, and what it shall be."""


def _group_norm_silu(module: Any) -> Iterator[Swap]:
    """A norm that its block's SiLU follows, which then does nothing."""
    if type(module) is ResnetBlock2D:
        norms = (module.norm1, module.norm2)
        alike = type(module.nonlinearity) is nn.SiLU and module.time_embedding_norm == "default"
        if not alike or not all(map(_is_group_norm, norms)):
            return
        yield from ((norm, "__class__", modules.GroupNormSilu) for norm in norms)
        if type(module.time_emb_proj) is nn.Linear and not module.skip_time_act:
            yield module.time_emb_proj, "__class__", modules.SiluLinear
        yield module, "nonlinearity", nn.Identity()
    elif _is_group_norm(getattr(module, "conv_norm_out", None)) and (
        type(getattr(module, "conv_act", None)) is nn.SiLU
    ):
        yield module.conv_norm_out, "__class__", modules.GroupNormSilu
        yield module, "conv_act", nn.Identity()


def _geglu(module: Any) -> Iterator[Swap]:
    if type(module) is GEGLU:
        yield module, "__class__", modules.Geglu


def _gated_norm(module: Any) -> Iterator[Swap]:
    fused = _NORMS.get(type(module))
    if fused is not None and _is_plain(module.norm):
        yield module, "__class__", fused
    block = _BLOCKS.get(type(module))
    whole = getattr(module, "_chunk_size", None) is None  # the MLP is not done in pieces
    if block is not None and whole and _is_plain(module.norm2) and _is_single_or_joint(module):
        yield module, "__class__", block


def _is_single_or_joint(block: Any) -> bool:
    """Of diffusers' basic blocks, those that one table and one embedding steer."""
    return type(block) is not BasicTransformerBlock or (
        block.norm_type == "ada_norm_single"
        and _is_plain(block.norm1)
        and block.pos_embed is None
        and block.attn2 is not None
        and not block.only_cross_attention
    )


def _qk_norm_rotary(module: Any) -> Iterator[Swap]:
    processor = type(getattr(module, "processor", None))
    flux = type(module) is FluxAttention and processor is FluxAttnProcessor
    joint = type(module) is Attention and processor is JointAttnProcessor2_0
    if (flux or joint) and _is_rms(module.norm_q) and _is_rms(module.norm_k):
        yield (
            module.processor,
            "__class__",
            (blocks.FluxProcessor if flux else blocks.JointProcessor),
        )


_NORMS: Mapping[type, type] = {
    AdaLayerNormZero: modules.NormZero,
    AdaLayerNormZeroSingle: modules.NormZeroSingle,
    AdaLayerNormContinuous: modules.NormContinuous,
}
_BLOCKS: Mapping[type, type] = {
    BasicTransformerBlock: blocks.SingleBlock,
    FluxTransformerBlock: blocks.FluxBlock,
    JointTransformerBlock: blocks.JointBlock,
}
RULES: Mapping[str, Callable[[Any], Iterator[Swap]]] = {
    "group_norm_silu": _group_norm_silu,
    "gated_norm": _gated_norm,
    "qk_norm_rotary": _qk_norm_rotary,
    "geglu": _geglu,
}
"""By operation, what it changes about one module."""


def _is_group_norm(module: Any) -> bool:
    return type(module) is nn.GroupNorm and module.affine


def _is_plain(norm: Any) -> bool:
    """A LayerNorm without weights."""
    return isinstance(norm, nn.LayerNorm) and norm.weight is None


def _is_rms(norm: Any) -> bool:
    """An RMSNorm with a weight, of torch or of diffusers."""
    known = type(norm) in (RMSNorm, nn.RMSNorm) and norm.weight is not None
    return known and getattr(norm, "bias", None) is None


# ---------------------------------------------------------------------------- carrying them out


def swaps(operation: str, models: Iterable[nn.Module]) -> list[Swap]:
    """All that the operation would change in the models."""
    rule = RULES[operation]
    return [swap for model in models for module in model.modules() for swap in rule(module)]


def put(wanted: Iterable[Swap]) -> list[Swap]:
    """Carries swaps out; returns those that undo them."""
    undo = []
    for owner, name, new in wanted:
        undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, new)
    return undo[::-1]
