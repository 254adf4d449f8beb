"""What the engine asks of a model family. It never asks which architecture it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from diffusion_edge.kernels.to_uint8 import to_uint8
from diffusion_edge.offer import Offer
from diffusion_edge.plan import Guiding
from diffusion_edge.request import Picture
from diffusion_edge.schedule import Schedule


@dataclass(frozen=True)
class Conditioning:
    """Named tensors that steer the denoiser, each with the batch first."""

    tensors: Mapping[str, Tensor]

    def __getitem__(self, rows: slice) -> Conditioning:
        return Conditioning({name: tensor[rows] for name, tensor in self.tensors.items()})


def join(parts: Sequence[Conditioning]) -> Conditioning:
    """One batch of several conditionings of the same names and shapes."""
    if len(parts) == 1:
        return parts[0]
    names = parts[0].tensors
    return Conditioning({name: torch.cat([p.tensors[name] for p in parts]) for name in names})


def split(whole: Conditioning) -> list[Conditioning]:
    """Its rows, each a batch of one with memory of its own, so that none keeps the others'."""
    parts = {name: [row.clone() for row in torch.split(t, 1)] for name, t in whole.tensors.items()}
    rows = zip(*parts.values(), strict=True)
    return [Conditioning(dict(zip(parts, row, strict=True))) for row in rows]


class Family(Protocol):
    """One denoiser and what it shares with its siblings: the text encoders and the VAE.

    latent_space: a fingerprint; two stages can hand off if theirs are equal.
    offer: what packets can ask of it.
    device: where latents and conditioning are held. Latents are float32, whatever the denoiser's
        dtype; conditioning has the denoiser's.
    schedule: the noise levels of `steps` resolved steps for a picture of this size.
    predict: takes latents (B, ...), timesteps (B,), guidance (B,), which counts where it is
        embedded, and conditioning of B rows; returns the denoiser's output as float32 in the
        latents' shape, and is differentiable.
    decode: 8-bit pictures of latents (B, ...).
    unknown_words: those of a prompt that mean nothing to the family.
    execution: the way in which `predict` is run, see `execution`. attention: by what it attends.
    """

    @property
    def name(self) -> str: ...

    @property
    def stage(self) -> str: ...

    @property
    def latent_space(self) -> str: ...

    @property
    def offer(self) -> Offer: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def guiding(self) -> Guiding: ...

    @property
    def execution(self) -> str: ...

    @property
    def attention(self) -> str: ...

    def schedule(self, solver: str, steps: int, width: int, height: int) -> Schedule: ...

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]: ...

    def encode_text(self, prompts: Sequence[str]) -> Conditioning: ...

    def predict(
        self, latent: Tensor, timestep: Tensor, guidance: Tensor, conditioning: Conditioning
    ) -> Tensor: ...

    def decode(self, latent: Tensor) -> list[Picture]: ...

    def unknown_words(self, prompt: str) -> list[str]: ...


class Loaded(Family, Protocol):
    """A family and the model behind it, for those who run that in a way of their own.

    images: what the VAE makes of latents (B, ...), float (B, 3, H, W), about in [-1, 1].
    words: what prompts become before the text encoders, each tensor with the batch first; encode:
    what these make of it. Together they are `encode_text`.
    with_denoiser: the same, another module in its place.
    """

    @property
    def denoiser(self) -> Any: ...

    @property
    def vae(self) -> Any: ...

    @property
    def text_encoders(self) -> Sequence[Any]: ...

    def images(self, latent: Tensor) -> Tensor: ...

    def words(self, prompts: Sequence[str]) -> Mapping[str, Tensor]: ...

    def encode(self, words: Mapping[str, Tensor]) -> Conditioning: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def with_denoiser(self, denoiser: Any) -> Loaded: ...


def to_pictures(images: Tensor) -> list[Picture]:
    """8-bit pictures of float images (B, 3, H, W) in [-1, 1], rounded as diffusers does."""
    array = to_uint8(images).cpu().numpy()
    return [Picture(a.shape[1], a.shape[0], a.tobytes()) for a in array]
