"""What was decided and no stage has reported yet: images that are to come, and what they will ask.

A report is some tenths of a second old, and what comes to a plan's later stages is in none. So each
image of a request that was decided is promised to each stage of its plan, until a report of that
stage lists it, or the stage is done with it, or the request ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf

import numpy as np

from diffusion_edge import batching, curves
from diffusion_edge.plan import Plan
from diffusion_edge.request import Done, Event, ImageRequest, Progress
from diffusion_edge.routing import cost, due, finish
from diffusion_edge.routing.cost import span_guided
from diffusion_edge.routing.due import is_late
from diffusion_edge.routing.forecast import ahead
from diffusion_edge.routing.holding import mode_of
from diffusion_edge.view import Choice, Held, StageStatus, Turn, View

MOVED_S = 1 / 32
"""By less, nothing is made anew."""

# ---------------------------------------------------------------------------- one promise


@dataclass(eq=False)
class Promise:
    """An image that is to take its steps up to `stop` on a stage. at_s: when that was decided, by
    the board's clock; arrives_s, due_s: seconds from then, and so is latest_s, when it has to
    leave the stage for its request to be in time; inf if that will not be. hop_s: from there to
    the next one; slow_hop_s: as slow as one hop in ten. slip: as in the view that it was decided
    from."""

    stage: str
    request: str
    image: int
    stop: int
    steps: int
    rows: int
    cells: int
    decodes: bool
    at_s: float
    arrives_s: float
    due_s: float
    latest_s: float = inf
    hop_s: float = 0.0
    slow_hop_s: float = 0.0
    slip: float = 1.0
    doubled: bool = False
    before: Promise | None = field(default=None, repr=False)
    after: Promise | None = field(default=None, repr=False)

    @property
    def key(self) -> tuple[str, int]:
        return self.request, self.image

    @property
    def text(self) -> tuple[str, int, int]:
        """As `Told` names it."""
        return self.request, self.image, self.stop - self.steps

    def alone_s(self, status: StageStatus) -> float:
        """What its steps take on the stage if nothing else is there."""
        return self.steps * curves.seconds(curves.curve(status.step_s, self.cells), self.rows)

    def held(self, status: StageStatus, reported_s: float, encodes: bool) -> Held:
        """As the stage would tell it, from its report on. What should have come before the report
        and is not in it comes at once. Stages after the first one are told the text when it is
        decided. reported_s: by the board's clock. encodes: whether the text is still to be."""
        since_s = self.at_s - reported_s
        arrives_s = max(since_s + self.arrives_s, 0.0)
        due_s = batching.due(arrives_s, self.alone_s(status), since_s + self.due_s, mode_of(status))
        return Held(
            request=self.request,
            image=self.image,
            steps=self.steps,
            rows=self.rows,
            cells=self.cells,
            due_s=due_s,
            encodes=encodes,
            decodes=self.decodes,
            arrives_s=arrives_s,
            latest_s=since_s + self.latest_s,
            doubled=self.doubled,
            told_s=max(since_s, 0.0) if self.before and status.reads_ahead else inf,
        )


def promised(request: ImageRequest, choice: Choice, view: View, at_s: float) -> tuple[Promise, ...]:
    """One by span and image. view: what was decided from."""
    plan, last = choice.plan, len(choice.plan.spans) - 1
    tables = finish.Tables(request, view, choice.late)
    arrives = finish.arrivals(plan, request, view, tables)
    hops_s, slow_hops_s = _hops_s(plan, view), _hops_s(plan, view.slowed())
    latest = _latest(request, choice, view, arrives, hops_s)
    due_s = due.decided_s(request, choice, view)
    made = tuple(
        Promise(
            stage=span.stage,
            request=request.request_id,
            image=image,
            stop=span.stop,
            steps=span.steps,
            rows=view.stages[span.stage].rows(span_guided(span, request, view)),
            cells=view.cells,
            decodes=k == last,
            at_s=at_s,
            arrives_s=arrives_s,
            due_s=due_s,
            latest_s=latest[k][image],
            hop_s=hops_s[k],
            slow_hop_s=slow_hops_s[k],
            slip=view.slip,
            doubled=view.stages[span.stage].doubles(span_guided(span, request, view)),
        )
        for k, (span, by_image) in enumerate(zip(plan.spans, arrives, strict=True))
        for image, arrives_s in enumerate(by_image)
    )
    for before, after in zip(made, made[request.images :], strict=False):
        before.after, after.before = after, before
    return made


def _later(
    here: Promise, latest_s: float, plan: Plan, at: int, request: ImageRequest, view: View
) -> list[Promise]:
    """Of an image whose plan is another one after the span that it is at, `here`. When it comes to
    these stages and has to leave them is known when the rules were run ahead next.

    latest_s: when it has to leave the last one."""
    hops_s, now = _hops_s(plan, view), here
    here.hop_s, here.after, here.decodes = hops_s[at], None, at == len(plan.spans) - 1
    here.latest_s, made = latest_s, []
    for k, span in enumerate(plan.spans[at + 1 :], at + 1):
        status, guided = view.stages[span.stage], span_guided(span, request, view)
        now.after = replace(
            here,
            stage=span.stage,
            stop=span.stop,
            steps=span.steps,
            rows=status.rows(guided),
            decodes=k == len(plan.spans) - 1,
            arrives_s=now.arrives_s + now.alone_s(view.stages[now.stage]) + now.hop_s,
            hop_s=hops_s[k],
            doubled=status.doubles(guided),
            before=now,
            after=None,
        )
        now = now.after
        made.append(now)
    return made


def _hops_s(plan: Plan, view: View) -> list[float]:
    """Seconds from the stage of each span to the next one; 0 after the last."""
    hops_s = [
        float(cost.hop_s(a.stage, b.stage, np.array([b.start]), view)[0])
        for a, b in pairwise(plan.spans)
    ]
    return [*hops_s, 0.0]


def _latest(
    request: ImageRequest,
    choice: Choice,
    view: View,
    arrives: Sequence[Sequence[float]],
    hops_s: Sequence[float],
) -> list[list[float]]:
    """Until when each image may be on the stage of each span: as long as it is predicted to, by
    what was learned of predictions, and what is left to the deadline."""
    slack_s = request.deadline_s - view.safe_s(choice.counted_s)
    if is_late(request, choice, view):
        return [[inf] * request.images for _ in hops_s]
    leaves = [
        [view.safe_s(arrives_s - hop_s) + slack_s for arrives_s in later]
        for later, hop_s in zip(arrives[1:], hops_s, strict=False)
    ]
    return [*leaves, [request.deadline_s] * request.images]


# ---------------------------------------------------------------------------- a stage's promises


def merged(
    status: StageStatus,
    promises: Sequence[Promise],
    reported_s: float,
    listed: Collection[Promise] = (),
) -> StageStatus:
    """The report with what is promised to the stage beside what it holds; the very same record if
    that is nothing. listed: promises that the report lists, which know when these have to leave.

    `queued` and `queue_s`, which know no arrivals, count what goes straight there: what comes from
    another stage waits there for its place, as long as that takes.
    """
    if not promises and not listed:
        return status
    latest_s = {promise.key: promise.at_s - reported_s + promise.latest_s for promise in listed}
    held = tuple(
        replace(image, latest_s=latest_s[image.request, image.image])
        if (image.request, image.image) in latest_s
        else image
        for image in status.held
    )
    comes, turn = _coming(status, promises, reported_s)
    straight = [c for c, p in zip(comes, promises, strict=True) if p.arrives_s <= 0]
    return replace(
        status,
        held=(*held, *comes),
        turn=turn,
        queued=status.queued + len(straight),
        queue_s=status.queue_s + sum(work_s(status, each) for each in straight),
    )


def _coming(
    status: StageStatus, promises: Sequence[Promise], reported_s: float
) -> tuple[tuple[Held, ...], Turn]:
    """What is promised, as the stage would tell it, and what it does now, if for these, too."""
    if not status.ahead:
        return tuple(p.held(status, reported_s, encodes=True) for p in promises), status.turn
    known = {(told.request, told.image, told.start): k for k, told in enumerate(status.ahead)}
    at = [known.get(promise.text) for promise in promises]
    encodes = [k is None or status.ahead[k].encodes for k in at]
    coming = tuple(p.held(status, reported_s, e) for p, e in zip(promises, encodes, strict=True))
    turn, first = status.turn, len(status.held)
    others = tuple(place for place, k in enumerate(at, first) if k in turn.ahead)
    return coming, replace(turn, images=turn.images + others)


def work_s(status: StageStatus, held: Held) -> float:
    """By how much a stage's `queue_s` grows with one image."""
    curve = curves.curve(status.step_s, held.cells)
    steps_s = (
        batching.drained_s([(held.steps, held.rows)], curve)
        if status.batches
        else held.steps * curves.seconds(curve, held.rows)
    )
    encode_s = status.seconds_to_encode(held.rows) if held.encodes else 0.0
    return encode_s + steps_s + (status.seconds_to_decode(held.cells) if held.decodes else 0.0)


# ---------------------------------------------------------------------------- all of them


class Promises:
    """All that were made and have not ended. `of` gives the same tuple until something changes."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Promise, ...]] = {}
        self._listed: set[Promise] = set()
        self._untold: dict[str, tuple[Promise, ...]] = {}
        self._versions: dict[str, int] = {}

    def of(self, stage: str) -> tuple[Promise, ...]:
        """To a stage that has not listed them."""
        return self._untold.get(stage, ())

    def listed(self, stage: str) -> tuple[Promise, ...]:
        """To a stage that has listed them."""
        return tuple(p for p in self._open.get(stage, ()) if p in self._listed)

    @contextmanager
    def kept(self, promises: Sequence[Promise]) -> Iterator[Kept]:
        """They hold until the block is left, however that happens, or end one by one before it."""
        self.begin(promises)
        kept = Kept(self, promises)
        try:
            yield kept
        finally:
            self.end(kept.promises)

    def begin(self, promises: Sequence[Promise]) -> None:
        """From now on they hold."""
        for promise in promises:
            self._open[promise.stage] = (*self._open.get(promise.stage, ()), promise)
        self._settle({promise.stage for promise in promises})

    def end(self, promises: Sequence[Promise]) -> None:
        """Those that have ended before are passed over."""
        ended, stages = set(promises), {promise.stage for promise in promises}
        for stage in stages:
            self._open[stage] = tuple(p for p in self._open.get(stage, ()) if p not in ended)
        self._listed -= ended
        self._settle(stages)

    def reported(self, stage: str, held: Sequence[Held]) -> None:
        """Takes note of a stage's report. One that is listed counts there from now on; one that was
        listed and is no longer is done. If an image is to come to a stage several times, the first
        of these promises is the one that is listed."""
        listed = Counter((image.request, image.image) for image in held)
        done = []
        for promise in self._open.get(stage, ()):
            if listed[promise.key] > 0:
                listed[promise.key] -= 1
                self._listed.add(promise)
            elif promise in self._listed:
                done.append(promise)
        self.end(done)
        self._settle({stage})

    def foretold(self, stage: str, status: StageStatus, reported_s: float) -> None:
        """Runs a stage's rules ahead, and moves when its images are to come to the stages after it
        and when they have to leave those before it. status: with what is promised to it."""
        leaves = zip(status.held, ahead(status), strict=True)
        leaves_s = {(image.request, image.image): reported_s + at_s for image, at_s in leaves}
        for promise in self._open.get(stage, ()):
            if promise.key in leaves_s:
                self._moved(promise, leaves_s[promise.key] - promise.at_s)

    def _moved(self, promise: Promise, leaves_s: float) -> None:
        after, before = promise.after, promise.before
        if after is not None:
            arrives_s = leaves_s + promise.hop_s
            if abs(after.arrives_s - arrives_s) > MOVED_S:
                after.arrives_s = arrives_s
                self.changed(after.stage)
        if before is not None and promise.latest_s < inf:
            takes_s = leaves_s - promise.arrives_s + before.slow_hop_s
            latest_s = promise.latest_s - promise.slip * takes_s
            if abs(before.latest_s - latest_s) > MOVED_S:
                before.latest_s = latest_s
                self.changed(before.stage)

    def version(self, stage: str) -> int:
        """Another one whenever what `of` or `listed` tell of a stage has changed."""
        return self._versions.get(stage, 0)

    def changed(self, stage: str) -> None:
        self._versions[stage] = self._versions.get(stage, 0) + 1

    def __len__(self) -> int:
        """How many have not ended, listed or not."""
        return sum(len(promises) for promises in self._open.values())

    def _settle(self, stages: set[str]) -> None:
        for stage in stages:
            untold = tuple(p for p in self._open.get(stage, ()) if p not in self._listed)
            if untold != self._untold.get(stage, ()):
                self._untold[stage] = untold
                self.changed(stage)


class Kept:
    """The promises of one request while it runs."""

    def __init__(self, all_: Promises, promises: Sequence[Promise]) -> None:
        self._all = all_
        self.promises = list(promises)

    def revised(self, image: int, plan: Plan, at: int, request: ImageRequest, view: View) -> None:
        """An image goes by another plan from the span on that it is at, the plan's at-th."""
        mine = [p for p in self.promises if p.image == image]
        here, later = mine[at], mine[at + 1 :]
        here.stop, here.steps = plan.spans[at].stop, plan.spans[at].steps
        made = _later(here, mine[-1].latest_s, plan, at, request, view)
        self._all.end(later)
        self._all.begin(made)
        self._all.changed(here.stage)
        self.promises = [*(p for p in self.promises if p not in later), *made]

    def saw(self, image: int, event: Event) -> None:
        """A stage is done with what is behind an image's position."""
        if isinstance(event, Done):
            self._all.end([p for p in self.promises if p.image == image])
        elif isinstance(event, Progress):
            behind = [p for p in self.promises if p.image == image and p.stop <= event.position]
            self._all.end(behind)
