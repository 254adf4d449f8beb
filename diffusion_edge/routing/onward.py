"""The plans of an image from where it is, which `replan` chooses from: when they would be done,
what they cost, whether they reach the floor and whom they make late.

The stage that holds the image is run ahead with it as it stands, so each of its steps there has its
moment. The others are asked as for any request (`finish`, `harm`), as if the image had not been
promised to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, permutations
from math import inf

import numpy as np

from diffusion_edge.plan import EXACT, Plan, Span
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import cost
from diffusion_edge.routing.cost import Bools, Counts, Floats, cuts
from diffusion_edge.routing.due import due_s
from diffusion_edge.routing.finish import Ask, Table, table
from diffusion_edge.routing.forecast import Run
from diffusion_edge.routing.harm import Allowing, Harmless, harmless
from diffusion_edge.routing.holding import Stage
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.rule import Standing
from diffusion_edge.view import StageStatus, View

LEAD_S = 0.1
"""A step that ends sooner may be over when the stage is told."""


def place_of(request: ImageRequest, view: View, standing: Standing, k: int) -> int | None:
    """Of the image's k-th span that is left, among what its stage holds or is promised."""
    stage, key = standing.left[k].stage, (request.request_id, standing.image)
    if stage not in view.stages:
        return None
    held = view.stages[stage].held
    places = [place for place, one in enumerate(held) if (one.request, one.image) == key]
    visit = sum(span.stage == stage for span in standing.left[:k])
    return places[visit] if visit < len(places) else None


@dataclass(frozen=True)
class Way:
    plan: Plan
    finish_s: float
    cost: float

    def order(self, within_s: float) -> tuple[bool, float, float]:
        """Those in time come first, by their cost, and then the others."""
        if self.finish_s <= within_s:
            return False, self.cost, self.finish_s
        return True, self.finish_s, self.cost


@dataclass(frozen=True)
class Onward:
    """The plans of an image from here on. A path has the stage that holds it and up to two others,
    as many as a quality table knows of."""

    request: ImageRequest
    view: View
    quality: QualityTable
    standing: Standing

    def paths(self) -> Iterator[tuple[str, ...]]:
        here, view = self.here.stage, self.view
        yield (here,)
        others = [name for name in view.stages if name != here]
        for count in (1, 2):
            for path in permutations(others, count):
                if all(pair in view.links for pair in pairwise((here, *path))):
                    yield (here, *path)

    def best(self, path: tuple[str, ...], within_s: float) -> Iterator[Way]:
        """The one over these stages, if there is any above the floor that makes nobody late."""
        stops = self._stops(path)
        finish_s, fine = self._finish_s(path, stops)
        fine &= self._bound(path, stops) >= self._floor
        paid = self._cost(path, stops)
        late = finish_s > within_s
        order = np.lexsort((np.where(late, paid, finish_s), np.where(late, finish_s, paid), late))
        for best in order[fine[order]][:1].tolist():
            plan = self._plan(path, [int(each[best]) for each in stops])
            yield Way(plan, float(finish_s[best]), float(paid[best]))

    # ------------------------------------------------------------------ where it is

    @property
    def here(self) -> Span:
        return self.standing.left[0]

    @property
    def _key(self) -> tuple[str, int]:
        return self.request.request_id, self.standing.image

    @property
    def done(self) -> tuple[Span, ...]:
        """Spans before that, which stay as they are."""
        return self.standing.plan.spans[: -len(self.standing.left)]

    @cached_property
    def _stays_s(self) -> tuple[Floats, float]:
        """When it has taken each step that is left, and is decoded, if it takes all here."""
        place = place_of(self.request, self.view, self.standing, 0)
        assert place is not None
        status, steps = self.view.stages[self.here.stage], self._steps - self.standing.position
        others = (held for k, held in enumerate(status.held) if k != place)
        mine = {id(held) for held in others if (held.request, held.image) == self._key}
        kept = [k for k, held in enumerate(status.held) if id(held) not in mine]
        image, known = kept.index(place), _only(status, kept)
        stays = replace(known.held[image], steps=steps, decodes=True)
        stage, held = Stage(known), [*known.held[:image], stays, *known.held[image + 1 :]]
        run = Run(stage, [stage.image(each) for each in held])
        age_s, taken_s = self.view.age_s.get(self.here.stage, 0.0), _taken_s(run, image)
        return np.array(taken_s) - age_s, run.done_s[image] - age_s

    @cached_property
    def _first(self) -> int:
        """The first step boundary at which it can leave."""
        over = int(np.searchsorted(self._stays_s[0], LEAD_S))
        return min(self.standing.position + over + 1, self._steps)

    @property
    def _steps(self) -> int:
        return self.standing.plan.steps

    # ------------------------------------------------------------------ plans over one path

    def _stops(self, path: tuple[str, ...]) -> list[Counts]:
        """Where each span ends."""
        first, steps = self._first - 1, self._steps
        if steps - first < len(path):
            return [np.zeros(0, np.int64)] * len(path)
        ends = np.cumsum(np.stack(cuts(steps - first, len(path))), axis=0) + first
        return list(ends)

    def _plan(self, path: tuple[str, ...], stops: list[int]) -> Plan:
        starts = [self.here.start, *stops[:-1]]
        now = replace(self.here, stop=stops[0])
        on = (Span(*each) for each in zip(path[1:], starts[1:], stops[1:], strict=True))
        spans = (*self.done, now, *on)
        return Plan(spans, (EXACT,) * (len(spans) - 1)).with_codecs(self.view.codecs)

    def _whole(self, path: tuple[str, ...], stops: list[Counts]) -> tuple[list[str], list[Counts]]:
        """Stages and steps from step 0 on."""
        done = [np.full(len(stops[0]), span.steps) for span in self.done]
        starts = [np.full(len(stops[0]), self.here.start), *stops[:-1]]
        left = [stop - start for start, stop in zip(starts, stops, strict=True)]
        return [*(span.stage for span in self.done), *path], [*done, *left]

    def _cost(self, path: tuple[str, ...], stops: list[Counts]) -> Floats:
        stages, steps = self._whole(path, stops)
        guide = [cost.guided(name, self.request, self.view) for name in stages]
        return cost.of(stages, steps, guide, 1, self.view)

    def _bound(self, path: tuple[str, ...], stops: list[Counts]) -> Floats:
        if not len(stops[0]):
            return np.zeros(0)
        stages, steps = self._whole(path, stops)
        models = cost.models(stages, self.view)
        return self.quality.bound_all(models, steps, self.request.size)

    @cached_property
    def _floor(self) -> float:
        """A plan that never reached it is to be no worse."""
        known = cost.in_models(self.standing.plan, self.view)
        return min(self.request.quality_floor, self.quality.bound(known, self.request.size))

    def _finish_s(self, path: tuple[str, ...], stops: list[Counts]) -> tuple[Floats, Bools]:
        """When they are done, and whether nobody is late for them."""
        taken_s, done_s = self._stays_s
        fine = self._harmless_here(stops[0])
        leaves_s = taken_s[stops[0] - self.standing.position - 1]
        if len(path) == 1:
            return np.full(len(leaves_s), done_s), fine
        for k, (source, name) in enumerate(pairwise(path), 1):
            comes_s = leaves_s + cost.hop_s(source, name, stops[k - 1], self.view)
            known, steps = self._tables[name], stops[k] - stops[k - 1]
            of = known.done_s if k == len(path) - 1 else known.last_s
            leaves_s = known.seconds(of, comes_s, steps)
            fine = fine & self._allowed(name, comes_s, steps)
        return leaves_s, fine

    # ------------------------------------------------------------------ the stages without it

    def _harmless_here(self, stops: Counts) -> Bools:
        """Steps that were planned here are nobody's loss."""
        more = stops - self._first + 1
        fine: Bools = self._allowed(self.here.stage, np.zeros(len(stops)), more)
        return fine | (stops <= self.here.stop)

    @cached_property
    def _without(self) -> dict[str, StageStatus]:
        return {name: _without(status, self._key) for name, status in self.view.stages.items()}

    @cached_property
    def _tables(self) -> dict[str, Table]:
        others = ((n, status) for n, status in self._without.items() if n != self.here.stage)
        return {name: table(status, self._ask(name)) for name, status in others}

    @cached_property
    def _allowing(self) -> Allowing:
        without, slip = list(self._without.items()), self.view.slip

        def each(row: int) -> Harmless:
            name, status = without[row]
            return harmless(status, self._ask(name), slip)

        return Allowing(len(without), each)

    def _allowed(self, name: str, comes_s: Floats, steps: Counts) -> Bools:
        """Whether the stage takes it with nobody else made late."""
        rows = np.full(len(steps), list(self._without).index(name))
        return self._allowing.allowed(rows, comes_s, steps)

    def _ask(self, name: str) -> Ask:
        """Its text is known where it is, and goes ahead to the others."""
        status, here = self.view.stages[name], name == self.here.stage
        guided = cost.guided(name, self.request, self.view)
        return Ask(
            cells=self.view.cells,
            rows=status.rows(guided),
            steps=self._steps - self.standing.position,
            due_s=due_s(self.request, self.view) - self.standing.elapsed_s,
            encodes=not here,
            age_s=self.view.age_s.get(name, 0.0),
            doubled=status.doubles(guided),
            ahead=status.reads_ahead and not here,
        )


def _taken_s(run: Run, image: int) -> list[float]:
    """Plays a run until an image is done: when each of its steps ends."""
    taken_s: list[float] = []
    while run.done_s[image] == inf:
        began_s, left = run.now, run.left[image]
        run.round()
        if count := left - run.left[image]:
            each_s = (run.now - began_s) / count
            taken_s += [began_s + k * each_s for k in range(1, count + 1)]
    return taken_s


def _without(status: StageStatus, key: tuple[str, int]) -> StageStatus:
    """As if the image were not there; the very same record where it is not."""
    kept = [k for k, held in enumerate(status.held) if (held.request, held.image) != key]
    if len(kept) == len(status.held):
        return status
    return _only(status, kept)


def _only(status: StageStatus, kept: Sequence[int]) -> StageStatus:
    """With some of what it holds."""
    places = {k: place for place, k in enumerate(kept)}
    images = tuple(places[k] for k in status.turn.images if k in places)
    held = tuple(status.held[k] for k in kept)
    return replace(status, held=held, turn=replace(status.turn, images=images))
