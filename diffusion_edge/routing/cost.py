"""What plans there are, and what each would cost.

Plans over the same stages in the same order are handled together: `steps[k]` is an array with
the steps on the k-th stage, one entry per plan. A plan alone is an array of one.

The cost is busy seconds times the tier's price, whoever waits: of every span

    encode_s + steps * step_s (+ decode_s on the last stage)

Seconds of a step and of decoding are those of the request's size. A stage that batches takes all
images of the request at once, with the step_s of the forward passes that they share. Every stage
encodes the text itself. When a plan would be done `finish` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, permutations

import numpy as np
from numpy.typing import NDArray

from diffusion_edge.batching import drained_s
from diffusion_edge.curves import curve
from diffusion_edge.types import ImageRequest, Link, Plan, Span, StageStatus, View

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

MAX_SPANS = 3
# Hand-off steps that a plan of three spans may use: 32 make at most 496 plans per order of
# stages. Up to 33 steps that is every step; above, a grid of that many. Plans of two spans may
# hand off at every step.
MAX_CUTS = 32


@dataclass(frozen=True)
class Bundle:
    """Plans over the same stages in the same order."""

    stages: tuple[str, ...]
    steps: tuple[Counts, ...]

    def __len__(self) -> int:
        return len(self.steps[0])

    def plan(self, index: int, reason: str = "") -> Plan:
        counts = (int(count[index]) for count in self.steps)
        return Plan.of(tuple(zip(self.stages, counts, strict=True)), reason)


def bundles(
    stages: Sequence[str], steps: int, links: Mapping[tuple[str, str], Link]
) -> list[Bundle]:
    """All plans of one to three spans over distinct stages whose hops have links."""
    found = []
    for spans in range(1, min(MAX_SPANS, len(stages), steps) + 1):
        for order in permutations(sorted(stages), spans):
            if all(hop in links for hop in pairwise(order)):
                found.append(Bundle(order, cuts(steps, spans)))
    return found


@lru_cache(maxsize=64)
def cuts(steps: int, spans: int) -> tuple[Counts, ...]:
    """Every way to cut `steps` into 1, 2 or 3 parts of at least one step, within MAX_CUTS."""
    if spans == 1:
        return (np.array([steps]),)
    if spans == 2:
        first = np.arange(1, steps)
        return first, steps - first
    grid = np.unique(np.linspace(1, steps - 1, min(MAX_CUTS, steps - 1)).round().astype(np.int64))
    before, after = (grid[index] for index in np.triu_indices(len(grid), k=1))
    return before, after - before, steps - after


def of(
    stages: Sequence[str], steps: Sequence[Counts], guide: Sequence[bool], images: int, view: View
) -> Floats:
    """The cost of all images. guide: whether the k-th stage is to be guided."""
    total = np.zeros(len(steps[0]))
    for k, name in enumerate(stages):
        status = view.stages[name]
        size = images if status.batches else 1  # of what is stepped together
        step_s = _step_s(status, guide[k], size, view.cells)
        work_s = size * _around_s(status, view, k == len(stages) - 1) + steps[k] * step_s
        total = total + images // size * work_s * view.price_per_s[status.tier]
    return total


def full_s(
    stages: Sequence[str], steps: Sequence[Counts], guide: Sequence[bool], images: int, view: View
) -> list[Floats]:
    """By stage, the seconds by which all images add to what it has to do, where so many share its
    forward passes that these are full."""
    taken: list[Floats] = []
    for k, name in enumerate(stages):
        status = view.stages[name]
        around_s = _around_s(status, view, k == len(stages) - 1)
        stepping_s = steps[k].astype(np.float64) * _share_s(status, guide[k], view.cells)
        taken.append(images * (around_s + stepping_s))
    return taken


def _share_s(status: StageStatus, guided: bool, cells: int) -> float:
    """Of a step of one image, as its part of a full forward pass where there are such."""
    if not status.batches:
        return status.seconds_per_step(guided, cells)
    return drained_s([(1, status.rows(guided))], curve(status.step_s, cells))


def _around_s(status: StageStatus, view: View, decodes: bool) -> float:
    """Of one image, before and after its steps."""
    return status.encode_s + (status.seconds_to_decode(view.cells) if decodes else 0.0)


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
    link = view.links[source, target]
    return np.array([link.transfer_s(nbytes) for nbytes in view.packet_bytes])[handoff]


def models(stages: Sequence[str], view: View) -> tuple[str, ...]:
    """The model that each stage runs: what a quality table knows, whatever the stages' names."""
    return tuple(view.stages[name].model for name in stages)


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
