"""Drawn scenes as training data: pictures for the autoencoder, latents and captions for denoisers.

No scene of either has a held-out pair of colour and shape (`scenes.HELD_OUT`).
"""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor

from stage_models.shapes import layout, scenes
from stage_models.shapes.scenes import Scene

SIZES = (64, 128)
"""Edge lengths of pictures; of larger ones an update takes fewer, so that each costs as much."""

UNCONDITIONAL = 0.1
"""Share of captions dropped in training, for classifier-free guidance."""

THING_WEIGHT = 4.0
"""What a pixel of a thing, or beside one, counts more than one of the ground."""


def share(size: int) -> float:
    """Pictures of this size that cost what one of the smallest does."""
    return SIZES[0] ** 2 / size**2


def draw_many(
    rng: random.Random,
    count: int,
    size: int,
    things: tuple[int, int, int] = (3, 5, 2),
    recolour: bool = False,
) -> tuple[list[Scene], Tensor]:
    """Scenes and their pictures, uint8 (count, 3, size, size).

    things: how often a scene has one, two and three. recolour: see `scenes.recoloured`.
    """
    drawn = [scenes.sample(rng, rng.choices((1, 2, 3), things)[0]) for _ in range(count)]
    palettes = (scenes.recoloured(rng, s) if recolour else scenes.COLOURS for s in drawn)
    pictures = [scenes.draw(s, size, p) for s, p in zip(drawn, palettes, strict=True)]
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    return drawn, torch.from_numpy(pixels).permute(0, 3, 1, 2)


class Pictures:
    """A pool of pictures of one size, uint8 (n, 3, size, size), drawn anew bit by bit.

    recolour: in any colours instead of the family's, so that colours and shapes are told apart.
    """

    def __init__(self, rng: random.Random, size: int, count: int, recolour: bool) -> None:
        self.rng, self.size, self.recolour = rng, size, recolour
        self.pixels = self._draw(count)

    def renew(self, count: int) -> None:
        at = self.rng.randrange(len(self.pixels) - count)
        self.pixels[at : at + count] = self._draw(count)

    def _draw(self, count: int) -> Tensor:
        return draw_many(self.rng, count, self.size, (2, 3, 3), self.recolour)[1]

    def sample(self, count: int) -> Tensor:
        return self.pixels[torch.randint(len(self.pixels), (count,))]


def pixel_weights(x: Tensor) -> Tensor:
    """How much every pixel of pictures (n, 3, h, w) counts, (n, 1, h, w), 1 on average.

    A corner is always ground: things keep away from it.
    """
    thing = (x - x[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.05
    weights = 1 + THING_WEIGHT * F.max_pool2d(thing.float(), 3, stride=1, padding=1)
    return weights / weights.mean((1, 2, 3), keepdim=True)


@torch.no_grad()
def encode_many(vae: AutoencoderTiny, pictures: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    """Latents, float32 (n, C, h, w), of uint8 pictures."""
    vae = vae.to(device, dtype).to(memory_format=torch.channels_last)
    batches = torch.split(pictures, 256)
    return torch.cat(
        [vae.encode(b.to(device, dtype).div(127.5).sub(1)).latents.float() for b in batches]
    )


class Pool:
    """Scenes of one size as latents on the training device, more with every call of `grow`."""

    def __init__(
        self, vae: AutoencoderTiny, device: str, dtype: torch.dtype, most: int, size: int
    ) -> None:
        self.vae, self.device, self.dtype, self.most, self.size = vae, device, dtype, most, size
        self.rng = random.Random()
        self.captions: list[str] = []
        self.latents = self.labels = torch.empty(0, device=device)

    def grow(self) -> None:
        """4096 scenes at first, then 512 at a time; fewer of larger ones."""
        count = int(share(self.size) * (512 if self.captions else 4096))
        if len(self.captions) + count > self.most:
            return
        drawn, pixels = draw_many(self.rng, count, self.size)
        self.captions += [str(scene.caption) for scene in drawn]
        latents = encode_many(self.vae, pixels, self.device, self.dtype)
        labels = torch.stack([layout.labels(scene, self.size) for scene in drawn]).to(self.device)
        if len(self.latents):
            latents = torch.cat([self.latents, latents])
            labels = torch.cat([self.labels, labels])
        self.latents, self.labels = latents, labels

    def sample(self, batch: int) -> tuple[list[str], Tensor, Tensor]:
        """Captions, some dropped; latents (n, C, h, w); layout labels (n, 3, cells).

        n is `batch` for the smallest size and fewer for larger ones.
        """
        chosen = torch.randint(len(self.captions), (int(batch * share(self.size)),))
        said = [
            self.captions[i] if self.rng.random() > UNCONDITIONAL else "" for i in chosen.tolist()
        ]
        return said, self.latents[chosen], self.labels[chosen]


def corruption(count: int, size: int) -> Tensor:
    """Training timesteps: mostly where a scene takes shape, a tenth spread over all.

    On this schedule signal and noise are equal at t = 260 and only 1 % of the signal's power is
    left at 670: what lies above teaches no more than the background. A picture of twice the edge
    says everything with four times the values, so it is as legible at a quarter of the signal's
    share: its middle lies at t = 490 where the other's is at 350.
    """
    middle = {64: -0.6, 128: 0.0}[size]
    spread = torch.rand(count)
    crowded = torch.sigmoid(torch.randn(count) + middle)
    chosen = torch.where(torch.rand(count) < 0.1, spread, crowded)
    return (chosen * 1000).long().clamp(max=999)
