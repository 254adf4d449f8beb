"""What is known about the quality of a family's plans: measured rows, and what lies between them.

A row says how well a plan does that gives each of its stages a share of the steps. Between rows
the accuracy is piecewise linear:

- one stage: its own row;
- two stages in one order: between the measured shares of that order, the one-stage rows being
  the ends;
- three stages in one order: over the triangle of shares. Its corners are the one-stage rows, its
  sides the three shorter orders, its inside the rows of the order itself; all of these points are
  triangulated (Delaunay), and inside a triangle the accuracy is barycentric.

An order of two that was never measured is unknown, and so is an order of three with an unknown
side, and anything longer: a hand-off can be worse than both of its ends, so nothing is guessed.
What is unknown counts as quality 0, which only a floor of 0 admits. A family without a table
knows one plan, the reference stage alone.

The stages of a table are the family's stage models; a deployment may call its stages otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from diffusion_edge.errors import ConfigError
from diffusion_edge.types import Plan

Floats = NDArray[np.float64]
STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class QualityRow(BaseModel):
    """`accuracy` of the plan that gives `shares[k]` of its steps to `stages[k]`, over n images."""

    model_config = STRICT

    stages: Annotated[tuple[str, ...], Field(min_length=1)]
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...]
    accuracy: Annotated[float, Field(ge=0, le=1)]
    n: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.stages) != len(self.shares):
            raise ValueError(f"{len(self.stages)} stages but {len(self.shares)} shares")
        if abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"the shares {list(self.shares)} do not sum to 1")
        if merged(self.stages) != self.stages:
            raise ValueError(f"{list(self.stages)} names one stage twice in a row")
        return self


class QualityTable(BaseModel):
    """`quality.json` of a family, measured by one command. `reference` is what 1.0 means."""

    model_config = STRICT

    family: str
    metric: str
    steps: int
    solver: str
    guidance: float
    seed: int
    captions: int | str
    versions: dict[str, str]
    measured: str
    rows: tuple[QualityRow, ...]
    reference: str = "cloud"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        keys = [(row.stages, row.shares) for row in self.rows]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"stages {list(twice[0])} with shares {list(twice[1])} occur twice")
        for name in sorted({stage for row in self.rows for stage in row.stages}):
            if name not in self._alone:
                raise ValueError(f"stage {name!r} has no row of its own (shares [1.0])")
        if self.rows and self._alone.get(self.reference, 0.0) <= 0:
            raise ValueError(f"no row with accuracy above 0 for the reference {self.reference!r}")
        return self

    @classmethod
    def read(cls, path: Path) -> QualityTable:
        """Raises ConfigError, naming the file and the key, for what is not such a table."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", file=str(path)) from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            where = f"{path}, {key}" if key else str(path)
            raise ConfigError(f"{where}: {first['msg']}", file=str(path), key=key) from error

    @classmethod
    def unknown(cls, family: str, reference: str = "cloud") -> QualityTable:
        """For a family that was never measured: only the reference alone is known, as 1.0."""
        return cls(
            family=family,
            metric="not measured",
            steps=0,
            solver="",
            guidance=1.0,
            seed=0,
            captions=0,
            versions={},
            measured="",
            rows=(),
            reference=reference,
        )

    @property
    def stages(self) -> tuple[str, ...]:
        """Every stage that the table knows, the reference first."""
        return (self.reference, *sorted(set(self._alone) - {self.reference}))

    def knows(self, stages: Sequence[str]) -> bool:
        """Whether the quality of plans over these stages in this order can be told."""
        order = merged(stages)
        if len(order) == 1:
            return order[0] in self._alone or order[0] == self.reference
        if len(order) == 2:
            return any(row.stages == order for row in self.rows)
        return len(order) == 3 and all(self.knows(side) for side in _sides(order))

    def relative(self, plan: Plan) -> float:
        """Predicted accuracy over that of the reference alone; 0.0 where it is unknown."""
        stages = tuple(span.stage for span in plan.spans)
        return float(self.relative_all(stages, [span.steps for span in plan.spans])[0])

    def relative_all(self, stages: Sequence[str], steps: Sequence[ArrayLike]) -> Floats:
        """`relative` of many plans over the same stages: `steps[k]` holds those on stage k."""
        counts = [np.atleast_1d(np.asarray(count, np.float64)) for count in steps]
        order = merged(stages)
        if not self.knows(order):
            return np.zeros_like(counts[0])
        if not self.rows:
            return np.ones_like(counts[0])
        shares = _shares_by_run(stages, counts)
        return self._accuracy(order, shares) / self._alone[self.reference]

    def _accuracy(self, order: tuple[str, ...], shares: list[Floats]) -> Floats:
        if len(order) == 1:
            return np.full_like(shares[0], self._alone[order[0]])
        if len(order) == 2:
            points, values = self._line(order)
            return np.interp(shares[0], points, values)
        found: Floats = self._surface(order)(np.stack([shares[0], shares[1]], axis=-1))
        return np.nan_to_num(found, nan=0.0)

    def _line(self, order: tuple[str, ...]) -> tuple[Floats, Floats]:
        """Share of the first stage, and the accuracy there, both ends included."""
        known = {row.shares[0]: row.accuracy for row in self.rows if row.stages == order}
        known |= {0.0: self._alone[order[1]], 1.0: self._alone[order[0]]}
        points = sorted(known)
        return np.array(points), np.array([known[point] for point in points])

    def _surface(self, order: tuple[str, ...]) -> Any:
        if order not in self._surfaces:
            self._surfaces[order] = self._triangulate(order)
        return self._surfaces[order]

    def _triangulate(self, order: tuple[str, ...]) -> Any:
        from scipy.interpolate import LinearNDInterpolator  # slow to import, and not always needed

        known = {row.shares[:2]: row.accuracy for row in self.rows if row.stages == order}
        for first, second in _sides(order):
            for share, accuracy in zip(*self._line((first, second)), strict=True):
                at = dict.fromkeys(order, 0.0) | {first: float(share), second: 1.0 - float(share)}
                known[at[order[0]], at[order[1]]] = float(accuracy)
        return LinearNDInterpolator(np.array(list(known)), np.array(list(known.values())))

    @cached_property
    def _alone(self) -> dict[str, float]:
        return {row.stages[0]: row.accuracy for row in self.rows if len(row.stages) == 1}

    @cached_property
    def _surfaces(self) -> dict[tuple[str, ...], Any]:
        return {}


def merged(stages: Sequence[str]) -> tuple[str, ...]:
    """The order without repetitions in a row: cloud, cloud, edge is cloud, edge."""
    return tuple(s for i, s in enumerate(stages) if i == 0 or stages[i - 1] != s)


def _sides(order: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The shorter orders that an order of three becomes when one of its shares is 0."""
    first, middle, last = order
    return (first, middle), (middle, last), (first, last)


def _shares_by_run(stages: Sequence[str], counts: list[Floats]) -> list[Floats]:
    """Share of all steps for each run of equal stages."""
    total = np.sum(counts, axis=0)
    runs: list[Floats] = []
    for i, count in enumerate(counts):
        if i and stages[i - 1] == stages[i]:
            runs[-1] = runs[-1] + count / total
        else:
            runs.append(count / total)
    return runs
