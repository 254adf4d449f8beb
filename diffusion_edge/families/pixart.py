"""PixArt-Sigma: a DiT with cross-attention to one T5 text encoder.

What the denoiser makes of the prompt, the keys and values of every layer, is the same in all steps.
So it is part of the conditioning, and a forward pass starts from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers import PixArtTransformer2DModel
from torch import Tensor
from transformers import T5EncoderModel

from diffusion_edge.families.base import Conditioning
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.families.pipeline import Loading, PipelineFamily


class Architecture(PipelineFamily):
    MODELS = {"text_encoder": T5EncoderModel, "transformer": PixArtTransformer2DModel}

    @classmethod
    def load(cls, card: FamilyCard, stage: str, loading: Loading) -> Self:
        family = super().load(card, stage, loading)
        denoiser = family.denoiser
        denoiser.read_caption = denoiser.caption_projection or torch.nn.Identity()
        denoiser.caption_projection = None
        for layer, block in enumerate(denoiser.transformer_blocks):
            block.attn2.set_processor(FromKeysAndValues(layer))
        return family

    def words(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        """Case does not count."""
        texts = [prompt.lower().strip() for prompt in prompts]
        tokens = self.tokenize("tokenizer", texts, self.max_tokens)
        return {"ids": tokens.input_ids, "mask": tokens.attention_mask}

    def encode(self, words: Mapping[str, Tensor]) -> Conditioning:
        """Keys and values (B, 2 * layers, max_tokens, D) and the mask."""
        mask = words["mask"]
        hidden = self.parts["text_encoder"](words["ids"], attention_mask=mask)[0]
        denoiser = self.here(self.denoiser)
        read = denoiser.read_caption(hidden.to(self.dtype))
        attentions = [block.attn2 for block in denoiser.transformer_blocks]
        made = [make(read) for a in attentions for make in (a.to_k, a.to_v)]
        return Conditioning({"keys_and_values": torch.stack(made, dim=1), "mask": mask})

    def predict(
        self, latent: Tensor, timestep: Tensor, guidance: Tensor, conditioning: Conditioning
    ) -> Tensor:
        output: Tensor = self.denoiser(
            latent.to(self.dtype),
            encoder_hidden_states=conditioning.tensors["keys_and_values"],
            encoder_attention_mask=conditioning.tensors["mask"],
            timestep=timestep,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        # Half of the channels may be a learned variance, which no solver here uses.
        return output[:, : self.channels].float()


class FromKeysAndValues:
    """Cross-attention of one layer that is given the keys and values of all."""

    def __init__(self, layer: int) -> None:
        self._layer = layer

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
    ) -> Tensor:
        """hidden_states (B, N, D), encoder_hidden_states (B, 2 * layers, T, D), and as
        attention_mask a bias (B, 1, T)."""
        key, value = encoder_hidden_states[:, 2 * self._layer : 2 * self._layer + 2].unbind(1)
        query, key, value = (
            tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for tensor in (attn.to_q(hidden_states), key, value)
        )
        seen = F.scaled_dot_product_attention(query, key, value, attention_mask[:, None])
        output: Tensor = attn.to_out[0](seen.transpose(1, 2).flatten(2))
        return output
