"""What is known of all stages: their last reports, and what was decided since.

Between two reports a view has what was decided meanwhile (`promises`) beside what was reported.
Times of what a stage holds count from its report, and the view says how old that is: so the record
of a stage stays the same object until there is a report or a promise more or less, and what is
computed of it can be kept (`finish`), while the stage's work since its report still counts. What a
stage will do with what it has moves promises to the stages after it. The
board's clock for this goes by ticks, whose differences have no rounding: requests that are decided
one after another within a tick are due in that order, not in that of the last bit of a sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import permutations
from math import floor

from diffusion_edge.plan import Codec, Tier
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.links.taken import Links, Pair
from diffusion_edge.routing.promises import Kept, Promises, merged, promised
from diffusion_edge.view import Carried, Choice, Link, StageStatus, View

FRESH_S = 1.0
"""A stage that is silent for so much longer than its last answer took is not in the view."""
EVERY_S = 0.2
"""Between a stage's reports."""
TICK_S = 1 / 16
"""A power of two. Shorter ones make tables more often, longer ones know ages less well."""
SETTLING = 2
"""Rounds in which what one stage foretells moves what is promised to others."""


@dataclass(frozen=True)
class Carriage:
    """Codec and bytes (or what emulated links take for them) of a packet that is handed off before
    step k, from 0 to all steps, and the cells of its latent."""

    codecs: tuple[Codec, ...]
    packet_bytes: tuple[int, ...]
    cells: int


@dataclass(frozen=True)
class _Seen:
    """at_s: the tick in which it came."""

    status: StageStatus
    good_until: float
    at_s: float


@dataclass(frozen=True)
class _Merged:
    """A report, known by identity, and the promises that were merged into it, by their version."""

    seen: _Seen
    version: int
    status: StageStatus


class Board:
    """stages: all there may be, in order. links: by (from, to), what is stated of every pair that
    can hand off; measure_links: whether hops overrule that. carriage: how a request's packet is
    carried. now: a clock."""

    def __init__(
        self,
        stages: Sequence[str],
        links: Mapping[Pair, Link | None],
        price_per_s: Mapping[Tier, float],
        carriage: Callable[[ImageRequest], Carriage],
        now: Callable[[], float],
        measure_links: bool = True,
    ) -> None:
        self._stages = tuple(stages)
        self.links = Links(links, now, measure_links)
        self._price_per_s = dict(price_per_s)
        self._carriage = carriage
        self._now = now
        self._seen: dict[str, _Seen] = {}
        self._merged: dict[str, _Merged] = {}
        self._promises = Promises()
        self._views = itertools.count()

    # ------------------------------------------------------------------ what is told to it

    def heard(
        self, name: str, status: StageStatus, good_for_s: float = FRESH_S, age_s: float = 0.0
    ) -> None:
        """A stage has reported, `age_s` ago, and is in the view for so long from then on unless it
        reports again."""
        at_s = self._now() - age_s
        self._seen[name] = _Seen(status, at_s + good_for_s, _tick_s(at_s))
        self._promises.reported(name, status.held)

    def lost(self, name: str) -> bool:
        """A stage is not in the view any longer. Whether it was."""
        return self._seen.pop(name, None) is not None

    def promised(
        self, request: ImageRequest, choice: Choice, view: View
    ) -> AbstractContextManager[Kept]:
        """What was decided from `view` counts at once, until the block is left at the latest."""
        return self._promises.kept(promised(request, choice, view, _tick_s(self._now())))

    # ------------------------------------------------------------------ what it tells

    def view(self, request: ImageRequest, among: Sequence[str] | None = None) -> View:
        """What is known now, for this request. among: the stages that it may have; None for all."""
        stages, tick_s = self.statuses(among), _tick_s(self._now())
        links = {pair: self.links.link(pair) for pair in self._open(stages)}
        carried = self._carriage(request)
        others = [steps for steps in request.free_steps if steps != request.steps]
        return View(
            stages=stages,
            links=links,
            price_per_s=self._price_per_s,
            packet_bytes=carried.packet_bytes,
            codecs=carried.codecs,
            cells=carried.cells,
            turn=next(self._views),
            age_s={name: tick_s - self._seen[name].at_s for name in stages},
            carried={steps: self._carried(request.in_steps(steps)) for steps in others},
        )

    def _carried(self, request: ImageRequest) -> Carried:
        found = self._carriage(request)
        return Carried(found.packet_bytes, found.codecs)

    def open_pairs(self) -> list[Pair]:
        """Those that can hand off now."""
        return self._open(self.statuses())

    def _open(self, stages: Mapping[str, StageStatus]) -> list[Pair]:
        return [
            pair
            for pair in permutations(stages, 2)
            if pair in self.links and stages[pair[0]].can_reach(pair[1])
        ]

    def statuses(self, among: Sequence[str] | None = None) -> dict[str, StageStatus]:
        """The live stages (of some), in their order, with what is promised to them."""
        now, names = self._now(), self._stages if among is None else among
        live = [n for n in names if n in self._seen and self._seen[n].good_until >= now]
        for _ in range(SETTLING):
            for name in live:
                self._status(name)
        return {name: self._status(name) for name in live}

    def _status(self, name: str) -> StageStatus:
        seen, version = self._seen[name], self._promises.version(name)
        known = self._merged.get(name)
        if known is None or known.seen is not seen or known.version != version:
            told, listed = self._promises.of(name), self._promises.listed(name)
            status = merged(seen.status, told, seen.at_s, listed)
            known = self._merged[name] = _Merged(seen, version, status)
            self._promises.foretold(name, status, seen.at_s)
        return known.status


def _tick_s(at_s: float) -> float:
    return floor(at_s / TICK_S) * TICK_S
