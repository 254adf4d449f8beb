"""Arms measured in turns, and what their seconds come to. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from diffusion_edge.errors import UnequalArm
from diffusion_edge.rounding import BOUND

Name = TypeVar("Name")

Timed = Callable[[], float]
"""Does an arm's work once and returns its seconds."""


@dataclass(frozen=True)
class Row:
    """One arm's seconds by round, and its worst error against the stock pipeline.

    ratio: how many times as fast as the first arm, the median over the rounds; `ratios` the least
    and the most.
    """

    arm: str
    precision: str
    seconds: tuple[float, ...]
    median_s: float
    lowest_s: float
    highest_s: float
    ratio: float
    ratios: tuple[float, float]
    error: float


def timed(work: Callable[[], object]) -> Timed:
    """Measures one call of `work`."""

    def once() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return once


def turned(names: Sequence[Name], turn: int) -> list[Name]:
    """The order of the arms in round `turn`: each comes first once in as many rounds as arms."""
    at = turn % len(names)
    return [*names[at:], *names[:at]]


def interleaved(
    arms: Mapping[str, Timed], rounds: int, on_round: Callable[[int], None]
) -> dict[str, list[float]]:
    """Seconds by arm and round. `on_round` is called before each, from 0 on."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds):
        on_round(turn)
        for name in turned(list(arms), turn):
            taken[name].append(arms[name]())
    return taken


def rows(
    taken: Mapping[str, Sequence[float]], errors: Mapping[str, float], precision: str
) -> tuple[Row, ...]:
    """A row for every arm; the first one is what the others are compared with."""
    first = next(iter(taken.values()))
    found = []
    for name, seconds in taken.items():
        ratios = [a / b for a, b in zip(first, seconds, strict=True)]
        found.append(
            Row(
                arm=name,
                precision=precision,
                seconds=tuple(seconds),
                median_s=median(seconds),
                lowest_s=min(seconds),
                highest_s=max(seconds),
                ratio=median(ratios),
                ratios=(min(ratios), max(ratios)),
                error=errors[name],
            )
        )
    return tuple(found)


def check_equal(arm: str, errors: Mapping[str, float], bound: float = BOUND) -> float:
    """The worst of an arm's errors by request. Raises UnequalArm above `bound`, and for NaN."""
    worst = list(errors)[worst_of(list(errors.values()))]
    if not errors[worst] <= bound:
        raise UnequalArm(
            f"the arm {arm!r} differs from the stock pipeline by {errors[worst]:.1e} "
            f"({worst}; relative L2 of the final latent, at most {bound:.0e}), so its seconds "
            "would not be those of the same work"
        )
    return errors[worst]


def worst_of(errors: Sequence[float]) -> int:
    """Index of the largest error; NaN is larger than all."""
    return max(range(len(errors)), key=lambda i: (errors[i] != errors[i], errors[i]))
