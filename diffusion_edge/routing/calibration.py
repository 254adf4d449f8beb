"""How right predictions were: actual seconds over predicted, learned from every request served.

The 90 % quantile is that of the last requests, at a level that is moved until nine in ten are done
before what they were told (adaptive conformal inference, Gibbs and Candès 2021), as for links.

What a request took says two things. That nine in ten stay below so many seconds is told to who
asks. Whether the next one can be in time is another question: who was promised a far deadline is
passed by others as long as that holds, and so takes far longer than was foretold though no forecast
was wrong. So of who was in time no more than RESERVE counts for that (`slip`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import exp, inf, log
from statistics import median

from diffusion_edge.routing.links.estimate import QUANTILE, moved, quantile
from diffusion_edge.view import Choice

WINDOW = 200
"""Requests that the quantiles are taken from."""

LEAST = 9
"""Requests before anything is told: of fewer not even the slowest says what nine in ten stay below.
"""


RESERVE = 1.15
"""Times the forecast that is counted at most of a request that was in time: what is kept for those
that come later (LOG.md: The simulator)."""


@dataclass(frozen=True)
class Calibration:
    """What finished requests say of predictions. A value: `observe` makes another.

    misses: logarithms of actual seconds over predicted, newest last; corrected: over those that one
    in two was told to stay below; counted: over those that its deadline was held against, as `slip`
    counts them. level: of the quantile among misses. served: requests in all; told, below: those
    that were told a 90 % quantile, and those of them that were done before it.
    """

    misses: tuple[float, ...] = ()
    counted: tuple[float, ...] = ()
    corrected: tuple[float, ...] = ()
    level: float = QUANTILE
    served: int = 0
    told: int = 0
    below: int = 0

    def observe(self, told: Choice, actual_s: float, deadline_s: float) -> Calibration:
        """After a request that was told this and was served in `actual_s`. Where one of them is no
        time at all, nothing can be learned."""
        if told.predicted_s <= 0.0 or actual_s <= 0.0:
            return self
        misses = (*self.misses, log(actual_s / told.predicted_s))[-WINDOW:]
        found = self._counting(told, actual_s, deadline_s)
        found = replace(found, misses=misses, served=self.served + 1)
        if told.predicted_50_s is None or told.predicted_90_s is None:
            return found
        corrected = (*self.corrected, log(actual_s / told.predicted_50_s))[-WINDOW:]
        late = actual_s > told.predicted_90_s
        level = moved(self.level, late)
        told_all, below = self.told + 1, self.below + (not late)
        return replace(found, corrected=corrected, level=level, told=told_all, below=below)

    def given_up(self, told: Choice, after_s: float) -> Calibration:
        """After a request that was told this, and whose work was given up so much later."""
        return self if told.counted_s <= 0.0 else self._counting(told, after_s, 0.0)

    def _counting(self, told: Choice, actual_s: float, deadline_s: float) -> Calibration:
        took = log(actual_s / told.counted_s)
        most = log(RESERVE) if actual_s <= deadline_s else inf
        return replace(self, counted=(*self.counted, min(took, most))[-WINDOW:])

    def of(self, choice: Choice) -> Choice:
        """With what one in two and nine in ten of such requests stay below; as it is before LEAST
        were served."""
        if self.usual is None or self.slow is None:
            return choice
        predicted_s = choice.predicted_s
        return replace(
            choice,
            predicted_50_s=predicted_s * self.usual,
            predicted_90_s=predicted_s * self.slow,
        )

    @cached_property
    def usual(self) -> float | None:
        """The median of actual over predicted seconds: what comes later takes its part."""
        return None if len(self.misses) < LEAST else exp(median(self.misses))

    @cached_property
    def slow(self) -> float | None:
        """The 90 % quantile of actual over predicted seconds."""
        if len(self.misses) < LEAST:
            return None
        return exp(quantile(sorted(self.misses), self.level))

    @cached_property
    def slip(self) -> float:
        """What decisions count with (`View.slip`): the 90 % quantile of what counts of actual over
        forecast seconds. Of all that requests took, it left stages idle wherever bursts come, and
        the median, or forecasts as they are, broke more promises (LOG.md: Decisions by what was
        learned; The simulator)."""
        if len(self.counted) < LEAST:
            return 1.0
        return exp(quantile(sorted(self.counted), QUANTILE))

    @cached_property
    def median_error(self) -> float | None:
        """Of predictions, relative, whether they were too high or too low."""
        return _median_error(self.misses)

    @cached_property
    def median_error_50(self) -> float | None:
        """The same of what one in two was told to stay below."""
        return _median_error(self.corrected)

    @property
    def below_share(self) -> float | None:
        """Of the requests that were told a 90 % quantile, those that were done before it."""
        return self.below / self.told if self.told else None


def _median_error(misses: tuple[float, ...]) -> float | None:
    if len(misses) < LEAST:
        return None
    return median(abs(exp(miss) - 1.0) for miss in misses)
