"""How many images of one request the queues of stages can hold at once."""

from __future__ import annotations

from collections.abc import Mapping

from diffusion_edge.errors import InvalidRequest
from diffusion_edge.types import ImageRequest, StageStatus


def can_hold(status: StageStatus, request: ImageRequest) -> bool:
    """Whether the stage could hold the request if it had nothing else."""
    return request.images <= status.capacity


def has_room(status: StageStatus, request: ImageRequest) -> bool:
    """Whether it could do so now."""
    return status.queued + request.images <= status.capacity


def too_many(images: int, capacity: Mapping[str, int], why: str = "") -> InvalidRequest:
    """What to raise where waiting would not help. capacity: of the stages that are too small."""
    return InvalidRequest(f"{why}{told(images, capacity)}; ask for fewer at once", param="n")


def told(images: int, capacity: Mapping[str, int]) -> str:
    limits = ", ".join(f"{name!r} {most}" for name, most in capacity.items())
    return f"n is {images}, more images than the queue of a stage can hold ({limits})"
