"""What policies that choose again look at, recorded picture by picture: `signals.json`, written by
`diffusion-edge profile --signals`. A simulation replays it.

Picture i of every row is of the same prompt and seed, so what one model makes of a prompt stands
beside what another makes of it.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from diffusion_edge.routing.tables import Record, Table

Share = Annotated[float, Field(ge=0, le=1)]
Change = Annotated[float, Field(ge=0)]


class Recording(Record):
    """Pictures of one model alone, in `steps` steps. changes[i]: of picture i, from every step to
    the next, as `rule.Standing` has them. scores[i]: what the metric gives it."""

    model: str
    steps: Annotated[int, Field(ge=1)]
    scores: Annotated[tuple[Share, ...], Field(min_length=1)]
    changes: tuple[tuple[Change, ...], ...]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if len(self.changes) != len(self.scores):
            raise ValueError(f"{len(self.scores)} scores, but changes of {len(self.changes)}")
        if any(len(each) != self.steps - 1 for each in self.changes):
            raise ValueError(f"{self.steps} steps have {self.steps - 1} changes")
        return self


class Signals(Table):
    """Of a family at one size. Prompt i was drawn with seed + i; `prompts` says where they came
    from, `weights` is the fingerprint of those that were measured."""

    COMMAND = "diffusion-edge profile --signals"

    family: str
    metric: str
    size: Annotated[int, Field(ge=1)]
    seed: int
    prompts: str
    weights: str
    rows: Annotated[tuple[Recording, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _even(self) -> Self:
        if len({len(row.scores) for row in self.rows}) > 1:
            raise ValueError("some rows have more pictures than others")
        return self

    @property
    def pictures(self) -> int:
        """Of every row."""
        return len(self.rows[0].scores)

    def row(self, model: str, steps: int) -> Recording | None:
        """Of this model, in the number of steps that is nearest; None where it was not recorded."""
        found = [row for row in self.rows if row.model == model]
        return min(found, key=lambda row: (abs(row.steps - steps), row.steps), default=None)
