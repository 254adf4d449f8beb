"""Scenes to ask for, and what the autoencoder makes of them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from diffusion_edge.families.base import Family, to_pictures
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.plan import Plan
from diffusion_edge.profile.batch import load_stages
from diffusion_edge.request import Picture
from stage_models.shapes import scenes
from stage_models.shapes.scenes import Caption, Scene


def some_scenes(count: int, seed: int, things: Sequence[int], held_out: bool = True) -> list[Scene]:
    """Random scenes, taking turns in the number of things."""
    rng = random.Random(seed)
    numbers = [things[i % len(things)] for i in range(count)]
    return [scenes.sample(rng, number, held_out) for number in numbers]


def captions(count: int, seed: int, things: Sequence[int], held_out: bool = True) -> list[Caption]:
    return [scene.caption for scene in some_scenes(count, seed, things, held_out)]


def stages_of(
    card: FamilyCard, plans: Sequence[Plan], execution: str = "eager"
) -> dict[str, Family]:
    """The stages that the plans name."""
    names = dict.fromkeys(span.stage for plan in plans for span in plan.spans)
    return load_stages(card, names, execution)


def image(picture: Picture) -> Image.Image:
    return Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)


def reconstructed(card: FamilyCard, drawn: Sequence[Scene]) -> list[Image.Image]:
    """The scenes, drawn, encoded and decoded: as good as pictures of any denoiser can get."""
    folder = card.folder(card.reference) / "vae"
    vae = AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32).eval()
    images = []
    for scene in drawn:
        pixels = np.asarray(scenes.draw(scene, card.defaults.size), dtype=np.float32)
        with torch.inference_mode():
            latent = vae.encode(torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]).latents
            (picture,) = to_pictures(vae.decode(latent).sample)
        images.append(image(picture))
    return images
