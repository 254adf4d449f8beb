"""What a stage knows of its seconds: measured at the start, then learned from what it serves.

A stall must not be learned, nor what was learned in a bad hour be kept: the figure of a row count
is the median of what was seen of it lately, and larger passes that did not pay are tried again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from diffusion_edge import curves
from diffusion_edge.batching import best_rows, nearest, pays, rows_now
from diffusion_edge.curves import Curve
from diffusion_edge.emulation import Emulate

SEEN = 9
"""Figures of one kind that are kept: up to four stalls among them count for nothing."""

SIZES = 64
"""Sizes that are known at once; a new one takes the place of the one stepped longest ago."""


@dataclass(frozen=True)
class Recent:
    """The last seconds that something took, oldest first; what was measured or assumed counts as
    one of them."""

    taken_s: tuple[float, ...]

    @property
    def typical_s(self) -> float:
        """The median; of two in the middle the lower one, since what disturbs only adds."""
        return sorted(self.taken_s)[(len(self.taken_s) - 1) // 2]

    def after(self, took_s: float) -> Recent:
        return Recent((*self.taken_s, took_s)[-SEEN:])


@dataclass(frozen=True)
class Steps:
    """What is known of the steps of one size.

    curve: by rows. recent: where `curve` comes from, for row counts that were seen. stepped_s: all
    seconds stepped at this size. tried_s: by rows, what `stepped_s` was when a pass larger than
    pays was last seen not to pay.
    """

    curve: Curve
    recent: Mapping[int, Recent] = field(default_factory=dict)
    stepped_s: float = 0.0
    tried_s: Mapping[int, float] = field(default_factory=dict)

    def rows(self, unit: int, waiting: int, most: int) -> int:
        """Of the next forward pass at most; see `Seconds.rows`."""
        rested_s = {rows: self.stepped_s - at_s for rows, at_s in self.tried_s.items()}
        return rows_now(self.curve, unit, waiting, most, rested_s)

    def after(self, rows: int, took_s: float) -> Steps:
        assumed = Recent((curves.seconds(self.curve, rows),))
        recent = self.recent.get(rows, assumed).after(took_s)
        stepped_s, best = self.stepped_s + took_s, best_rows(self.curve)
        in_vain = rows > best and not pays(rows, took_s, best, self.curve[best])
        return Steps(
            curve={**self.curve, rows: recent.typical_s},
            recent={**self.recent, rows: recent},
            stepped_s=stepped_s,
            tried_s={**self.tried_s, rows: stepped_s} if in_vain else self.tried_s,
        )


@dataclass(frozen=True)
class Seconds:
    """What the parts of a span take.

    steps: by cells of the latent. encode: of a call, by the texts in it. decode: of a call, by
    cells and by the pictures in it. lanes: by rows times cells of a forward pass, into how many
    lanes it is cut. too_many: rows times cells that memory did not hold, of which half are tried
    from then on; None if it held all.
    stated: by a config; what is seen then changes nothing.
    """

    steps: Mapping[int, Steps]
    encode: Mapping[int, Recent]
    decode: Mapping[int, Mapping[int, Recent]]
    lanes: Mapping[int, int] = field(default_factory=lambda: {1: 1})
    too_many: int | None = None
    stated: bool = False

    @classmethod
    def of(cls, emulate: Emulate, cells: int) -> Seconds:
        """What is stated of a size with so many cells. A sample counts as one row and one text
        whether it is guided or not."""
        encode, decode = Recent((emulate.encode_s,)), Recent((emulate.decode_s,))
        return cls({cells: Steps(emulate.curve)}, {1: encode}, {cells: {1: decode}}, stated=True)

    @property
    def step_s(self) -> Mapping[int, Curve]:
        """By cells and rows."""
        return {cells: self.steps[cells].curve for cells in sorted(self.steps)}

    @property
    def texts_s(self) -> Curve:
        """Of a call, by the texts in it."""
        return typical(self.encode)

    @property
    def pictures_s(self) -> Mapping[int, Curve]:
        """Of a call, by cells and by the pictures in it."""
        return {cells: typical(self.decode[cells]) for cells in sorted(self.decode)}

    @property
    def decode_s(self) -> Mapping[int, float]:
        """Of one picture by cells."""
        return {cells: curves.seconds(curve, 1) for cells, curve in self.pictures_s.items()}

    def curve(self, cells: int) -> Curve:
        """Seconds of a step by rows."""
        return self._steps(cells).curve

    def step(self, cells: int, rows: int) -> float:
        return curves.seconds(self.curve(cells), rows)

    def encoding(self, texts: int) -> float:
        """Of so many in one call."""
        return curves.seconds(self.texts_s, texts)

    def decoding(self, cells: int, pictures: int = 1) -> float:
        """Of so many in one call."""
        return curves.seconds(curves.of_pictures(self.pictures_s, cells), pictures)

    def rows(self, cells: int, unit: int, waiting: int, most: int) -> int:
        """Of the next forward pass at most, where `waiting` rows could share it.

        unit: rows of each sample. most: what the result is bound to, like memory. Where seconds
        are stated, there is nothing to be found out by larger passes than pay.
        """
        held = self.most(cells, most)
        if self.stated:
            return min(best_rows(self.curve(cells)), held)
        return self._steps(cells).rows(unit, waiting, held)

    def most(self, cells: int, bound: int) -> int:
        """Rows of a forward pass of this size that memory is thought to hold, up to `bound`."""
        held = bound if self.too_many is None else min(bound, self.too_many // 2 // cells)
        return max(held, 1)

    def lanes_for(self, cells: int, rows: int) -> int:
        return min(nearest(self.lanes, cells * rows), rows)

    def after_step(self, cells: int, rows: int, took_s: float) -> Seconds:
        """With one more step seen."""
        if self.stated:
            return self
        others = {known: steps for known, steps in self.steps.items() if known != cells}
        kept = dict(list(others.items())[1 - SIZES :])
        return replace(self, steps={**kept, cells: self._steps(cells).after(rows, took_s)})

    def after_encoding(self, texts: int, took_s: float) -> Seconds:
        """With one more call seen."""
        if self.stated:
            return self
        recent = self.encode.get(texts) or Recent((self.encoding(texts),))
        return replace(self, encode={**self.encode, texts: recent.after(took_s)})

    def after_decoding(self, cells: int, pictures: int, took_s: float) -> Seconds:
        """With one more call seen."""
        if self.stated:
            return self
        others = {known: calls for known, calls in self.decode.items() if known != cells}
        kept = dict(list(others.items())[1 - SIZES :])
        own = self.decode.get(cells, {})
        recent = own.get(pictures) or Recent((self.decoding(cells, pictures),))
        calls = {**own, pictures: recent.after(took_s)}
        return replace(self, decode={**kept, cells: calls})

    def out_of_memory(self, cells: int, rows: int) -> Seconds:
        """With one forward pass seen that memory did not hold."""
        return replace(self, too_many=min(cells * rows, self.too_many or cells * rows))

    def _steps(self, cells: int) -> Steps:
        return self.steps.get(cells) or Steps(curves.curve(self.step_s, cells))


def typical(recent: Mapping[int, Recent]) -> Curve:
    """What is taken for each, in order."""
    return {count: recent[count].typical_s for count in sorted(recent)}
