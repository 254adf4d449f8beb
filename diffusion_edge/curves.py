"""What was not measured, read off what was: seconds by rows of a forward pass and by size.

A size is known by its cells: those of a latent, whatever their shape and channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

Curve = Mapping[int, float]
"""Seconds of a forward pass by its rows, or of a call by what is in it; never empty."""


def cells_of(shape: Sequence[int]) -> int:
    """Cells of a latent of shape (channels, ...)."""
    return prod(shape[1:])


def seconds(curve: Curve, rows: float) -> float:
    """Between two known row counts on the line between them, beyond all in proportion to rows."""
    if rows in curve:
        return curve[int(rows)]
    below = max((known for known in curve if known <= rows), default=min(curve))
    above = min((known for known in curve if known >= rows), default=max(curve))
    if below >= above:
        return curve[below] * rows / below
    share = (rows - below) / (above - below)
    return curve[below] + share * (curve[above] - curve[below])


def curve(by_cells: Mapping[int, Curve], cells: int) -> Curve:
    """That of a size: its own, or else read off the nearest size's. Some rows of a large picture
    take what more rows of a small one take that have as many cells."""
    if cells in by_cells:
        return by_cells[cells]
    near = nearest_size(by_cells, cells)
    known = by_cells[near]
    return {rows: seconds(known, rows * cells / near) for rows in known}


def scaled(by_cells: Mapping[int, float], cells: int) -> float:
    """Seconds of one picture of a size: its own, or else the nearest's in proportion to cells."""
    near = nearest_size(by_cells, cells)
    return by_cells[near] * cells / near


def of_pictures(by_cells: Mapping[int, Curve], cells: int) -> Curve:
    """Seconds of a call that decodes pictures of a size, by how many: its own, or else the nearest
    size's in proportion to cells."""
    near = nearest_size(by_cells, cells)
    return {count: took_s * cells / near for count, took_s in by_cells[near].items()}


def nearest_size(known: Iterable[int], cells: int) -> int:
    """The one with the smallest ratio to `cells`; of two alike the larger."""
    return min(known, key=lambda other: (max(other / cells, cells / other), -other))
