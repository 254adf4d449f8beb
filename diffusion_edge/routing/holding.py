"""What a stage holds, as its rules take it: images by kind, and what passes and calls take.

All seconds count from the moment of the stage's report.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import NamedTuple

from diffusion_edge import batching, curves
from diffusion_edge.batching import CELLS, TEXTS
from diffusion_edge.routing.kept import Kept
from diffusion_edge.view import Held, StageStatus, Turn, Work


@dataclass(frozen=True)
class Kind:
    """Images that can share forward passes.

    texts: of each. pass_s: seconds of a forward pass by how many are in it, from 0
    to as many as it has `places`. decode_s: of a call by how many pictures are in it, from 0 to as
    many as there are in one at most.
    """

    cells: int
    texts: int
    pass_s: tuple[float, ...]
    decode_s: tuple[float, ...]

    @cached_property
    def places(self) -> int:
        return len(self.pass_s) - 1

    @cached_property
    def pictures(self) -> int:
        return len(self.decode_s) - 1


def kind_of(status: StageStatus, cells: int, rows: int) -> Kind:
    """How the stage treats images of one size that take so many rows each."""
    return _KINDS.of_alike(status, (cells, rows), lambda: _kind_of(status, cells, rows))


_KINDS: Kept[Kind] = Kept(256)


def _kind_of(status: StageStatus, cells: int, rows: int) -> Kind:
    curve = curves.curve(status.step_s, cells)
    places = _places(status, curve, rows)
    filled = [places if status.pads else k for k in range(1, places + 1)]
    pictures = max(CELLS // cells, 1) if together(status) else 1
    return Kind(
        cells=cells,
        texts=1 if status.emulated else rows,
        pass_s=(0.0, *(curves.seconds(curve, k * rows) for k in filled)),
        decode_s=(0.0, *(status.seconds_to_decode(cells, k) for k in range(1, pictures + 1))),
    )


def _places(status: StageStatus, curve: curves.Curve, rows: int) -> int:
    """Samples of so many rows in a forward pass at most."""
    if not status.batches:
        return 1
    paying = status.most_rows if status.pads else None
    most = paying or min(batching.best_rows(curve), status.most_rows or inf)
    return max(int(most) // rows, 1)


def together(status: StageStatus) -> bool:
    """Whether texts that wait are encoded in one call, and pictures decoded in one."""
    return status.batches and not status.emulated and not status.pads


def mode_of(status: StageStatus) -> batching.Batching:
    """What due times go by. A stage that takes one sample at a time to act as other hardware orders
    them like one that batches."""
    return "in-flight" if status.batches or status.emulated else "off"


class Image(NamedTuple):
    """One on a stage or on its way there. kind_id: the index of its kind, for comparing."""

    kind: Kind
    kind_id: int
    steps: int
    due_s: float
    encodes: bool
    decodes: bool
    arrives_s: float
    latest_s: float = inf
    told_s: float = inf


PASS, TEXT, PICTURE, RUNS = range(4)
"""The lines, in the order in which they are taken to wait for the turn where a report does not tell
it, and the pass or call that runs at its time."""

TEXT_OF = -(1 << 30)
"""Added to an image's number: its text."""

LINES: tuple[Work, ...] = ("steps", "texts", "pictures")


class Stage:
    """What does not change while the rules are run: seconds, limits, and the images known.

    encode_s: of a call by the texts in it. runs: the line that has the turn when the stage reports,
    -1 for none; order: of those that wait then, which is PASS, TEXT, PICTURE where it is not told.
    """

    def __init__(self, status: StageStatus, turn: Turn | None = None) -> None:
        """turn: instead of the report's."""
        turn = status.turn if turn is None else turn
        self._status = status
        self._kinds: dict[tuple[int, int, bool], tuple[int, Kind]] = {}
        self._encode_s: dict[int, float] = {}
        self.alike = True  # whether all images can share forward passes
        self.texts = TEXTS if together(status) else 1
        self.capacity = status.capacity
        self.turn = turn
        self.runs = LINES.index(turn.work) if turn.work else -1
        told = [LINES.index(work) for work in turn.waiting]
        self.order = (*told, *(line for line in (PASS, TEXT, PICTURE) if line not in told))

    def encoding_s(self, texts: int) -> float:
        if texts not in self._encode_s:
            self._encode_s[texts] = self._status.seconds_to_encode(texts)
        return self._encode_s[texts]

    def image(self, held: Held) -> Image:
        number, kind = self.kind(held.cells, held.rows, held.doubled)
        return Image(
            kind=kind,
            kind_id=number,
            steps=held.steps,
            due_s=held.due_s,
            encodes=held.encodes,
            decodes=held.decodes,
            arrives_s=held.arrives_s,
            latest_s=held.latest_s,
            told_s=held.told_s,
        )

    def kind(self, cells: int, rows: int, doubled: bool) -> tuple[int, Kind]:
        key = cells, rows, doubled
        if key not in self._kinds:
            self.alike = not self._kinds
            self._kinds[key] = len(self._kinds), kind_of(self._status, cells, rows)
        return self._kinds[key]
