"""What plans there are, and what each would cost.

Plans over the same stages in the same order are handled together: `steps[k]` is an array with
the steps on the k-th stage, one entry per plan. A plan alone is an array of one.

The cost is busy seconds times the tier's price, whoever waits: of every span

    seconds to encode + steps * step_s (+ decode_s on the last stage)

Seconds of a step and of decoding are those of the request's size. A stage that batches takes all
images of the request at once, with the step_s of the forward passes that they share. Every stage
encodes the texts itself, as many as the sample has rows, be it ahead. When a plan would be done
`finish` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from diffusion_edge.batching import drained_s
from diffusion_edge.curves import curve
from diffusion_edge.plan import Plan, Span
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.kept import Kept
from diffusion_edge.view import StageStatus, View

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Line:
    """What a stage takes of anything, by steps: `start` and `step` for each; `end` where the plan
    ends there."""

    start: float
    step: float
    end: float

    def __add__(self, other: Line) -> Line:
        return Line(self.start + other.start, self.step + other.step, self.end + other.end)

    def __mul__(self, factor: float) -> Line:
        return Line(self.start * factor, self.step * factor, self.end * factor)


@lru_cache(maxsize=64)
def cuts(steps: int, spans: int) -> tuple[Counts, ...]:
    """Every way to cut `steps` into 1, 2 or 3 parts of at least one step, earlier cuts first."""
    if spans == 1:
        return (np.array([steps]),)
    if spans == 2:
        first = np.arange(1, steps)
        return first, steps - first
    before, after = (index + 1 for index in np.triu_indices(steps - 1, k=1))
    return before, after - before, steps - after


def of(
    stages: Sequence[str], steps: Sequence[Counts], guide: Sequence[bool], images: int, view: View
) -> Floats:
    """The cost of all images. guide: whether the k-th stage is to be guided."""
    total = np.zeros(len(steps[0]))
    for k, name in enumerate(stages):
        line = paid(view.stages[name], guide[k], images, view)
        total = total + line.start + steps[k] * line.step
        if k == len(stages) - 1:
            total = total + line.end
    return total


def paid(status: StageStatus, guided: bool, images: int, view: View) -> Line:
    """What all images cost on a stage."""
    return _lines(status, guided, images, view)[0] * view.price_per_s[status.tier]


def full_s(status: StageStatus, guided: bool, images: int, view: View) -> Line:
    """The seconds by which all images add to what a stage has to do, where so many share its
    forward passes that these are full."""
    return _lines(status, guided, images, view)[1]


def charged(
    status: StageStatus, guided: bool, images: int, view: View, each_s: float
) -> tuple[Line, Line]:
    """What is paid, and the same with `full_s` at so much for a second."""
    busy_s, full = _lines(status, guided, images, view)
    paid = busy_s * view.price_per_s[status.tier]
    return paid, paid + full * each_s


_LINES: Kept[tuple[Line, Line]] = Kept(256)


def _lines(status: StageStatus, guided: bool, images: int, view: View) -> tuple[Line, Line]:
    """Seconds that all images keep a stage busy, and `full_s`."""
    asked = guided, images, view.cells
    return _LINES.of_alike(status, asked, lambda: _made_lines(status, *asked))


def _made_lines(status: StageStatus, guided: bool, images: int, cells: int) -> tuple[Line, Line]:
    size = images if status.batches else 1  # of what is stepped together
    encode_s = status.seconds_to_encode(status.rows(guided))
    decode_s = status.seconds_to_decode(cells)
    step_s = _step_s(status, guided, size, cells)
    busy_s = Line(size * encode_s, step_s, size * decode_s) * (images // size)
    return busy_s, Line(encode_s, _share_s(status, guided, cells), decode_s) * images


def _share_s(status: StageStatus, guided: bool, cells: int) -> float:
    """Of a step of one image, as its part of a full forward pass where there are such."""
    if not status.batches:
        return status.seconds_per_step(guided, cells)
    return drained_s([(1, status.rows(guided))], curve(status.step_s, cells))


def _step_s(status: StageStatus, guided: bool, images: int, cells: int) -> float:
    """Seconds in which each of `images` makes a step, together if they are several."""
    if images == 1:
        return status.seconds_per_step(guided, cells)
    rows, known = status.rows(guided), curve(status.step_s, cells)
    filled = {size: s for size, s in known.items() if size <= images * rows}
    return drained_s([(1, rows)] * images, filled or known)


def of_plan(plan: Plan, request: ImageRequest, view: View) -> float:
    """Of one plan whose stages the view has."""
    stages, steps, guide = parts(plan, request, view)
    return float(of(stages, steps, guide, request.images, view)[0])


def parts(
    plan: Plan, request: ImageRequest, view: View
) -> tuple[list[str], list[Counts], list[bool]]:
    """Stages, steps and whether each is guided, as the functions on many plans take them."""
    return (
        [span.stage for span in plan.spans],
        [np.array([span.steps]) for span in plan.spans],
        [span_guided(span, request, view) for span in plan.spans],
    )


def hop_s(source: str, target: str, handoff: Counts, view: View) -> Floats:
    """Seconds that the packet travels, by the step that it is handed off before."""
    if source == target:
        return np.zeros(len(handoff))
    link, nbytes = view.links[source, target], np.array(view.packet_bytes)[handoff]
    travel_s: Floats = link.delay_s + nbytes / link.bytes_per_s
    return travel_s


def models(stages: Sequence[str], view: View) -> tuple[str, ...]:
    """The model that each stage runs: what a quality table knows, whatever the stages' names."""
    return tuple(view.stages[name].model for name in stages)


def in_models(plan: Plan, view: View) -> Plan:
    """As a quality table knows it."""
    names = models([span.stage for span in plan.spans], view)
    return Plan.of(tuple(zip(names, (span.steps for span in plan.spans), strict=True)))


def guided(stage: str, request: ImageRequest, view: View) -> bool:
    """Whether the stage is guided where a plan does not say: by its model's guidance, or else the
    request's. How many rows that makes is the stage's to say (`StageStatus.guiding`)."""
    return _on(view.guidance.get(stage, request.guidance))


def span_guided(span: Span, request: ImageRequest, view: View) -> bool:
    """Whether a span is guided: by its own guidance, or else as its stage would be."""
    return guided(span.stage, request, view) if span.guidance is None else _on(span.guidance)


def _on(guidance: float) -> bool:
    """Guidance of 1 and below is off."""
    return guidance > 1.0
