"""Which codec a packet takes at each hand-off step, from what was measured of the family.

A lossy codec moves the final latent, by how much depends on the hand-off step: the steps that are
left may mend an error or make it grow. So `auto` decides for each hand-off step: the smallest codec
whose measured loss is at most the bound. The loss is the relative L2 error of the final latent, the
mean over the measured images.

Rows are measured at a few shares of the steps; between two of them the worse counts. Earlier and
later hand-offs than measured ones, and solvers that were not measured, have no known loss, and
`auto` is exact there. A loss belongs to a share, so other numbers of steps than the measured ones
take it from there: the worse of the next smaller and larger number, or the nearest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from diffusion_edge.plan import EXACT, Codec
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.tables import Record, Table

FILE = "codecs.json"
SMALLEST_FIRST: tuple[Codec, ...] = ("int8", "bf16")
Number = TypeVar("Number", int, float)


class CodecRow(Record):
    """What one codec does at one hand-off, over n images.

    share: of the steps that are done at the hand-off. error: relative L2 error of the final
    latent against the exact codec's, the mean; worst: the largest. change: of the metric's score
    against the exact codec's, the mean; interval: its 95 % confidence interval. packet_bytes: the
    mean size of a packet, exact_bytes that of an exact one.
    """

    solver: str
    steps: Annotated[int, Field(ge=2)]
    share: Annotated[float, Field(gt=0, lt=1)]
    codec: Literal["bf16", "int8"]
    error: Annotated[float, Field(ge=0)]
    worst: Annotated[float, Field(ge=0)]
    change: float
    interval: tuple[float, float]
    packet_bytes: Annotated[int, Field(ge=1)]
    exact_bytes: Annotated[int, Field(ge=1)]
    n: Annotated[int, Field(ge=1)]

    @property
    def handoff(self) -> int:
        return round(self.share * self.steps)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if abs(self.share * self.steps - self.handoff) > 1e-6 * self.steps:
            raise ValueError(f"the share {self.share} is no whole number of {self.steps} steps")
        if not self.interval[0] <= self.change <= self.interval[1]:
            raise ValueError("the change lies outside its interval")
        if self.error > self.worst:
            raise ValueError("the mean error is larger than the worst")
        return self


class CodecTable(Table):
    """`codecs.json` of a family, measured by `diffusion-edge codecs`.

    model: on both sides of every hand-off. prompts: where they came from; prompt i is drawn with
    seed + i.
    """

    COMMAND = "diffusion-edge codecs"

    family: str
    model: str
    metric: str
    guidance: float
    size: int
    seed: int
    prompts: str
    captions: int
    weights: str
    versions: dict[str, str]
    measured: str
    rows: tuple[CodecRow, ...]

    @model_validator(mode="after")
    def _unique(self) -> Self:
        keys = [(row.solver, row.steps, row.handoff, row.codec) for row in self.rows]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"solver, steps, hand-off and codec {twice} occur twice")
        return self

    def loss(self, solver: str, steps: int, handoff: int, codec: Codec) -> float | None:
        """Relative L2 error of the final latent, None where it is not known."""
        if codec == EXACT:
            return 0.0
        curves = self._curves.get((solver, codec))
        if curves is None:
            return None
        measured = sorted(curves)
        nearest = _beside(measured, min(max(steps, measured[0]), measured[-1]))
        errors = [
            [curves[count][share] for share in _beside(sorted(curves[count]), handoff / steps)]
            for count in nearest
        ]
        return max(map(max, errors)) if all(errors) else None

    def smallest(self, solver: str, steps: int, handoff: int, bound: float) -> Codec:
        """The smallest codec whose loss is known to be at most `bound`."""
        for codec in SMALLEST_FIRST:
            loss = self.loss(solver, steps, handoff, codec)
            if loss is not None and loss <= bound:
                return codec
        return EXACT

    @cached_property
    def _curves(self) -> dict[tuple[str, Codec], dict[int, dict[float, float]]]:
        """By solver and codec, then by the number of steps: error by share."""
        curves: dict[tuple[str, Codec], dict[int, dict[float, float]]] = {}
        for row in self.rows:
            by_steps = curves.setdefault((row.solver, row.codec), {})
            by_steps.setdefault(row.steps, {})[row.handoff / row.steps] = row.error
        return curves


def _beside(known: Sequence[Number], value: Number) -> list[Number]:
    """The value itself if it is among the known ones, which are in order, or else the one before
    and the one after it; nothing before the first and after the last."""
    at = bisect_left(known, value)
    if at < len(known) and known[at] == value:
        return [value]
    return [known[at - 1], known[at]] if 0 < at < len(known) else []


def codecs_by_step(
    request: ImageRequest, table: CodecTable | None, bound: float
) -> tuple[Codec, ...]:
    """The codec of a hand-off before step k, for k from 0 to the number of steps."""
    if request.codec != "auto":
        return (request.codec,) * (request.steps + 1)
    if table is None:
        return (EXACT,) * (request.steps + 1)
    return tuple(
        table.smallest(request.solver, request.steps, k, bound) for k in range(request.steps + 1)
    )


def codec_table(folder: Path) -> CodecTable | None:
    """The table of the family in `folder`, None if it was not measured. Raises ConfigError."""
    path = folder / FILE
    return CodecTable.read(path) if path.exists() else None
