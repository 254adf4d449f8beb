"""How right predictions were: actual seconds over predicted, learned from every request served.

The 90 % quantile is that of the last requests, at a level that is moved until nine in ten are done
before what they were told (adaptive conformal inference, Gibbs and Candès 2021), as for links.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import exp, log
from statistics import median

from diffusion_edge.routing.links.estimate import EASE, QUANTILE, quantile
from diffusion_edge.types import Choice

WINDOW = 200
"""Requests that the quantiles are taken from."""

LEAST = 9
"""Requests before anything is told: of fewer not even the slowest says what nine in ten stay below.
"""


@dataclass(frozen=True)
class Calibration:
    """What finished requests say of predictions. A value: `observe` makes another.

    misses: logarithms of actual seconds over predicted, newest last. level: of the quantile among
    them. served: requests in all; told, below: those that were told a 90 % quantile, and those of
    them that were done before it.
    """

    misses: tuple[float, ...] = ()
    level: float = QUANTILE
    served: int = 0
    told: int = 0
    below: int = 0

    def observe(self, told: Choice, actual_s: float) -> Calibration:
        """After a request that was told this and was served in `actual_s`. Where one of them is no
        time at all, nothing can be learned."""
        if told.predicted_s <= 0.0 or actual_s <= 0.0:
            return self
        misses = (*self.misses, log(actual_s / told.predicted_s))[-WINDOW:]
        found = replace(self, misses=misses, served=self.served + 1)
        if told.predicted_90_s is None:
            return found
        late = actual_s > told.predicted_90_s
        level = min(max(self.level + EASE * (late - (1.0 - QUANTILE)), 0.5), 0.995)
        return replace(found, level=level, told=self.told + 1, below=self.below + (not late))

    def predicted_90_s(self, predicted_s: float) -> float | None:
        """Seconds that nine in ten of such requests stay below; None before LEAST were served."""
        return None if self.slow is None else predicted_s * self.slow

    @cached_property
    def slow(self) -> float | None:
        """The 90 % quantile of actual over predicted seconds."""
        if len(self.misses) < LEAST:
            return None
        return exp(quantile(sorted(self.misses), self.level))

    @cached_property
    def median_error(self) -> float | None:
        """Of predictions, relative, whether they were too high or too low."""
        if len(self.misses) < LEAST:
            return None
        return median(abs(exp(miss) - 1.0) for miss in self.misses)

    @property
    def below_share(self) -> float | None:
        """Of the requests that were told a 90 % quantile, those that were done before it."""
        return self.below / self.told if self.told else None
