"""What a stage will do with what it holds, and with one request more: the engine's rules run ahead.

A stage gives one turn after another to three lines: forward passes, calls that encode texts, calls
that decode pictures. Whoever waits longest for the turn gets it, so that with texts waiting passes
and calls alternate. Who is in a forward pass is decided by the rules of `batching`: those due
first, as many as pay. Between two changes of who is there all passes are alike, so many are played
at once, and the cost of a forecast grows with the number of images, not of steps.

A text may come ahead of its image. A stage that holds nothing else encodes it then; one that does
leaves it until then, or until its image comes.

A forecast begins with the pass or call that runs when the stage reports, and with the lines that
wait then. Passes larger than pay, which an engine tries now and then, are not foreseen: what they
will take is not known before they were tried, and they are few.

All seconds count from the moment of the report.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from math import ceil, inf

from diffusion_edge.routing.holding import PASS, PICTURE, RUNS, TEXT, TEXT_OF, Image, Stage
from diffusion_edge.routing.kept import Kept
from diffusion_edge.view import Held, StageStatus

KEPT = 64
"""Courses that are kept, of the latest reports."""

Passes = tuple[int, float, float, float, float]
"""How many alike, when they begin, seconds of each, `Run._wait_s` at the last, `Run.bar_s`."""


class Run:
    """A stage at one moment of a forecast. `round` plays on to the next one; `copy` branches off.

    now: seconds. turn: the lines that wait for it, first come first served. left: steps by image.
    done_s: when each was done, inf before. stepped_s: when its last step was. passes: those that
    the `watched` image was in. ahead: images whose texts have come and they have not. bar_s: an
    image due before this would have been in a pass that the
    watched one was left out of.
    """

    __slots__ = (
        "ahead",
        "bar_s",
        "coming",
        "done_s",
        "images",
        "inside",
        "joined",
        "left",
        "now",
        "open",
        "outside",
        "passes",
        "pictures",
        "stage",
        "stepped_s",
        "stepping",
        "texts",
        "turn",
        "watched",
        "watching",
    )

    def __init__(self, stage: Stage, images: Sequence[Image]) -> None:
        self.stage = stage
        self.images = list(images)
        self.now = 0.0
        self.turn: list[int] = []
        self.texts: list[int] = []
        self.ahead: list[int] = []
        self.stepping: list[tuple[float, int, int]] = []  # due, order of joining, image
        self.pictures: list[int] = []
        self.outside: list[int] = []  # for want of a place
        self.inside = 0
        self.joined = 0
        self.open = len(images)
        self.left = [image.steps for image in images]
        self.done_s = [inf] * len(images)
        self.stepped_s = [0.0 if not image.steps else inf for image in images]
        self.watched = -1
        self.watching = False  # whether it has joined those that step
        self.bar_s = -inf
        self.passes: list[Passes] = []
        self.coming: list[tuple[float, int]] = []
        self._will_come(0)
        if stage.runs >= 0:
            self.turn.append(RUNS)
        self._reported()

    def copy(self) -> Run:
        """Shares the images, of which a list is made anew where one changes."""
        other = Run.__new__(Run)
        other.stage, other.images = self.stage, self.images
        other.now, other.inside, other.joined = self.now, self.inside, self.joined
        other.open, other.turn = self.open, self.turn[:]
        other.texts, other.ahead = self.texts[:], self.ahead[:]
        other.stepping, other.pictures = self.stepping[:], self.pictures[:]
        other.outside, other.coming = self.outside[:], self.coming[:]
        other.left, other.done_s, other.stepped_s = self.left[:], self.done_s[:], self.stepped_s[:]
        other.watched, other.watching = self.watched, self.watching
        other.bar_s, other.passes = self.bar_s, self.passes[:]
        return other

    def add(self, images: Sequence[Image]) -> None:
        """More that arrive together, not before `now`."""
        first = len(self.images)
        self.images = [*self.images, *images]
        self.open += len(images)
        self.left += [image.steps for image in images]
        self.done_s += [inf] * len(images)
        self.stepped_s += [inf] * len(images)
        self._will_come(first)
        if images[0].arrives_s <= self.now:
            self._reported()

    def tell(self, images: Sequence[Image]) -> None:
        """Texts of images come together, not before `now`; the images are to `come` some time."""
        first = len(self.images)
        self.images = [*self.images, *images]
        self.left += [image.steps for image in images]
        self.done_s += [inf] * len(images)
        self.stepped_s += [inf] * len(images)
        for i in range(first, len(self.images)):
            self.coming.append((self.images[i].told_s, TEXT_OF + i))
        self.coming.sort(reverse=True)
        if images[0].told_s <= self.now:
            self._reported()

    def come(self, first: int, images: Sequence[Image]) -> None:
        """Images that were told, from the number `first` on, come together, not before `now`."""
        self.images = self.images[:]
        for i, image in enumerate(images, first):
            self.images[i] = image._replace(encodes=self.images[i].encodes)
            self.left[i] = image.steps
            self.coming.append((image.arrives_s, i))
        self.coming.sort(reverse=True)
        self.open += len(images)
        if images[0].arrives_s <= self.now:
            self._reported()

    def _will_come(self, first: int) -> None:
        """All from the number `first` on, and their texts."""
        for i, image in enumerate(self.images[first:], first):
            self.coming.append((image.arrives_s, i))
            if image.encodes and image.told_s < image.arrives_s:
                self.coming.append((image.told_s, TEXT_OF + i))
        self.coming.sort(reverse=True)

    def round(self) -> None:
        """One call, or as many equal passes as nothing comes between."""
        if not self.turn:
            if self.ahead:
                self._encode(self.ahead[: self.stage.texts])
            else:
                self.now = self.coming[-1][0]
                self._arrive(-1)
            return
        line = self.turn.pop(0)
        if line == PASS:
            self._passes()
        elif line == TEXT:
            self._encode(self.texts[: self.stage.texts])
        elif line == PICTURE:
            self._decode()
        else:
            self._go_on()

    def batch(self) -> list[int]:
        """Images of the next forward pass: `batching.next_batch` where `stepping` is sorted."""
        images, first = self.images, self.images[self.stepping[0][2]]
        places, kind = first.kind.places, first.kind_id
        if self.stage.alike:
            return [i for _, _, i in self.stepping[:places]]
        taken: list[int] = []
        for _, _, i in self.stepping:
            if images[i].kind_id == kind:
                taken.append(i)
                if len(taken) == places:
                    break
        return taken

    # ------------------------------------------------------------------ the three lines

    def _passes(self) -> None:
        batch, left = self.batch(), self.left
        pass_s = self.images[batch[0]].kind.pass_s
        took_s, count, began = pass_s[len(batch)], 1, self.now
        if not self.turn:
            count = min([left[i] for i in batch])
            if self.coming and began + count * took_s > self.coming[-1][0]:
                count = max(ceil((self.coming[-1][0] - began) / took_s), 1)
        if self.watching:
            self._watch(batch, count, took_s)
        self._passed(batch, count, began + count * took_s)

    def _passed(self, batch: Sequence[int], count: int, ends_s: float) -> None:
        self.now, left = ends_s, self.left
        if self.coming and self.coming[-1][0] <= ends_s:
            self._arrive(PASS)
        ended = []
        for i in batch:
            left[i] -= count
            if not left[i]:
                ended.append(i)
        if ended:
            self._end(ended)
        elif self.stepping:
            self.turn.append(PASS)

    def _end(self, ended: Sequence[int]) -> None:
        """Of images that have taken their steps."""
        self.stepping = [one for one in self.stepping if self.left[one[2]]]
        if self.stepping:
            self.turn.append(PASS)
        leaving = []
        for i in ended:
            self.stepped_s[i] = self.now
            if self.images[i].decodes:
                self.pictures.append(i)
                self._start(PICTURE, -1)
            else:
                leaving.append(i)
        for i in leaving:
            self._leave(i)

    def _encode(self, encoded: Sequence[int]) -> None:
        self._encoded(encoded, self.now + self._encoding_s(encoded))

    def _encoded(self, encoded: Sequence[int], ends_s: float) -> None:
        self.now = ends_s
        if self.coming and self.coming[-1][0] <= ends_s:
            self._arrive(TEXT)
        here = [i for i in encoded if i in self.texts]
        self.texts = [i for i in self.texts if i not in here]
        if self.texts:
            self.turn.append(TEXT)
        if len(here) < len(encoded):
            self._without_text(encoded)
        for i in here:
            self._step(i, -1)

    def _without_text(self, encoded: Sequence[int]) -> None:
        """Of images that are not here."""
        self.ahead = [i for i in self.ahead if i not in encoded]
        self.images = self.images[:]
        for i in encoded:
            self.images[i] = self.images[i]._replace(encodes=False)

    def _decode(self) -> None:
        first = self.images[self.pictures[0]]
        count = 0
        for i in self.pictures[: first.kind.pictures]:
            if self.images[i].kind.cells != first.kind.cells:
                break
            count += 1
        self._decoded(self.pictures[:count], self.now + first.kind.decode_s[count])

    def _decoded(self, decoded: Sequence[int], ends_s: float) -> None:
        self.now = ends_s
        if self.coming and self.coming[-1][0] <= ends_s:
            self._arrive(PICTURE)
        del self.pictures[: len(decoded)]
        if self.pictures:
            self.turn.append(PICTURE)
        for i in decoded:
            self._leave(i)

    def _go_on(self) -> None:
        """To the end of what runs when the stage reports. Who has left it meanwhile is not told; of
        calls those who are in it come first in their line."""
        line, turn = self.stage.runs, self.stage.turn
        if line == PASS:
            self._passed(turn.images, 1, turn.left_s)
        elif line == TEXT:
            self._encoded(turn.images, turn.left_s)
        else:
            self._decoded(turn.images, turn.left_s)

    # ------------------------------------------------------------------ coming and going

    def _reported(self) -> None:
        """All that are there when the stage reports take their places in the lines."""
        running = self.turn[:1] == [RUNS]
        self._arrive(self.stage.runs if running else -1)
        self.turn[running:] = sorted(self.turn[running:], key=self.stage.order.index)

    def _arrive(self, line: int) -> None:
        """All that have arrived by now; `line` has the turn."""
        while self.coming and self.coming[-1][0] <= self.now:
            _, i = self.coming.pop()
            if i < 0:
                self.ahead.append(i - TEXT_OF)
            elif self.inside < self.stage.capacity:
                self._enter(i, line)
            else:
                self.outside.append(i)

    def _enter(self, i: int, line: int) -> None:
        image = self.images[i]
        self.inside += 1
        if self.ahead and i in self.ahead:
            self.ahead.remove(i)
        if image.encodes:
            self.texts.append(i)
            self._start(TEXT, line)
        elif self.left[i]:
            self._step(i, line)
        elif image.decodes:
            self.pictures.append(i)
            self._start(PICTURE, line)
        else:
            self._leave(i)

    def _step(self, i: int, line: int) -> None:
        self.joined += 1
        self.watching |= i == self.watched
        insort(self.stepping, (self.images[i].due_s, self.joined, i))
        self._start(PASS, line)

    def _start(self, line: int, holding: int) -> None:
        if line != holding and line not in self.turn:
            self.turn.append(line)

    def _leave(self, i: int) -> None:
        self.done_s[i] = self.now
        self.open -= 1
        self.inside -= 1
        if self.outside:
            self._enter(self.outside.pop(0), -1)

    def _watch(self, batch: Sequence[int], count: int, took_s: float) -> None:
        """Notes the passes that the watched image is in, and when it would have had to be due to be
        in those that it was not."""
        i, first = self.watched, self.stepping[0]
        if i in batch:
            self.passes.append((count, self.now, took_s, self._wait_s(batch), self.bar_s))
        elif self.left[i]:
            alike = self.images[i].kind_id == self.images[first[2]].kind_id
            last_due_s = self.images[batch[-1]].due_s if alike else first[0]
            self.bar_s = max(self.bar_s, last_due_s)

    def _wait_s(self, batch: Sequence[int]) -> float:
        """About how long the picture of one of a pass would wait for its decoding to begin, if this
        were its last step: for the lines that have the turn before it."""
        pass_s = self.images[batch[0]].kind.pass_s
        others = len(self.stepping) - 1
        wait_s = 0.0 if PICTURE in self.turn else pass_s[min(others, len(pass_s) - 1)]
        if TEXT in self.turn:
            wait_s += self._encoding_s(self.texts[: self.stage.texts])
        if self.pictures:
            wait_s += sum([self.images[i].kind.decode_s[1] for i in self.pictures])
        return wait_s

    def _encoding_s(self, encoded: Sequence[int]) -> float:
        return self.stage.encoding_s(sum([self.images[i].kind.texts for i in encoded]))


class Course:
    """What a stage does with all that it holds, if nothing else comes. moments: the run at its
    beginning and after every round; end: the last of them."""

    def __init__(self, stage: Stage, images: Sequence[Image]) -> None:
        self.stage = stage
        self.moments = played(Run(stage, images))
        self.end = self.moments[-1]


def played(run: Run) -> list[Run]:
    """The run as it is, and after every round until nothing is left to do."""
    moments = [run]
    while run.open or run.turn or run.ahead:
        run = run.copy()
        run.round()
        moments.append(run)
    return moments


def course(status: StageStatus, more: Sequence[Held] = ()) -> Course:
    """more: what it does not hold yet. Without any it is kept with the report."""
    return _course(status, more) if more else _COURSES.of(status, (), lambda: _course(status, ()))


_COURSES: Kept[Course] = Kept(KEPT)


def _course(status: StageStatus, more: Sequence[Held]) -> Course:
    stage = Stage(status)
    return Course(stage, [stage.image(held) for held in (*status.held, *more)])


def ahead(status: StageStatus, more: Sequence[Held] = ()) -> tuple[float, ...]:
    """When each image that the stage holds, and each of `more`, is done there: decoded where it
    decodes, else stepped."""
    return tuple(course(status, more).end.done_s)
