"""A stage on a virtual clock: what it holds and does, played by the rules of `routing.forecast`.

A stage's state is what it would report (`told`) and the run of its rules from there on. Whenever
somebody comes, or is taken off, it is told anew at that moment and runs on from there: so nothing
grows with what was done before, and what is played is what a report foretells.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import inf

from diffusion_edge import batching, curves
from diffusion_edge.routing.forecast import Run
from diffusion_edge.routing.holding import LINES, PASS, RUNS, TEXT, Stage, mode_of
from diffusion_edge.routing.promises import work_s
from diffusion_edge.view import Held, StageStatus, Turn

AT_ONCE_S = 1e-9
"""Moments that are nearer than that are one."""


@dataclass(frozen=True)
class Coming:
    """An image that comes to a stage, with its next steps. due_s: by the clock, None to leave it to
    the stage. As in `Held` otherwise."""

    request: str
    image: int
    steps: int
    rows: int
    cells: int
    due_s: float | None
    decodes: bool
    doubled: bool
    encodes: bool = True


@dataclass(frozen=True, eq=False)
class Guest:
    """Who is on a stage. due_s: by the clock."""

    coming: Coming
    due_s: float


class SimStage:
    """idle: what it reports with nothing to do; stages that are alike may share it.

    next_s: when somebody leaves, or when those go that were dropped; inf if nobody does. Call
    `leave` at that moment, before anything else that happens then.
    """

    def __init__(self, idle: StageStatus) -> None:
        self.idle = idle
        self._guests: list[Guest] = []
        self._dropped: list[Guest] = []
        self._boundary_s = self.next_s = inf
        self._left: list[Guest] = []
        self._play(0.0, (), Turn())

    # ------------------------------------------------------------------ what happens to it

    def take(self, coming: Coming, now: float) -> Guest:
        """Who comes, whether or not there is a place for it: then it waits, as hand-offs do."""
        step_s = curves.seconds(curves.curve(self.idle.step_s, coming.cells), coming.rows)
        alone_s = coming.steps * step_s
        due_s = batching.due(now, alone_s, coming.due_s, mode_of(self.idle))
        guest = Guest(coming, due_s)
        held, turn, here = self._told(now)
        self._guests = [*here, guest]
        self._play(now, (*held, _held(guest, now)), turn)
        return guest

    def drop(self, guest: Guest, now: float) -> None:
        """Takes somebody off, when the pass or call that runs has ended."""
        _, turn, here = self._told(now)
        if guest in here:
            self._dropped.append(guest)
            self._boundary_s = min(self._boundary_s, now + turn.left_s)
            self.next_s = min(self.next_s, self._boundary_s)

    def take_off(self, guest: Guest, now: float) -> None:
        """Takes somebody off at once, at the end of one of its steps."""
        held, turn, here = self._told(now, ending=True)
        kept = [k for k, each in enumerate(here) if each is not guest]
        self._guests = [here[k] for k in kept]
        self._play(now, [held[k] for k in kept], turn)

    def leave(self) -> list[Guest]:
        """Who leaves at `next_s`, done."""
        now = self.next_s
        self._advance(now)
        gone = [g for g, s in zip(self._guests, self._run.done_s, strict=True) if s < inf]
        new = [guest for guest in gone if guest not in self._left]
        self._left += new
        if self._boundary_s <= now:
            self._leave(now)
        else:
            self._look_ahead()
        return new

    def slowed(self, idle: StageStatus, now: float) -> None:
        """What it takes from now on; the pass or call that runs ends as it would have."""
        held, turn, self._guests = self._told(now)
        self.idle = idle
        self._play(now, held, turn)

    def lose(self, now: float) -> list[Guest]:
        """All that it holds, for it has failed."""
        _, _, lost = self._told(now)
        self._guests, self._dropped, self._boundary_s = [], [], inf
        self._play(now, (), Turn())
        return lost

    # ------------------------------------------------------------------ what it tells

    def here(self, now: float) -> Sequence[Guest]:
        """Who is there, but those who are done at this moment."""
        return self._told(now)[2]

    def left(self, guest: Guest, now: float) -> int:
        """Steps that somebody has still to take."""
        held, _, here = self._told(now)
        return held[here.index(guest)].steps

    def step_ends_s(self, guest: Guest, now: float) -> float:
        """When somebody's next step ends, if nothing happens before; inf if there is none."""
        self._advance(now)
        run, after, who = self._run, self._after, self._guests.index(guest)
        while run.turn:
            count = run.left[who] - after.left[who]
            pass_s = (after.now - run.now) / max(count, 1)
            for k in range(1, count + 1):
                ends_s = self._origin_s + run.now + k * pass_s
                if ends_s > now + AT_ONCE_S:
                    return ends_s
            run, after = after, self._next(after)
        return inf

    def report(self, now: float) -> Report:
        """What it would report from now on until its next round, or something happens to it."""
        self._advance(now)
        return Report(self.idle, self._run, self._after, self._origin_s, tuple(self._guests))

    def __len__(self) -> int:
        return self._run.open

    # ------------------------------------------------------------------ how it is played

    def _leave(self, now: float) -> None:
        held, turn, here = self._told(now, ending=True)
        kept = [k for k, guest in enumerate(here) if guest not in self._dropped]
        self._guests = [here[k] for k in kept]
        self._dropped, self._boundary_s = [], inf
        self._play(now, [held[k] for k in kept], turn)

    def _told(self, now: float, ending: bool = False) -> tuple[Sequence[Held], Turn, list[Guest]]:
        return self.report(now).told(now, ending)

    def _play(self, now: float, held: Sequence[Held], turn: Turn) -> None:
        stage = Stage(self.idle, turn)
        self._origin_s = now
        self._left = []
        self._run = Run(stage, [stage.image(each) for each in held])
        self._after = self._next(self._run)
        self._look_ahead()

    def _next(self, run: Run) -> Run:
        after = run.copy()
        if after.turn:
            after.round()
        return after

    def _advance(self, now: float) -> None:
        """To the round that is played at that moment."""
        while self._run.turn and self._origin_s + self._after.now <= now + AT_ONCE_S:
            self._run, self._after = self._after, self._next(self._after)

    def _look_ahead(self) -> None:
        ahead, here = self._after.copy(), self._run.open
        while ahead.turn and ahead.open == here:
            ahead.round()
        leaves_s = self._origin_s + ahead.now if here else inf
        self.next_s = min(leaves_s, self._boundary_s)


@dataclass(frozen=True, eq=False)
class Report:
    """What a stage would report, at any moment from `run` to `after`, its next round."""

    idle: StageStatus
    run: Run
    after: Run
    origin_s: float
    guests: Sequence[Guest]

    def at(self, now: float) -> StageStatus:
        """As a worker tells it."""
        if not self.run.open:
            return self.idle
        held, turn, _ = self.told(now)
        queue_s = sum(work_s(self.idle, each) for each in held)
        return replace(self.idle, held=held, turn=turn, queued=len(held), queue_s=queue_s)

    def told(self, now: float, ending: bool = False) -> tuple[tuple[Held, ...], Turn, list[Guest]]:
        """What is held, what is done, and who that is, in order: first whose pictures wait. ending:
        whether to tell a pass or call that has just begun as one that waits to."""
        run, here = self.run, [i for i, s in enumerate(self.run.done_s) if s == inf]
        at_s = now - self.origin_s
        doing = _doing(run, self.after, at_s)
        pictures = list(run.pictures)
        texts = {*run.texts, *run.outside, *(i for _, i in run.coming)}
        order = [*pictures, *(i for i in here if i not in pictures)]
        held = tuple(
            _held(self.guests[i], now, run.left[i] - doing.passed * (i in doing.images), i in texts)
            for i in order
        )
        return held, doing.turn(order, ending), [self.guests[i] for i in order]


@dataclass(frozen=True)
class _Doing:
    """The first round of a run at a moment: which line has the turn, who is in its pass or call,
    how many passes are over, how long the one that runs has taken and still takes."""

    line: int
    images: Collection[int]
    passed: int
    since_s: float
    left_s: float
    waiting: Sequence[int]

    def turn(self, order: Sequence[int], ending: bool) -> Turn:
        """order: of all that are held."""
        waiting = tuple(LINES[line] for line in self.waiting)
        if self.line < 0:
            return Turn(waiting=waiting)
        work = LINES[self.line]
        if self.since_s <= AT_ONCE_S and ending:
            return Turn(waiting=(work, *waiting))
        places = {i: k for k, i in enumerate(order)}
        return Turn(work, tuple(places[i] for i in self.images), self.left_s, waiting)


def _doing(run: Run, after: Run, at_s: float) -> _Doing:
    if not run.turn:
        return _Doing(-1, (), 0, 0.0, 0.0, ())
    line, *waiting = run.turn
    if line == RUNS:
        here = run.stage.turn.images
        return _Doing(run.stage.runs, here, 0, inf, after.now - at_s, waiting)
    if line == PASS:
        images = run.batch()
        count = run.left[images[0]] - after.left[images[0]]
        pass_s = (after.now - run.now) / count
        passed = min(int((at_s - run.now) / pass_s + AT_ONCE_S), count - 1)
        since_s = at_s - run.now - passed * pass_s
        return _Doing(line, images, passed, since_s, pass_s - since_s, waiting)
    before, then = (run.texts, after.texts) if line == TEXT else (run.pictures, after.pictures)
    images = [i for i in before if i not in then]
    return _Doing(line, images, 0, at_s - run.now, after.now - at_s, waiting)


def _held(guest: Guest, now: float, left: int | None = None, encodes: bool = True) -> Held:
    coming = guest.coming
    return Held(
        request=coming.request,
        image=coming.image,
        steps=coming.steps if left is None else left,
        rows=coming.rows,
        cells=coming.cells,
        due_s=guest.due_s - now,
        encodes=encodes and coming.encodes,
        decodes=coming.decodes,
        doubled=coming.doubled,
    )
