"""A stage and the last that it reported, at regular moments, told only when somebody looks."""

from __future__ import annotations

from math import floor

from diffusion_edge.sim.stage import Report, SimStage
from diffusion_edge.view import StageStatus


class Polled:
    """A stage that reports every `every_s`, first at `first_s`. Call `before` before anything
    happens to the stage: it keeps what was reported until then."""

    def __init__(self, idle: StageStatus, every_s: float, first_s: float) -> None:
        self.stage = SimStage(idle)
        self.alive = True
        self.version = 0
        """Another one whenever something happened to the stage."""
        self._every_s, self._first_s = every_s, first_s
        self._tick = self._told = -1
        self._report: Report | None = None

    def before(self, now: float) -> None:
        self._hear(now)
        self.version += 1

    def look(self, now: float) -> tuple[float, StageStatus | None] | None:
        """When it last reported, and what, None if it gave no answer; nothing if that was told."""
        self._hear(now)
        if self._told == self._tick:
            return None
        self._told = self._tick
        at_s = self._at_s(self._tick)
        return at_s, None if self._report is None else self._report.at(at_s)

    def _hear(self, now: float) -> None:
        tick = floor((now - self._first_s) / self._every_s)
        if tick > self._tick:
            self._tick = tick
            self._report = self.stage.report(self._at_s(tick)) if self.alive else None

    def _at_s(self, tick: int) -> float:
        return self._first_s + tick * self._every_s
