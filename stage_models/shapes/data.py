"""Drawn scenes as training data: pictures for the autoencoder, latents and captions for denoisers.

No scene of either has a held-out pair of colour and shape (`scenes.HELD_OUT`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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

BLENDED = 0.3
"""Share of the denoisers' scenes whose colours are on the way to others (`scenes.blended`)."""

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
    drawn = sample_many(rng, count, things)
    return drawn, pixels_of(drawn, palettes_of(rng, drawn, recolour), size)


def palettes_of(
    rng: random.Random, drawn: Sequence[Scene], recolour: bool
) -> list[Mapping[str, scenes.Rgb]]:
    return [scenes.recoloured(rng, s) if recolour else scenes.COLOURS for s in drawn]


def nested(rng: random.Random) -> Scene:
    """A scene of two or three things in which a ring lies around or inside another thing."""
    while True:
        scene = scenes.sample(rng, rng.choice((2, 3)))
        things, relations = scene.caption.things, scene.caption.relations
        pairs = zip(things, things[1:], relations, strict=False)
        if any(r == "inside" and "ring" in (a.shape, b.shape) for a, b, r in pairs):
            return scene


def sample_many(rng: random.Random, count: int, things: tuple[int, int, int]) -> list[Scene]:
    return [scenes.sample(rng, rng.choices((1, 2, 3), things)[0]) for _ in range(count)]


def pixels_of(
    drawn: Sequence[Scene], palettes: Sequence[Mapping[str, scenes.Rgb]], size: int
) -> Tensor:
    """The scenes in their palettes, uint8 (n, 3, size, size)."""
    pictures = [scenes.draw(s, size, p) for s, p in zip(drawn, palettes, strict=True)]
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


class Pictures:
    """A pool of pictures of one size, uint8 (n, 3, size, size), drawn anew bit by bit.

    recolour: in any colours instead of the family's, so that colours and shapes are told apart.
    nested: the share that has a ring in something or something in a ring, which are the hardest and
    come rarely.
    """

    def __init__(
        self, rng: random.Random, size: int, count: int, recolour: bool, nested: float = 0.0
    ) -> None:
        self.rng, self.size, self.recolour, self.nested = rng, size, recolour, nested
        self.pixels = self._draw(count)

    def renew(self, count: int) -> None:
        at = self.rng.randrange(len(self.pixels) - count)
        self.pixels[at : at + count] = self._draw(count)

    def _draw(self, count: int) -> Tensor:
        few = round(self.nested * count)
        drawn = [nested(self.rng) for _ in range(few)]
        drawn += sample_many(self.rng, count - few, (2, 3, 3))
        return pixels_of(drawn, palettes_of(self.rng, drawn, self.recolour), self.size)

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


@dataclass(frozen=True)
class Sentence:
    """A caption, and another one of as many words that it is `share` on the way to."""

    said: str
    other: str
    share: float = 0.0


NOTHING = Sentence("", "")


class Pool:
    """Scenes of one size as latents on the training device, more with every call of `grow`."""

    def __init__(
        self, vae: AutoencoderTiny, device: str, dtype: torch.dtype, most: int, size: int
    ) -> None:
        self.vae, self.device, self.dtype, self.most, self.size = vae, device, dtype, most, size
        self.rng = random.Random()
        self.sentences: list[Sentence] = []
        self.latents = self.labels = torch.empty(0, device=device)

    def grow(self) -> None:
        """8192 scenes at first, then 512 at a time; fewer of larger ones."""
        count = int(share(self.size) * (512 if self.sentences else 8192))
        if len(self.sentences) + count > self.most:
            return
        drawn = sample_many(self.rng, count, (3, 5, 2))
        palettes: list[Mapping[str, scenes.Rgb]] = []
        for scene in drawn:
            said = str(scene.caption)
            if self.rng.random() < BLENDED:
                other, way, palette = scenes.blended(self.rng, scene)
                self.sentences.append(Sentence(said, str(other), way))
                palettes.append(palette)
            else:
                self.sentences.append(Sentence(said, said))
                palettes.append(scenes.COLOURS)
        pixels = pixels_of(drawn, palettes, self.size)
        latents = encode_many(self.vae, pixels, self.device, self.dtype)
        labels = torch.stack([layout.labels(scene, self.size) for scene in drawn]).to(self.device)
        if len(self.latents):
            latents = torch.cat([self.latents, latents])
            labels = torch.cat([self.labels, labels])
        self.latents, self.labels = latents, labels

    def sample(self, batch: int) -> tuple[list[Sentence], Tensor, Tensor]:
        """Sentences, some dropped; latents (n, C, h, w); layout labels (n, 3, cells).

        n is `batch` for the smallest size and fewer for larger ones.
        """
        chosen = torch.randint(len(self.sentences), (int(batch * share(self.size)),))
        said = [
            self.sentences[i] if self.rng.random() > UNCONDITIONAL else NOTHING
            for i in chosen.tolist()
        ]
        return said, self.latents[chosen], self.labels[chosen]


def corruption(count: int, size: int) -> Tensor:
    """Training timesteps: mostly where a scene takes shape, a tenth spread over all.

    On this schedule signal and noise are equal at t = 260 and only 1 % of the signal's power is
    left at 670: what lies above teaches no more than the background. A picture of twice the edge
    says everything with four times the values, so it is as legible at a quarter of the signal's
    share: its middle lies at t = 500 where the other's is at 400.
    """
    middle = {64: -0.4, 128: 0.0}[size]
    spread = torch.rand(count)
    crowded = torch.sigmoid(torch.randn(count) + middle)
    chosen = torch.where(torch.rand(count) < 0.1, spread, crowded)
    return (chosen * 1000).long().clamp(max=999)
