"""Links acted out on a virtual clock, as emulated ones are (`engine.link`): packets pass one after
another at the rate of their time, and each arrives one delay later."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffusion_edge.traces import Trace, transfer_s

FOREVER_S = 1e9
PROBE_S = 4.0
"""As long as a probe takes at most, as `engine.probe` cuts it off."""


@dataclass(frozen=True)
class Rates:
    """One direction of a link: bytes a second over time, which begins `ahead_s` into the trace, and
    its one-way delay."""

    trace: Trace
    delay_s: float
    ahead_s: float = 0.0

    def pass_s(self, began: float, nbytes: float) -> float:
        if len(self.trace.values) == 1:
            return nbytes / float(self.trace.values[0])
        return transfer_s(self.trace, self.ahead_s + began, nbytes)

    def passes(self, began: float, ended: float) -> float:
        """Bytes that pass between two moments."""
        return self.trace.until(self.ahead_s + ended) - self.trace.until(self.ahead_s + began)


class Way:
    """What passes over a link. cuts: (from, to), when nothing does, in order."""

    def __init__(self, rates: Rates, cuts: tuple[tuple[float, float], ...] = ()) -> None:
        self._rates = rates
        self._cuts = cuts
        self._passed_s = 0.0

    def in_use(self, now: float) -> bool:
        return self._passed_s > now

    def carry(self, nbytes: float, now: float) -> tuple[float, float]:
        """When a packet that sets out now arrives, and how long it waits for those before it."""
        began = max(now, self._passed_s)
        self._passed_s = self._ends(began, nbytes)
        return self._passed_s + self._rates.delay_s, began - now

    def probe(self, nbytes: float, now: float) -> float | None:
        """Seconds that a probe takes, which is cut off in time; None where something passes."""
        if self.in_use(now):
            return None
        arrives_s, _ = self.carry(nbytes, now)
        self._passed_s = min(self._passed_s, now + PROBE_S)
        return min(arrives_s - now, PROBE_S)

    def _ends(self, began: float, nbytes: float) -> float:
        """Between cuts it passes at its rates."""
        rates = self._rates
        for start, stop in self._cuts:
            ends = began + rates.pass_s(began, nbytes)
            if ends <= start:
                return ends
            if began < stop:
                if began < start:
                    nbytes -= rates.passes(began, start)
                began = stop
        return began + rates.pass_s(began, nbytes)


def steady(bytes_per_s: float) -> Trace:
    """A rate that does not change."""
    return Trace(np.array([0.0]), np.array([bytes_per_s]), 1.0)
