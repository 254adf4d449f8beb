"""Plans of rules that know two models: a small one and a large one.

The large one is what the highest tier runs on which there is room, the small one what the lowest
runs: in the papers that is one machine with both, or a cloud and a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from diffusion_edge.plan import TIERS, Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.elastic import stages_with_room
from diffusion_edge.view import View


@dataclass(frozen=True)
class Two:
    """Stages by name, those that run the small model and those that run the large one. The same,
    where there is room on one tier only."""

    small: tuple[str, ...]
    large: tuple[str, ...]


def two(request: ImageRequest, view: View) -> Two:
    """Raises NoPlan and QueueFull."""
    names = sorted(stages_with_room(request, view))
    tiers = {name: TIERS.index(view.stages[name].tier) for name in names}
    lowest, highest = min(tiers.values()), max(tiers.values())
    return Two(
        small=tuple(name for name in names if tiers[name] == lowest),
        large=tuple(name for name in names if tiers[name] == highest),
    )


def handoff(share: float, steps: int) -> int:
    """The step that is nearest to a share of them, so that both models make one at least."""
    return min(max(round(share * steps), 1), steps - 1)


def split(
    first: Sequence[str], then: Sequence[str], share: float, request: ImageRequest, view: View
) -> list[Plan]:
    """A share of the steps on one of `first`, the rest on one of `then`, wherever there is a link
    from one to the other; there may be none."""
    at, steps = handoff(share, request.steps), request.steps
    if steps < 2:
        return []
    return [Plan.of(((a, at), (b, steps - at))) for a, b in linked(first, then, view)]


def linked(first: Sequence[str], then: Sequence[str], view: View) -> list[tuple[str, str]]:
    """All ways from one of `first` to another one of `then`."""
    return [(a, b) for a, b in product(first, then) if (a, b) in view.links and a != b]


def whole(names: Sequence[str], request: ImageRequest) -> list[Plan]:
    """All steps on one of these."""
    return [Plan.of(((name, request.steps),)) for name in names]
