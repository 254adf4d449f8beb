"""Pictures of many captions by many plans, through the engine that also serves them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import diffusers.utils.logging
import numpy as np
import torch
import transformers.utils.logging
from diffusers import AutoencoderTiny
from PIL import Image

from diffusion_edge.engine import run
from diffusion_edge.engine.run import Trajectory
from diffusion_edge.families.base import Family, to_pictures
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.families.load import load_family
from diffusion_edge.packet import Packet, new_packet
from diffusion_edge.types import ImageRequest, Picture, Plan
from stage_models.shapes import scenes
from stage_models.shapes.scenes import Caption, Scene

Taken = tuple[str, ...]
"""The stage of every step that was taken so far."""


def some_scenes(count: int, seed: int, things: Sequence[int], held_out: bool = True) -> list[Scene]:
    """Random scenes, taking turns in the number of things."""
    rng = random.Random(seed)
    numbers = [things[i % len(things)] for i in range(count)]
    return [scenes.sample(rng, number, held_out) for number in numbers]


def captions(count: int, seed: int, things: Sequence[int], held_out: bool = True) -> list[Caption]:
    return [scene.caption for scene in some_scenes(count, seed, things, held_out)]


def reconstructed(card: FamilyCard, drawn: Sequence[Scene]) -> list[Image.Image]:
    """The scenes, drawn, encoded and decoded: as good as pictures of any denoiser can get."""
    folder = card.folder(next(iter(card.stages))) / "vae"
    vae = AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32).eval()
    images = []
    for scene in drawn:
        pixels = np.asarray(scenes.draw(scene, card.defaults.size), dtype=np.float32)
        with torch.inference_mode():
            latent = vae.encode(torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]).latents
            (picture,) = to_pictures(vae.decode(latent).sample)
        images.append(_image(picture))
    return images


def _image(picture: Picture) -> Image.Image:
    return Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)


def quiet() -> None:
    """No notes and bars of the model libraries between ours."""
    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def load_stages(card: FamilyCard, plans: Sequence[Plan]) -> dict[str, Family]:
    """The stages that the plans name."""
    names = dict.fromkeys(span.stage for plan in plans for span in plan.spans)
    return {name: load_family(card, name) for name in names}


def request(card: FamilyCard, prompt: str, seed: int, steps: int) -> ImageRequest:
    """One image with the family's defaults."""
    defaults = card.defaults
    return ImageRequest(
        prompt=prompt,
        family=card.name,
        steps=steps,
        seed=seed,
        solver=defaults.solver,
        guidance=defaults.guidance,
        width=defaults.size,
        height=defaults.size,
    )


@dataclass
class Batch:
    """Images of one batch of requests by any plan of their number of steps.

    Plans that begin alike share their first steps, which are run once and kept.
    """

    stages: Mapping[str, Family]
    requests: Sequence[ImageRequest]
    _kept: dict[Taken, list[Trajectory]] = field(default_factory=dict, repr=False)

    def pictures(self, plan: Plan) -> list[Image.Image]:
        steps = tuple(span.stage for span in plan.spans for _ in range(span.steps))
        for count in range(1, len(steps) + 1):
            if steps[:count] not in self._kept:
                self._kept[steps[:count]] = self._step(steps[:count])
        with torch.inference_mode():
            latents = torch.cat([t.latent for t in self._kept[steps]])
            decoded = self.stages[steps[-1]].decode(latents)
        return [_image(picture) for picture in decoded]

    def _step(self, taken: Taken) -> list[Trajectory]:
        stage, before = taken[-1], taken[:-1]
        family = self.stages[stage]
        if not before:
            started = [run.begin(family, packet) for packet in self._packets(family, taken)]
        elif before[-1] == stage:
            started = self._kept[before]
        else:
            packets = self._packets(family, taken)
            started = [
                run.begin(family, run.finish(packet, trajectory))
                for packet, trajectory in zip(packets, self._kept[before], strict=True)
            ]
        return run.step(family, started)

    def _packets(self, family: Family, taken: Taken) -> list[Packet]:
        """Packets whose plan hands over to the last stage of `taken` for its last step."""
        at, steps = len(taken) - 1, self.requests[0].steps
        last = (taken[at], steps - at)
        plan = Plan.of(((taken[at - 1], at), last) if at else (last,))
        return [new_packet(r, plan, 0, family.latent_space) for r in self.requests]
