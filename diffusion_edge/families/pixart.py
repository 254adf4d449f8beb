"""Families of the PixArt type: a DiT with cross-attention to one T5-type text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderTiny, PixArtTransformer2DModel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from diffusion_edge.families.base import Conditioning, to_pictures
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.schedule import Schedule, resolve
from diffusion_edge.types import Picture


@dataclass(frozen=True)
class PixArtFamily:
    """`Family` over the models of diffusers; see `families.base` for the contract."""

    name: str
    stage: str
    latent_space: str
    noise: Mapping[str, Any]
    channels: int
    factor: int
    max_tokens: int
    tokenizer: PreTrainedTokenizerFast = field(repr=False)
    text_encoder: T5EncoderModel = field(repr=False)
    denoiser: PixArtTransformer2DModel = field(repr=False)
    vae: AutoencoderTiny = field(repr=False)

    @classmethod
    def load(cls, card: FamilyCard, stage: str) -> PixArtFamily:
        folder = card.folder(stage)
        local = {"local_files_only": True, "use_safetensors": True}
        models = {
            "text_encoder": T5EncoderModel.from_pretrained(
                folder / "text_encoder", dtype=torch.float32, **local
            ),
            "denoiser": PixArtTransformer2DModel.from_pretrained(
                folder / "transformer", dtype=torch.float32, **local
            ),
            "vae": AutoencoderTiny.from_pretrained(folder / "vae", dtype=torch.float32, **local),
        }
        for model in models.values():
            model.eval().requires_grad_(False)
        return cls(
            name=card.name,
            stage=stage,
            latent_space=card.latent_space(),
            noise=card.noise(),
            channels=card.latent_channels,
            factor=card.factor,
            max_tokens=card.max_tokens,
            tokenizer=PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
            **models,
        )

    def schedule(self, solver: str, steps: int) -> Schedule:
        return resolve(self.noise, solver, steps)

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        return (self.channels, height // self.factor, width // self.factor)

    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        """Hidden states (B, max_tokens, D) and their mask; longer prompts are cut."""
        words = [prompt.lower().strip() for prompt in prompts]
        tokens = self.tokenizer(
            words,
            padding="max_length",
            max_length=self.max_tokens,
            truncation=True,
            return_tensors="pt",
        )
        hidden = self.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        unknown = dict.fromkeys(w for text in words for w in self._unknown(text))
        return Conditioning({"hidden": hidden, "mask": tokens.attention_mask}, tuple(unknown))

    def _unknown(self, text: str) -> list[str]:
        pieces = self.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        vocabulary = self.tokenizer.get_vocab()
        return [piece for piece, _ in pieces if piece not in vocabulary]

    def predict(self, latent: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        output: Tensor = self.denoiser(
            latent,
            encoder_hidden_states=conditioning.tensors["hidden"],
            encoder_attention_mask=conditioning.tensors["mask"],
            timestep=timestep,
            return_dict=False,
        )[0]
        return output

    def decode(self, latent: Tensor) -> list[Picture]:
        scaled = latent / self.vae.config.scaling_factor
        return to_pictures(self.vae.decode(scaled, return_dict=False)[0])
