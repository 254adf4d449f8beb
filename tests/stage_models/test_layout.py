from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from stage_models.shapes import layout, scenes


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("seed", range(20))
def test_labels_say_what_is_drawn(seed: int, size: int) -> None:
    """The colour of every cell that is all of one colour is the cell's label, or the ground's."""
    scene = scenes.sample(random.Random(seed), 1 + seed % 3)
    cells = size // layout.CELL
    shape, colour, place = layout.labels(scene, size).view(3, cells, cells)
    pixels = np.asarray(scenes.draw(scene, size))
    names = list(scenes.COLOURS)
    ground = names.index(scene.caption.background)
    for y in range(cells):
        for x in range(cells):
            block = pixels[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].reshape(-1, 3)
            seen = {
                names.index(n) for n, rgb in scenes.COLOURS.items() if (block == rgb).all(1).any()
            }
            blank = int(place[y, x]) == 0
            assert blank == (int(shape[y, x]) == len(scenes.SHAPES))
            if blank:
                assert seen == {ground} == {int(colour[y, x])}


def test_a_small_thing_inside_covers_the_large_one() -> None:
    inside = scenes.parse("a small red star inside a large blue ring on a white background")
    assert inside is not None
    scene = scenes.Scene(inside, ("small", "large"), ((32, 32), (32, 32)))
    shape, colour, place = layout.labels(scene).view(3, 8, 8)
    names = list(scenes.COLOURS)
    assert colour[3:5, 3:5].eq(names.index("red")).all()
    assert colour[2, 2:6].eq(names.index("blue")).all()
    assert shape[3:5, 3:5].eq(scenes.SHAPES.index("star")).all()
    assert sorted(place.flatten().tolist())[-1] == 20


def test_the_head_learns_what_its_input_says() -> None:
    """Hidden states that spell out the labels: the loss falls towards 0."""
    torch.manual_seed(0)
    wanted = torch.stack(
        [layout.labels(scenes.sample(random.Random(seed), 2)) for seed in range(8)]
    )
    code = torch.randn(3, 21, 24)
    hidden = sum(code[k][wanted[:, k].long()] for k in range(3))
    head = layout.Head(24)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    first = head(hidden, wanted)
    for _ in range(100):
        optimizer.zero_grad()
        head(hidden, wanted).backward()
        optimizer.step()
    assert head(hidden, wanted).item() < 0.1 * first.item()
