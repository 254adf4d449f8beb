"""Stable Diffusion XL and its distilled siblings: a UNet with two CLIP text encoders.

The UNet is also told the second encoder's summary of the prompt and the size of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from diffusion_edge.families.base import Conditioning
from diffusion_edge.families.pipeline import PipelineFamily


class Architecture(PipelineFamily):
    MODELS = {
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "unet": UNet2DConditionModel,
    }

    @property
    def patch(self) -> int:
        return 1

    def words(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        """An empty prompt is none: its values are zeros where the model was trained so, as the base
        model was, or else what the encoders make of an empty text. Prompts that say what to paint
        are not empty, so this concerns the negative one alone, as in the stock pipeline.
        """
        tokenizers = ("tokenizer", "tokenizer_2")
        first, second = (self.tokenize(t, prompts, self.clip_length(t)) for t in tokenizers)
        zeroed = self.index.get("force_zeros_for_empty_prompt", True)
        kept = [bool(prompt) or not zeroed for prompt in prompts]
        spoken = torch.tensor(kept, device=self.device, dtype=self.dtype)
        return {"ids": first.input_ids, "ids_2": second.input_ids, "spoken": spoken}

    def encode(self, words: Mapping[str, Tensor]) -> Conditioning:
        """Hidden states (B, 77, D1 + D2) and the pooled (B, D)."""
        hidden = []
        for number in ("", "_2"):
            encoder = self.parts[f"text_encoder{number}"]
            encoded = encoder(words[f"ids{number}"], output_hidden_states=True)
            hidden.append(encoded.hidden_states[-2])
        spoken = words["spoken"]
        states = torch.cat(hidden, dim=-1).to(self.dtype) * spoken[:, None, None]
        pooled = encoded.text_embeds.to(self.dtype) * spoken[:, None]
        return Conditioning({"hidden": states, "pooled": pooled})

    def predict(
        self, latent: Tensor, timestep: Tensor, guidance: Tensor, conditioning: Conditioning
    ) -> Tensor:
        height, width = (edge * self.factor for edge in latent.shape[-2:])
        told = (height, width, 0, 0, height, width)  # original size, crop, target size
        sizes = torch.tensor([told], device=latent.device, dtype=self.dtype)
        output: Tensor = self.denoiser(
            latent.to(self.dtype),
            timestep,
            encoder_hidden_states=conditioning.tensors["hidden"],
            added_cond_kwargs={
                "text_embeds": conditioning.tensors["pooled"],
                "time_ids": sizes.expand(latent.shape[0], -1),
            },
            return_dict=False,
        )[0]
        return output.float()
