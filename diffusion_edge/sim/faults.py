"""What goes wrong, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from diffusion_edge import curves
from diffusion_edge.routing.links.taken import Pair
from diffusion_edge.view import StageStatus


@dataclass(frozen=True)
class Fault:
    """From `at_s` on, for `for_s`. lost: a stage holds nothing, and is not there. slow: it takes
    `times` as long. cut: nothing passes over some links."""

    kind: Literal["lost", "slow", "cut"]
    at_s: float
    for_s: float
    stage: str = ""
    pairs: tuple[Pair, ...] = ()
    times: float = 1.0


def slower(idle: StageStatus, times: float) -> StageStatus:
    """What a stage reports that takes so many times as long, once it knows."""

    def all_(by_cells: curves.Curve) -> curves.Curve:
        return {known: seconds * times for known, seconds in by_cells.items()}

    return replace(
        idle,
        step_s={cells: all_(curve) for cells, curve in idle.step_s.items()},
        encode_s=idle.encode_s * times,
        decode_s=all_(idle.decode_s),
        texts_s=all_(idle.texts_s),
        pictures_s={cells: all_(curve) for cells, curve in idle.pictures_s.items()},
    )


def cuts(faults: Sequence[Fault], pair: Pair) -> tuple[tuple[float, float], ...]:
    """When nothing passes over a link, in order."""
    return tuple(sorted((f.at_s, f.at_s + f.for_s) for f in faults if pair in f.pairs))
