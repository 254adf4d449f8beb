"""Which sizes of pictures a family makes. No torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Sizes(BaseModel):
    """Either `squares`, edge lengths in pixels, or rectangles by a rule.

    multiple_of: of both edges. least, most: of each edge. pixels: most of width times height.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    squares: tuple[int, ...] = ()
    multiple_of: Annotated[int, Field(ge=1)] = 1
    least: Annotated[int, Field(ge=1)] = 1
    most: Annotated[int, Field(ge=0)] = 0
    pixels: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_of_both(self) -> Sizes:
        if bool(self.squares) == bool(self.most):
            raise ValueError("give a list of edge lengths, or multiple_of, least, most and pixels")
        return self

    def allows(self, width: int, height: int) -> bool:
        if self.squares:
            return width == height and width in self.squares
        edges = (width, height)
        return (
            all(self.least <= edge <= self.most for edge in edges)
            and not any(edge % self.multiple_of for edge in edges)
            and width * height <= (self.pixels or width * height)
        )

    @property
    def smallest(self) -> int:
        """Edge of the smallest square."""
        fitting = -(-self.least // self.multiple_of) * self.multiple_of
        return min(self.squares, default=fitting)

    def described(self) -> list[str] | dict[str, int]:
        """For a program: the names of the squares, or the rule."""
        if self.squares:
            return [f"{edge}x{edge}" for edge in self.squares]
        return self.model_dump(include={"multiple_of", "least", "most", "pixels"})

    def __str__(self) -> str:
        if self.squares:
            return ", ".join(self.described())
        limit = f", {self.pixels} pixels at most" if self.pixels else ""
        return (
            f"WIDTHxHEIGHT in multiples of {self.multiple_of} from {self.least} to "
            f"{self.most}{limit}"
        )


def _listed(given: Any) -> Any:
    return {"squares": given} if isinstance(given, list | tuple) else given


GivenSizes = Annotated[Sizes, BeforeValidator(_listed)]
"""As a card has them: a list is one of squares."""


def parse_size(text: str) -> tuple[int, int] | None:
    """Width and height of `512x768`; None if it is no such thing."""
    edges = text.lower().split("x")
    if len(edges) != 2 or not all(e.isascii() and e.isdecimal() and len(e) < 6 for e in edges):
        return None
    return int(edges[0]), int(edges[1])
