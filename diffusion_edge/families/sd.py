"""Stable Diffusion 1.x and its distilled siblings: a UNet with one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Sequence

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

    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        """Hidden states (B, 77, D)."""
        tokens = self.tokenize("tokenizer", prompts, self.clip_length("tokenizer"))
        encoder = self.parts["text_encoder"]
        masked = getattr(encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask if masked else None
        hidden = encoder(tokens.input_ids, attention_mask=mask)[0]
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
