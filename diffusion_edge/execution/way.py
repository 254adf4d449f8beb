"""What a way to run a model is, and a family that runs in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from diffusion_edge.engine.run import Predict
from diffusion_edge.families.base import Conditioning, Loaded, to_pictures
from diffusion_edge.request import Picture

Kind = Literal["lossless", "reduced"]
"""`lossless`: final latents are those of float32 eager to within rounding (`rounding`)."""

Part = Literal["predict", "images", "encode"]
"""What runs one way or another, as `Loaded` calls it: denoiser, VAE, text encoders."""
PARTS: tuple[Part, ...] = ("predict", "images", "encode")

Prepare = Callable[[Loaded, Sequence[int], int], Any]


@dataclass(frozen=True)
class Way:
    """One way to run a family, for squares of some sizes in pixels.

    kind: how far from eager its results may be. refuses: why it cannot run this family on this
    machine, or None; costs nothing. prepare: what takes the place of a part, by part; the others
    stay as they are. It takes any number of rows, and other sizes too. It is called from any
    thread, and uses as many threads as torch has in that one; over all that call at the same time
    they are at most the last argument. Whatever preparing raises counts as a refusal.
    """

    name: str
    kind: Kind
    refuses: Callable[[Loaded, Sequence[int], int], str | None]
    prepare: Mapping[Part, Prepare]


class _Running:
    """A family of which parts run in some way; the rest of it is as it was."""

    def __init__(self, family: Loaded, execution: str, parts: Mapping[Part, Any]) -> None:
        self._family = family
        self.execution = execution
        self.predict = parts.get("predict", family.predict)
        self.images = parts.get("images", family.images)
        self.encode = parts.get("encode", family.encode)

    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        made: Conditioning = self.encode(self._family.words(prompts))
        return made

    def decode(self, latent: Tensor) -> list[Picture]:
        return to_pictures(self.images(latent))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)


def with_parts(family: Loaded, execution: str, parts: Mapping[Part, Any]) -> Loaded:
    """`family` with other parts. execution: the way of its denoiser."""
    return cast(Loaded, _Running(family, execution, parts)) if parts else family


def running(family: Loaded, way: Way, sizes: Sequence[int], threads: int) -> Loaded:
    """`family`, its denoiser by `way`, prepared. Raises whatever preparing does."""
    prepare = way.prepare.get("predict")
    parts: dict[Part, Any] = {"predict": prepare(family, sizes, threads)} if prepare else {}
    return with_parts(family, way.name, parts)


# ---------------------------------------------------------------------------- for ways


def at_sizes(family: Loaded, sizes: Sequence[int], predict: Predict) -> Predict:
    """`predict` for squares of these sizes; what was not prepared is run eagerly."""
    shapes = {family.latent_shape(size, size) for size in sizes}

    def either(
        latent: Tensor, timestep: Tensor, guidance: Tensor, conditioning: Conditioning
    ) -> Tensor:
        own = predict if tuple(latent.shape[1:]) in shapes else family.predict
        return own(latent, timestep, guidance, conditioning)

    return either


def not_float32(family: Loaded) -> str | None:
    """Why a way that is held against float32 refuses a model in another precision."""
    if family.dtype == torch.float32:
        return None
    return f"it runs float32; the model is held in {str(family.dtype).removeprefix('torch.')}"
