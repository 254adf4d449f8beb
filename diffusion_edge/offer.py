"""What a stage's family makes, and what is refused of a packet for it, before it costs anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from diffusion_edge.errors import InvalidTensor, NotOffered
from diffusion_edge.header import Header, HeaderSchedule
from diffusion_edge.schedule import Prediction

_ROUNDING = 1.01
"""Levels are resolved elsewhere, by another version, and may be a little above the bounds here."""


@dataclass(frozen=True)
class Offer:
    """What a stage's family makes; whatever a packet's checksum says, it can ask for no more.

    allows: whether it makes pictures of a width and a height. latent_shape: of their latents,
    without the batch. timestep, sigma: the largest that its models have learned.
    """

    latent_space: str
    allows: Callable[[int, int], bool]
    latent_shape: Callable[[int, int], tuple[int, ...]]
    solvers: tuple[str, ...]
    prediction: Prediction
    timestep: float
    sigma: float


Shapes = Mapping[str, Sequence[int]]
"""Of a packet's tensors, the batch first, as its head has them."""


def check_offered(offer: Offer, header: Header, shapes: Shapes) -> None:
    """Raises NotOffered for what the family does not make, InvalidTensor for tensors that are not
    of such a picture."""
    if not offer.allows(header.width, header.height):
        raise NotOffered(
            f"the packet is of a picture of {header.width}x{header.height}; this stage's family "
            "makes no such size"
        )
    if header.solver not in offer.solvers:
        raise NotOffered(
            f"the packet's solver {header.solver!r} is not one of this stage's family: "
            f"{', '.join(offer.solvers)}"
        )
    if header.schedule is not None:
        _check_levels(header.schedule, offer)
    _check_shapes(shapes, offer.latent_shape(header.width, header.height))


def _check_levels(schedule: HeaderSchedule, offer: Offer) -> None:
    if schedule.prediction != offer.prediction:
        raise NotOffered(
            f"the packet's schedule is for models of {schedule.prediction}, this stage's are of "
            f"{offer.prediction}"
        )
    sigmas = (*schedule.sigmas, *(schedule.origins or ()), *(schedule.targets or ()))
    for name, values, most in (
        ("timestep", schedule.timesteps, offer.timestep),
        ("sigma", sigmas, offer.sigma),
        ("initial scale", (schedule.initial_scale,), 1 + offer.sigma),
    ):
        if not 0 <= min(values) <= max(values) <= _ROUNDING * most:
            raise NotOffered(
                f"the packet has a {name} from {min(values):g} to {max(values):g}; this stage's "
                f"models know 0 to {most:g}"
            )


def _check_shapes(shapes: Shapes, shape: tuple[int, ...]) -> None:
    """A scale of int8 has a value for each channel; all else has the latent's shape."""
    for name, found in shapes.items():
        right = list(shape[:1]) if name.endswith(".scale") else [1, *shape]
        if list(found) != right:
            raise InvalidTensor(
                f"the packet's {name[:40]} has the shape {str(found)[:100]}; a latent of this "
                f"stage's family has {right} for the packet's size"
            )
