"""When a request would be done: tables of stages, and plans over them.

A table has the answers of `forecast` for one request more on one stage, by its arrival there and
its steps, so that many plans are read off a few runs of the rules.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import ceil, inf
from typing import NamedTuple

import numpy as np

from diffusion_edge import batching
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import cost
from diffusion_edge.routing.cost import Counts, Floats, hop_s
from diffusion_edge.routing.due import due_s
from diffusion_edge.routing.forecast import Run, course, played
from diffusion_edge.routing.holding import Image, Kind, Stage, mode_of
from diffusion_edge.routing.kept import Kept
from diffusion_edge.view import Held, StageStatus, View

# ---------------------------------------------------------------------------- one stage

ARRIVALS = 10
"""Arrivals in a table: the first is now, at the last the stage has done all that it knows of."""

RUNS = 16, 5
"""Runs of the rules for the first arrival of a table, and for each of the others, at most."""


class Ask(NamedTuple):
    """What a request asks of a stage: images of `rows` rows and so many cells each, of up to
    `steps` steps. due_s: seconds from now; None leaves it to the stage. encodes: whether the stage
    is still to encode the text; ahead: whether that comes now, whenever the request arrives. age_s:
    seconds from the stage's report to now. doubled: as in `Held`."""

    cells: int
    rows: int
    steps: int
    images: int = 1
    due_s: float | None = None
    encodes: bool = True
    age_s: float = 0.0
    doubled: bool = False
    ahead: bool = False


@dataclass(frozen=True)
class Table:
    """When a request would be done on a stage, by arrival and steps there, in seconds from now.

    idle_s: when the stage has done all that it knows of. arrives_s: (A,), from 0 to then, and at
    last when it has also encoded the request's texts, or a second later. The others are (A, N),
    entry [a, n - 1] for n steps. first_s, last_s: when its first and its last image has taken its
    steps; done_s: when the last one is decoded, too. They never fall with the arrival.
    """

    idle_s: float
    arrives_s: Floats
    first_s: Floats
    last_s: Floats
    done_s: Floats

    def seconds(self, of: Floats, arrives_s: Floats, steps: Counts) -> Floats:
        """first_s, last_s or done_s by request; when the stage is idle they go with the arrival."""
        idle_s: Floats = np.maximum(arrives_s - self.arrives_s[-1], 0.0)
        return self.between(of, arrives_s, steps) + idle_s

    def between(self, of: Floats, arrives_s: Floats, steps: Counts) -> Floats:
        """Any of the tables by request, on the line between two arrivals."""
        known = self.arrives_s
        above = np.minimum(np.maximum(known.searchsorted(arrives_s), 1), len(known) - 1)
        below = known[above - 1]
        share = np.minimum(np.maximum((arrives_s - below) / (known[above] - below), 0.0), 1.0)
        low = of[above - 1, steps - 1]
        read: Floats = low + share * (of[above, steps - 1] - low)
        return read

    @cached_property
    def long(self) -> Table:
        """The same in as many arrivals as any table has, and one more: what comes later by a second
        leaves later by one."""
        more_s = np.arange(1.0, ARRIVALS + 3 - len(self.arrives_s))
        known = self.first_s, self.last_s, self.done_s
        arrives_s = np.concatenate([self.arrives_s, self.arrives_s[-1] + more_s])
        longer = (np.concatenate([of, of[-1] + more_s[:, None]]) for of in known)
        return Table(self.idle_s, arrives_s, *longer)


def table(status: StageStatus, ask: Ask, more: Sequence[Held] = ()) -> Table:
    """more: what else was decided to go there.

    Exact for one image that arrives at one of `arrives_s`, but for two things: the time that a
    picture waits for its decoding is about right, and where a request has more places among due
    times that make a difference than there are RUNS, some steps are read from the next later place.
    Several images are played at a few numbers of steps, and read off between them.
    """
    forecasts, age_s = Forecasts(status, ask, more), ask.age_s
    arrives_s = _arrivals(max(forecasts.idle_s - age_s, 0.0), forecasts.encode_s)
    rows = [forecasts.row(age_s + at_s) for at_s in arrives_s]
    first_s, last_s, done_s = (np.array(column) for column in zip(*rows, strict=True))
    return Table(
        idle_s=max(forecasts.idle_s - age_s, 0.0),
        arrives_s=np.array(arrives_s),
        first_s=np.maximum.accumulate(first_s, axis=0) - age_s,
        last_s=np.maximum.accumulate(last_s, axis=0) - age_s,
        done_s=np.maximum.accumulate(done_s, axis=0) - age_s,
    )


def _arrivals(idle_s: float, encode_s: float) -> list[float]:
    """Denser near now, where most requests arrive."""
    encoded_s = idle_s + (encode_s or 1.0)
    if not idle_s:
        return [0.0, encoded_s]
    return [*(idle_s * (k / (ARRIVALS - 1)) ** 1.5 for k in range(ARRIVALS)), encoded_s]


Row = tuple[Floats, Floats, Floats]
"""first_s, last_s and done_s of one arrival, by steps."""


class Forecasts:
    """The rows of a table, in seconds from the report. Runs with the request branch off from the
    stage's course without it where it arrives, or from one with its texts where these are encoded
    ahead of it. idle_s: when the course ends. without: its end. encode_s: what its texts take."""

    def __init__(self, status: StageStatus, ask: Ask, more: Sequence[Held]) -> None:
        self._course = course(status, more)
        stage = self._course.stage
        self._ask = ask
        self._told_s = None if ask.due_s is None else ask.age_s + ask.due_s
        self._number, self._kind = stage.kind(ask.cells, ask.rows, ask.doubled)
        self._mode = mode_of(status)
        self.without = self._course.end
        self.idle_s = self.without.now
        self.encode_s = _encode_s(stage, self._kind, ask) if _told(ask) else 0.0

    @cached_property
    def _told(self) -> list[Run]:
        """From where the stage has nothing else to do, and encodes the request's texts; none if it
        has not to."""
        ask = self._ask
        if not _told(ask):
            return []
        moments = self._course.moments
        run = next(moment for moment in moments if _is_idle(moment, ask.age_s)).copy()
        run.now = max(run.now, ask.age_s)
        run.tell([self._image(inf, ask.steps, run.now)] * ask.images)
        return played(run)

    def row(self, arrives_s: float) -> Row:
        if self._ask.images > 1:
            return self._of_several(arrives_s)
        return self._of_one(arrives_s)

    def _of_one(self, arrives_s: float) -> Row:
        """A run tells all numbers of steps up to its own that are due late enough for the same
        passes; the largest that is left gets the next run. If runs run short, each tells its share,
        so that what is not exact is spread out."""
        steps = self._ask.steps
        due_s = self._dues_s(arrives_s)
        last_s, done_s = [inf] * steps, [inf] * steps
        open_ = list(range(1, steps + 1))
        left = RUNS[0 if arrives_s <= self._ask.age_s else 1]
        while open_:
            sure = open_[len(open_) - ceil(len(open_) / left)]
            run = self.run(arrives_s, open_[-1])
            _read(run, due_s, sure, last_s, done_s)
            open_ = [n for n in open_ if last_s[n - 1] == inf]
            left -= 1
        stepped_s = np.array(last_s)
        return stepped_s, stepped_s, np.array(done_s)

    def _of_several(self, arrives_s: float) -> Row:
        steps, images = self._ask.steps, self._ask.images
        knots = np.unique(np.linspace(1, steps, RUNS[1]).round().astype(np.int64))
        found = []
        for n in knots.tolist():
            run = self.run(arrives_s, n)
            stepped_s = run.stepped_s[-images:]
            found.append((min(stepped_s), max(stepped_s), max(run.done_s[-images:])))
        every = np.arange(1, steps + 1)
        first_s, last_s, done_s = (
            np.interp(every, knots, each) for each in zip(*found, strict=True)
        )
        return first_s, last_s, done_s

    def _dues_s(self, arrives_s: float) -> list[float]:
        """By steps: the same for all where it is told."""
        steps = self._ask.steps
        if self._told_s is not None:
            return [self._due_s(arrives_s, steps)] * steps
        return [self._due_s(arrives_s, n) for n in range(1, steps + 1)]

    def _due_s(self, arrives_s: float, steps: int) -> float:
        alone_s = steps * self._kind.pass_s[1]
        return batching.due(arrives_s, alone_s, self._told_s, self._mode)

    def run(self, arrives_s: float, steps: int) -> Run:
        """With the request, whose images are the last ones, until it is done."""
        run = self.begun(arrives_s, steps)
        done_s = run.done_s
        while done_s[-1] == inf:  # of images that are alike the last one is done last
            run.round()
        return run

    def begun(self, arrives_s: float, steps: int) -> Run:
        """The same, at about when it comes."""
        images = [self._image(arrives_s, steps)] * self._ask.images
        told = self._told if arrives_s > self._ask.age_s else []
        if told and arrives_s > told[0].now:
            run = _before(told, arrives_s).copy()
            run.come(len(self.without.images), images)
        else:
            run = _before(self._course.moments, arrives_s).copy()
            run.add(images)
        run.watched = len(self.without.images)
        return run

    def _image(self, arrives_s: float, steps: int, told_s: float = inf) -> Image:
        due_s, encodes = self._due_s(arrives_s, steps), self._ask.encodes
        return Image(
            self._kind, self._number, steps, due_s, encodes, True, arrives_s, told_s=told_s
        )


def _told(ask: Ask) -> bool:
    return ask.encodes and ask.ahead


def _encode_s(stage: Stage, kind: Kind, ask: Ask) -> float:
    calls = [min(stage.texts, ask.images - k) for k in range(0, ask.images, stage.texts)]
    return sum(stage.encoding_s(images * kind.texts) for images in calls)


def _is_idle(run: Run, at_s: float) -> bool:
    """Whether it would encode a text that comes at such a moment, or has come by then."""
    return not run.turn and not run.ahead and (not run.coming or run.coming[-1][0] > at_s)


def _before(moments: Sequence[Run], at_s: float) -> Run:
    return moments[max(bisect_left(moments, at_s, key=lambda run: run.now) - 1, 0)]


def _read(
    run: Run, due_s: Sequence[float], sure: int, last_s: list[float], done_s: list[float]
) -> None:
    """Fills in, from a run with a watched image, each number of steps that the run is right for: so
    many steps into it, no image with the due time of so many would have been in a pass that this
    one was left out of. From `sure` on that is not asked."""
    number, n = run.watched, 0
    decode_s = run.images[number].kind.decode_s[1]
    for count, began_s, took_s, wait_s, bar_s in run.passes:
        for k in range(n + 1, n + count + 1):
            if last_s[k - 1] == inf and (k >= sure or due_s[k - 1] >= bar_s):
                last_s[k - 1] = began_s + (k - n) * took_s
                done_s[k - 1] = last_s[k - 1] + wait_s + decode_s
        n += count
    last_s[n - 1], done_s[n - 1] = run.stepped_s[number], run.done_s[number]


# ---------------------------------------------------------------------------- plans

LAST_S = 1e6
"""Nothing else is due as late."""

KEPT = 256
"""Tables that are kept, of the latest reports."""


class Tables:
    """The tables of a view's stages for one request, each made when it is first asked for, and once
    for all requests that are alike, as long as nothing new is known of the stage and its report is
    of one age. last: whether the request is due after all that is known."""

    def __init__(self, request: ImageRequest, view: View, last: bool = False) -> None:
        self._view = view
        self._steps = request.most_steps
        self._due_s = LAST_S if last else due_s(request, view)

    def of(self, stage: str, guided: bool, images: int) -> Table:
        status, ask = self._view.stages[stage], self.ask(stage, guided, images)
        return _TABLES.of(status, ask, lambda: table(status, ask))

    def ask(self, stage: str, guided: bool, images: int) -> Ask:
        view, status = self._view, self._view.stages[stage]
        return Ask(
            cells=view.cells,
            rows=status.rows(guided),
            steps=self._steps,
            images=images,
            due_s=self._due_s,
            age_s=view.age_s.get(stage, 0.0),
            doubled=status.doubles(guided),
            ahead=status.reads_ahead,
        )


_TABLES: Kept[Table] = Kept(KEPT)


def predict(
    stages: Sequence[str],
    steps: Sequence[Counts],
    guide: Sequence[bool],
    images: int,
    tables: Tables,
    view: View,
) -> Floats:
    """Seconds until the last image of the request is decoded, of plans over the same stages in the
    same order, as in `cost.of`. Each hop needs its link in the view, except from a stage to itself,
    which takes no time.

    The images set out together. At a later stage they are done when they would be if all had come
    with the first one, or the last one if it alone had come, whichever is later: where stages take
    images one by one, each works on one while the next one works on the one before.
    """
    *_, (_, done_s) = _moments(stages, steps, guide, images, tables, view)
    return done_s


def of_plan(plan: Plan, request: ImageRequest, view: View, tables: Tables | None = None) -> float:
    """Seconds until the last image of one plan is decoded, whose stages and links the view has."""
    *_, (_, done_s) = _moments_of(plan, request, view, tables)
    return float(done_s[0])


def arrivals(
    plan: Plan, request: ImageRequest, view: View, tables: Tables | None = None
) -> tuple[tuple[float, ...], ...]:
    """Seconds until each image comes to the stage of each span, by span and then by image. Those
    between the first and the last image are taken to come evenly."""
    coming = islice(_moments_of(plan, request, view, tables), len(plan.spans))
    return tuple(
        tuple(np.linspace(float(first_s[0]), float(last_s[0]), request.images).tolist())
        for first_s, last_s in coming
    )


def _moments_of(
    plan: Plan, request: ImageRequest, view: View, tables: Tables | None
) -> Iterator[tuple[Floats, Floats]]:
    stages, steps, guide = cost.parts(plan, request, view)
    return _moments(stages, steps, guide, request.images, tables or Tables(request, view), view)


def _moments(
    stages: Sequence[str],
    steps: Sequence[Counts],
    guide: Sequence[bool],
    images: int,
    tables: Tables,
    view: View,
) -> Iterator[tuple[Floats, Floats]]:
    """When the first and the last image come to each stage, and then when they have taken their
    steps and all are decoded on the last one."""
    end = len(stages) - 1
    first_s = last_s = np.zeros(len(steps[0]))
    handoff = np.zeros_like(steps[0])
    for k, name in enumerate(stages):
        if k:
            travel_s = hop_s(stages[k - 1], name, handoff, view)
            first_s, last_s = first_s + travel_s, last_s + travel_s
        yield first_s, last_s
        known = tables.of(name, guide[k], images)
        done_s = known.seconds(known.last_s if k < end else known.done_s, first_s, steps[k])
        if images > 1 and k:
            alone = tables.of(name, guide[k], 1)
            of = alone.last_s if k < end else alone.done_s
            done_s = np.maximum(done_s, alone.seconds(of, last_s, steps[k]))
        first_s, last_s = known.seconds(known.first_s, first_s, steps[k]), done_s
        handoff = handoff + steps[k]
    yield first_s, last_s
