"""What a way to run a denoiser is, and a family that runs in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from diffusion_edge.engine.run import Predict
from diffusion_edge.families.base import Conditioning, Loaded, to_pictures
from diffusion_edge.request import Picture

Images = Callable[[Tensor], Tensor]
Kind = Literal["lossless", "reduced"]
"""`lossless`: final latents are those of float32 eager to within rounding (`rounding`)."""


@dataclass(frozen=True)
class Way:
    """One way to run the denoiser of a family, for squares of some sizes in pixels.

    kind: how far from eager its results may be. refuses: why it cannot run this model on this
    machine, or None; costs nothing. prepare: the forward pass, as `Family.predict`, for any number
    of rows, and other sizes too. It is called from any thread, and uses as many threads as torch
    has in that one; over all that call at the same time they are at most the last argument.
    Whatever `prepare` raises counts as a refusal. images: the same for the VAE, as `Loaded.images`;
    None leaves it as it is.
    """

    name: str
    kind: Kind
    refuses: Callable[[Loaded, Sequence[int], int], str | None]
    prepare: Callable[[Loaded, Sequence[int], int], Predict]
    images: Callable[[Loaded, Sequence[int], int], Images] | None = None


class _Running:
    """A family whose denoiser or VAE runs in some way; the rest of it is as it was."""

    def __init__(self, family: Loaded, execution: str, predict: Predict, images: Images) -> None:
        self._family = family
        self.execution = execution
        self.predict = predict
        self.images = images

    def decode(self, latent: Tensor) -> list[Picture]:
        return to_pictures(self.images(latent))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)


def running(family: Loaded, way: Way, sizes: Sequence[int], threads: int) -> Loaded:
    """`family`, its denoiser by `way`, prepared. Raises whatever `prepare` does."""
    predict = way.prepare(family, sizes, threads)
    return cast(Loaded, _Running(family, way.name, predict, family.images))


def painting(family: Loaded, images: Images) -> Loaded:
    """`family`, its VAE another way."""
    return cast(Loaded, _Running(family, family.execution, family.predict, images))


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
