"""Stable Diffusion 1.x and its distilled siblings: a UNet with one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from diffusion_edge.families.base import Conditioning
from diffusion_edge.families.pipeline import PipelineFamily


class Architecture(PipelineFamily):
    MODELS = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel}

    @property
    def patch(self) -> int:
        return 1

    def words(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        tokens = self.tokenize("tokenizer", prompts, self.clip_length("tokenizer"))
        if getattr(self.parts["text_encoder"].config, "use_attention_mask", False):
            return {"ids": tokens.input_ids, "mask": tokens.attention_mask}
        return {"ids": tokens.input_ids}

    def encode(self, words: Mapping[str, Tensor]) -> Conditioning:
        """Hidden states (B, 77, D)."""
        hidden = self.parts["text_encoder"](words["ids"], attention_mask=words.get("mask"))[0]
        return Conditioning({"hidden": hidden.to(self.dtype)})

    def predict(
        self, latent: Tensor, timestep: Tensor, guidance: Tensor, conditioning: Conditioning
    ) -> Tensor:
        output: Tensor = self.denoiser(
            latent.to(self.dtype),
            timestep,
            encoder_hidden_states=conditioning.tensors["hidden"],
            return_dict=False,
        )[0]
        return output.float()
