"""The rules run ahead against the same rules played step by step, and tables against both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_edge.batching import CELLS, TEXTS, Sample, best_rows, company, next_batch
from diffusion_edge.curves import curve, scaled, seconds
from diffusion_edge.routing.forecast import ahead
from diffusion_edge.view import Held, StageStatus, Turn

from .views import stage

TICK = 1 / 64
"""Seconds in these tests are multiples of it, so that sums are exact and ties are ties."""


# ---------------------------------------------------------------------------- step by step


@dataclass
class Played:
    """A stage that takes one step, encodes one call or decodes one call at a time."""

    status: StageStatus
    images: Sequence[Held]

    def finish_s(self) -> list[float]:
        self.now = 0.0
        self.left = [image.steps for image in self.images]
        self.done: dict[int, float] = {}
        self.texts: list[int] = []
        self.steps: list[int] = []
        self.pictures: list[int] = []
        self.asking: list[str] = []
        self.placed: set[int] = set()
        self.there: list[int] = []
        self.coming = sorted(range(len(self.images)), key=lambda i: self.images[i].arrives_s)
        self.told: list[int] = []
        self.calling: list[int] = []
        self.encoded = {i for i, image in enumerate(self.images) if not image.encodes}
        ahead = [i for i, image in enumerate(self.images) if image.told_s < image.arrives_s]
        self.telling = sorted(set(ahead) - self.encoded, key=lambda i: (self.images[i].told_s, i))
        turn = self.status.turn
        self.calling = list(turn.images) if turn.work == "texts" else []
        self.arrive(turn.work or "")
        order = [*turn.waiting, "steps", "texts", "pictures"]
        self.asking.sort(key=order.index)
        if turn.work:
            self.take_turn(turn.work, turn)
        while len(self.done) < len(self.images):
            if not self.asking and self.told:
                self.take_turn("texts")
            elif not self.asking:
                comes_s = self.images[self.coming[0]].arrives_s
                self.now = min([comes_s, *(self.images[i].told_s for i in self.telling)])
                self.arrive("")
            else:
                self.take_turn(self.asking.pop(0))
        return [self.done[i] for i in range(len(self.images))]

    def take_turn(self, line: str, running: Turn | None = None) -> None:
        """running: what was begun before the report, with its images and the seconds left of it."""
        ended: list[int] = []
        if line == "steps":
            batch, took_s = self.forward_pass() if running is None else told(running)
            self.after(took_s, line)
            for i in batch:
                self.left[i] -= 1
            ended = [i for i in batch if not self.left[i]]
            self.steps = [i for i in self.steps if self.left[i]]
        elif line == "texts":
            ended = (self.texts or self.told)[: TEXTS if self.together else 1]
            texts = sum(1 if self.status.emulated else self.images[i].rows for i in ended)
            took_s = self.status.encode_s * texts
            if running is not None:
                ended, took_s = told(running)
            self.calling = ended
            self.after(took_s, line)
            self.calling = []
            self.encoded |= set(ended)
            self.told = [i for i in self.told if i not in ended]
            ended = [i for i in ended if i in self.texts]
            self.texts = [i for i in self.texts if i not in ended]
        elif running is not None:
            ended, took_s = told(running)
            self.pictures = self.pictures[len(ended) :]
            self.after(took_s, line)
        else:
            cells = self.images[self.pictures[0]].cells
            for i in self.pictures:
                if self.images[i].cells != cells or len(ended) == self.in_a_call(cells):
                    break
                ended.append(i)
            self.pictures = self.pictures[len(ended) :]
            self.after(len(ended) * scaled(self.status.decode_s, cells), line)
        if getattr(self, line):
            self.asking.append(line)
        gone = [i for i in ended if not self.goes_on(i, line)]
        for i in gone:
            self.leave(i)

    @property
    def together(self) -> bool:
        return self.status.batches and not self.status.emulated

    def in_a_call(self, cells: int) -> int:
        return max(CELLS // cells, 1) if self.together else 1

    def forward_pass(self) -> tuple[list[int], float]:
        """Who is in it, by the rules of batching, and its seconds."""
        samples = [
            Sample((image.cells, image.rows), image.rows, image.due_s, image.cells)
            for image in (self.images[i] for i in self.steps)
        ]
        first = samples[company(samples)[0]]
        by_rows = curve(self.status.step_s, first.cells)
        rows = min(best_rows(by_rows), self.status.most_rows or 10**9)
        chosen = next_batch(samples, rows)[: None if self.status.batches else 1]
        return [self.steps[i] for i in chosen], seconds(by_rows, first.rows * len(chosen))

    def after(self, seconds: float, line: str) -> None:
        self.now += seconds
        self.arrive(line)

    def arrive(self, line: str) -> None:
        while self.telling and self.images[self.telling[0]].told_s <= self.now:
            self.told.append(self.telling.pop(0))
        while self.coming and self.images[self.coming[0]].arrives_s <= self.now:
            self.there.append(self.coming.pop(0))
            self.give_places(line)

    def give_places(self, line: str) -> None:
        for i in self.there[: self.status.capacity]:
            if i not in self.placed:
                self.placed.add(i)
                if i not in self.encoded:
                    if i in self.told and i not in self.calling:
                        self.told.remove(i)
                    self.join("texts", i, line)
                elif not self.goes_on(i, "texts", line):
                    self.leave(i)

    def goes_on(self, i: int, done: str, line: str = "") -> bool:
        """Joins what comes next, unless that was all."""
        if done == "texts" and self.left[i]:
            self.join("steps", i, line)
        elif done != "pictures" and self.images[i].decodes:
            self.join("pictures", i, line)
        else:
            return False
        return True

    def join(self, line: str, i: int, busy: str) -> None:
        getattr(self, line).append(i)
        if line not in (*self.asking, busy):
            self.asking.append(line)

    def leave(self, i: int) -> None:
        self.done[i] = self.now
        self.there.remove(i)
        self.give_places("")


def told(running: Turn) -> tuple[list[int], float]:
    return list(running.images), running.left_s


ticks = st.integers(0, 400).map(lambda n: n * TICK)
briefly = st.integers(0, 9).map(lambda n: n * TICK)


@st.composite
def images(draw: st.DrawFn, arriving: bool) -> Held:
    encodes, decodes = draw(st.booleans()), draw(st.booleans())
    return Held(
        request="r",
        image=0,
        steps=draw(st.integers(1 if encodes or arriving else 0, 12)),
        rows=draw(st.sampled_from((1, 2))),
        cells=draw(st.sampled_from((64, 64, 256))),
        due_s=draw(ticks) - 1.0,
        encodes=encodes,
        decodes=decodes,
        arrives_s=draw(ticks) if arriving else 0.0,
        told_s=draw(st.one_of(st.just(inf), st.just(0.0), ticks)) if arriving else inf,
    )


@st.composite
def stages(draw: st.DrawFn) -> StageStatus:
    alone = draw(st.integers(1, 9))
    gains = draw(st.lists(st.integers(0, 9), min_size=3, max_size=3))
    took = [alone, alone + gains[0], alone + sum(gains[:2]), alone + sum(gains)]
    by_rows = {rows: n * TICK for rows, n in zip((1, 2, 4, 8), took, strict=True)}
    held = draw(st.lists(images(arriving=False), max_size=8))
    capacity = draw(st.sampled_from((3, 32)))
    return replace(
        stage("hall", 0.0),
        step_s={64: by_rows},
        encode_s=draw(briefly),
        decode_s={64: draw(briefly)},
        capacity=capacity,
        emulated=draw(st.booleans()),
        batches=draw(st.booleans()),
        most_rows=draw(st.sampled_from((None, 3, 4))),
        held=tuple(held),
        turn=draw(turns(held[:capacity])),
    )


@st.composite
def turns(draw: st.DrawFn, held: Sequence[Held]) -> Turn:
    """Something runs for some of those that wait for it, or for none if they have left."""
    waiting = {
        "texts": [i for i, image in enumerate(held) if image.encodes],
        "steps": [i for i, image in enumerate(held) if not image.encodes and image.steps],
        "pictures": [
            i
            for i, image in enumerate(held)
            if not image.encodes and not image.steps and image.decodes
        ],
    }
    order = draw(st.permutations([work for work, images in waiting.items() if images]))
    if not order or draw(st.booleans()):
        return Turn(waiting=tuple(order))
    work, *others = order
    alike = [i for i in waiting[work] if held[i].cells == held[waiting[work][0]].cells]
    images = alike[: draw(st.integers(0, 2))] if work == "steps" else waiting[work][:1]
    return Turn(work, tuple(images), draw(briefly), tuple(others))


@settings(deadline=None, max_examples=300)
@given(status=stages(), more=st.lists(images(arriving=True), max_size=4), left=briefly)
def test_the_rules_run_ahead_are_the_rules(
    status: StageStatus, more: list[Held], left: float
) -> None:
    """A text may come ahead of its image, and may be what is encoded at the report's time."""
    every = [*status.held, *more]
    told = [i for i, one in enumerate(every) if one.encodes and one.told_s <= 0 < one.arrives_s]
    if told and status.turn == Turn():
        status = replace(status, turn=Turn("texts", tuple(told[:1]), left))
    assert ahead(status, more) == pytest.approx(Played(status, every).finish_s(), abs=1e-12)
