"""How many images of one request the queues of stages can hold at once."""

from __future__ import annotations

from collections.abc import Mapping

from diffusion_edge.errors import InvalidRequest
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.forecast import ahead
from diffusion_edge.view import StageStatus, View


def can_hold(status: StageStatus, request: ImageRequest) -> bool:
    """Whether the stage could hold the request if it had nothing else."""
    return request.images <= status.capacity


def has_room(status: StageStatus, request: ImageRequest) -> bool:
    """Whether it could do so now."""
    return status.queued + request.images <= status.capacity


def opens_s(name: str, request: ImageRequest, view: View) -> float:
    """Seconds until a stage that could hold the request has room for it, by its rules run ahead."""
    status = view.stages[name]
    leaves_s = sorted(ahead(status))
    leaving = status.queued + request.images - status.capacity
    if not leaves_s:
        return status.queue_s
    opens = leaves_s[min(max(leaving, 1), len(leaves_s)) - 1]
    return max(opens - view.age_s.get(name, 0.0), 0.0)


def too_many(images: int, capacity: Mapping[str, int], why: str = "") -> InvalidRequest:
    """What to raise where waiting would not help. capacity: of the stages that are too small."""
    return InvalidRequest(f"{why}{told(images, capacity)}; ask for fewer at once", param="n")


def told(images: int, capacity: Mapping[str, int]) -> str:
    limits = ", ".join(f"{name!r} {most}" for name, most in capacity.items())
    return f"n is {images}, more images than the queue of a stage can hold ({limits})"
