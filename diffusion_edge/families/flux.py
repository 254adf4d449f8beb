"""FLUX.1: a DiT over pairs of latent cells that reads a T5, and a CLIP's summary of the prompt.

The dev type takes the value of guidance as an input, the schnell type knows no guidance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from diffusion_edge.families.base import Conditioning
from diffusion_edge.families.pipeline import PipelineFamily
from diffusion_edge.plan import Guiding
from diffusion_edge.schedule import Schedule, resolve


class Architecture(PipelineFamily):
    MODELS = {
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
        "transformer": FluxTransformer2DModel,
    }

    @property
    def guiding(self) -> Guiding:
        return "embedded" if self.denoiser.config.guidance_embeds else "off"

    @property
    def patch(self) -> int:
        return 2

    def schedule(self, solver: str, steps: int, width: int, height: int) -> Schedule:
        """Levels evenly from 1 to 1/N before the shift, as this pipeline asks for them."""
        return resolve(self.noise, solver, steps, tokens=self.tokens(width, height), even=True)

    def words(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        short = self.tokenize("tokenizer", prompts, self.clip_length("tokenizer"))
        long = self.tokenize("tokenizer_2", prompts, self.max_tokens)
        return {"ids": short.input_ids, "ids_2": long.input_ids}

    def encode(self, words: Mapping[str, Tensor]) -> Conditioning:
        """T5's hidden states (B, max_tokens, D2) and CLIP's pooled (B, D1)."""
        pooled = self.parts["text_encoder"](words["ids"]).pooler_output
        hidden = self.parts["text_encoder_2"](words["ids_2"])[0]
        return Conditioning({"hidden": hidden.to(self.dtype), "pooled": pooled.to(self.dtype)})

    def predict(
        self, latent: Tensor, timestep: Tensor, guidance: Tensor, conditioning: Conditioning
    ) -> Tensor:
        rows, columns = (edge // 2 for edge in latent.shape[-2:])
        hidden = conditioning.tensors["hidden"]
        output: Tensor = self.denoiser(
            hidden_states=pack(latent).to(self.dtype),
            timestep=timestep.to(self.dtype) / 1000,
            guidance=guidance if self.guiding == "embedded" else None,
            pooled_projections=conditioning.tensors["pooled"],
            encoder_hidden_states=hidden,
            txt_ids=torch.zeros(hidden.shape[1], 3, device=latent.device, dtype=self.dtype),
            img_ids=places(rows, columns).to(latent.device, self.dtype),
            return_dict=False,
        )[0]
        return unpack(output.float(), rows, columns)


def pack(latent: Tensor) -> Tensor:
    """(B, C, 2h, 2w) as h*w tokens of 2x2 cells: (B, h*w, 4C)."""
    batch, channels, height, width = latent.shape
    cells = latent.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * 4)


def unpack(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `pack` for `rows` times `columns` tokens."""
    batch, _, width = tokens.shape
    cells = tokens.reshape(batch, rows, columns, width // 4, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(batch, width // 4, 2 * rows, 2 * columns)


def places(rows: int, columns: int) -> Tensor:
    """Ids (rows * columns, 3) of the tokens: 0, row, column."""
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    return torch.stack([torch.zeros_like(row), row, column], dim=1)
