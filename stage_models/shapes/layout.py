"""What stands in each cell of the latent: an auxiliary target that teaches a denoiser layouts.

The velocity alone says little about which cells belong together: after thousands of updates a
second thing was still often missing or drawn twice. So a linear head reads the middle of every
denoiser in training and names, cell by cell, the shape, the colour and the place within its
thing; the head is thrown away afterwards. It is the representation alignment of REPA (Yu et al.
2024) with the scene itself in place of a pretrained encoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage_models.shapes import scenes

CELL = 8
"""Units of the canvas to one cell of the latent."""

_SHAPES = (*scenes.SHAPES, "none")
_COLOURS = tuple(scenes.COLOURS)
_EDGES = {"small": 2, "large": 4}
"""Cells across a thing."""
_PLACES = 1 + sum(edge**2 for edge in _EDGES.values())
_CLASSES = (len(_SHAPES), len(_COLOURS), _PLACES)


def labels(scene: scenes.Scene, size: int = scenes.CANVAS) -> Tensor:
    """Classes, uint8 (3, cells): shape, colour, and place within the thing (0 on the ground).

    A picture of a larger size has more cells, and blocks of them have one label.
    """
    across = scenes.CANVAS // CELL
    grid = torch.zeros(3, across, across, dtype=torch.uint8)
    grid[0] = _SHAPES.index("none")
    grid[1] = _COLOURS.index(scene.caption.background)
    for i in sorted(range(len(scene.sizes)), key=lambda i: -scenes.RADII[scene.sizes[i]]):
        thing, edge = scene.caption.things[i], _EDGES[scene.sizes[i]]
        left, top = (centre // CELL - edge // 2 for centre in scene.centres[i])
        window = grid[:, top : top + edge, left : left + edge]
        window[0] = _SHAPES.index(thing.shape)
        window[1] = _COLOURS.index(thing.colour)
        first = 1 if edge == _EDGES["small"] else 1 + _EDGES["small"] ** 2
        window[2] = torch.arange(first, first + edge**2).view(edge, edge)
    times = size // scenes.CANVAS
    return grid.repeat_interleave(times, 1).repeat_interleave(times, 2).flatten(1)


class Head(nn.Module):
    """Reads hidden states (B, cells, width) and judges them against labels (B, 3, cells)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, sum(_CLASSES))

    def forward(self, hidden: Tensor, wanted: Tensor) -> Tensor:
        """The sum of three cross entropies, each the mean over cells."""
        parts = self.out(self.norm(hidden)).float().split(_CLASSES, dim=-1)
        losses = [
            F.cross_entropy(part.flatten(0, 1), wanted[:, k].flatten().long())
            for k, part in enumerate(parts)
        ]
        return torch.stack(losses).sum()
