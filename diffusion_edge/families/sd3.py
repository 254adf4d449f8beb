"""Stable Diffusion 3 and 3.5: a DiT that reads two CLIP text encoders and, if there, a T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from torch import Tensor
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from diffusion_edge.families.base import Conditioning
from diffusion_edge.families.pipeline import PipelineFamily


class Architecture(PipelineFamily):
    MODELS = {
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
        "transformer": SD3Transformer2DModel,
    }
    OPTIONAL = ("text_encoder_3",)

    def words(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        """Ids by tokenizer; none for T5 where the folder has none."""
        length = self.clip_length("tokenizer")  # both of CLIP read as many as the first one can
        lengths = {"": length, "_2": length, "_3": self.max_tokens}
        there = [n for n in lengths if f"text_encoder{n}" in self.parts]
        tokens = {n: self.tokenize(f"tokenizer{n}", prompts, lengths[n]) for n in there}
        return {f"ids{n}": found.input_ids for n, found in tokens.items()}

    def encode(self, words: Mapping[str, Tensor]) -> Conditioning:
        """Hidden states (B, 77 + max_tokens, D), CLIP's first, and the pooled (B, D1 + D2)."""
        hidden, pooled = [], []
        for number in ("", "_2"):
            encoder = self.parts[f"text_encoder{number}"]
            encoded = encoder(words[f"ids{number}"], output_hidden_states=True)
            hidden.append(encoded.hidden_states[-2])
            pooled.append(encoded.text_embeds)
        clip, wide = torch.cat(hidden, dim=-1), self._t5(words)
        clip = F.pad(clip.to(wide.dtype), (0, wide.shape[-1] - clip.shape[-1]))
        states = torch.cat([clip, wide], dim=-2)
        return Conditioning(
            {
                "hidden": states.to(self.dtype),
                "pooled": torch.cat(pooled, dim=-1).to(self.dtype),
            }
        )

    def _t5(self, words: Mapping[str, Tensor]) -> Tensor:
        """Hidden states (B, max_tokens, D); zeros where the folder has no T5."""
        if "ids_3" not in words:
            width = self.denoiser.config.joint_attention_dim
            shape = (len(words["ids"]), self.max_tokens, width)
            return torch.zeros(shape, device=self.device, dtype=self.dtype)
        hidden: Tensor = self.parts["text_encoder_3"](words["ids_3"])[0]
        return hidden

    def predict(
        self, latent: Tensor, timestep: Tensor, guidance: Tensor, conditioning: Conditioning
    ) -> Tensor:
        output: Tensor = self.denoiser(
            hidden_states=latent.to(self.dtype),
            timestep=timestep,
            encoder_hidden_states=conditioning.tensors["hidden"],
            pooled_projections=conditioning.tensors["pooled"],
            return_dict=False,
        )[0]
        return output.float()
