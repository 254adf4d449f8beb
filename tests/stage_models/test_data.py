from __future__ import annotations

import math
import random
from collections.abc import Mapping
from itertools import combinations

import pytest
import torch

from stage_models.shapes import scenes
from stage_models.shapes.data import SIZES, Pictures, corruption, pixel_weights, share


@pytest.mark.parametrize("seed", range(40))
def test_any_colours_stay_away_from_each_other_and_from_what_is_held_out(seed: int) -> None:
    rng = random.Random(seed)
    scene = scenes.sample(rng, 1 + seed % 3)
    colours = scenes.recoloured(rng, scene)
    said = scene.caption
    assert set(colours) == {said.background, *(thing.colour for thing in said.things)}
    for name, colour in colours.items():
        others = [other for known, other in colours.items() if known != name]
        assert all(math.dist(colour, other) > 80 for other in others)
    assert not any(shows_a_held_out_pair(thing, colours) for thing in said.things)


def shows_a_held_out_pair(thing: scenes.Thing, colours: Mapping[str, scenes.Rgb]) -> bool:
    """Whether one would call the thing's colour by a name that its shape is held out of."""
    away = {name: math.dist(colours[thing.colour], rgb) for name, rgb in scenes.COLOURS.items()}
    name = min(away, key=away.__getitem__)
    return (name, thing.shape) in scenes.HELD_OUT and away[name] <= 80


@pytest.mark.parametrize("seed", range(40))
def test_colours_on_the_way_to_others_are_where_the_caption_of_those_says(seed: int) -> None:
    rng = random.Random(seed)
    scene = scenes.sample(rng, 1 + seed % 3)
    said = scene.caption
    other, share, colours = scenes.blended(rng, scene)
    assert 0 <= share <= 0.5
    assert [(t.shape, t.size) for t in other.things] == [(t.shape, t.size) for t in said.things]
    assert len(str(other).split()) == len(str(said).split())
    firsts = (said.background, *(thing.colour for thing in said.things))
    seconds = (other.background, *(thing.colour for thing in other.things))
    assert set(colours) == set(firsts)
    for first, second in zip(firsts, seconds, strict=True):
        ends = zip(scenes.COLOURS[first], scenes.COLOURS[second], strict=True)
        between = tuple(a + share * (b - a) for a, b in ends)
        assert colours[first] == pytest.approx(between, abs=0.5)
    for one, two in combinations(colours.values(), 2):
        assert math.dist(one, two) > 80
    assert not any(shows_a_held_out_pair(thing, colours) for thing in said.things)


def test_pictures_of_a_pool_are_of_its_size_and_of_the_family_s_colours_unless_recoloured() -> None:
    palette = {tuple(rgb) for rgb in scenes.COLOURS.values()}
    for size in SIZES:
        for recolour in (False, True):
            pool = Pictures(random.Random(1), size, 8, recolour)
            drawn = pool.sample(8)
            assert drawn.shape == (8, 3, size, size)
            grounds = {tuple(corner.tolist()) for corner in drawn[:, :, 0, 0]}
            assert (grounds <= palette) != recolour


def test_a_thing_counts_more_than_the_ground_and_a_picture_as_much_as_any_other() -> None:
    x = torch.full((2, 3, 32, 32), -1.0)
    x[1, :, 10:14, 10:14] = 1.0
    weights = pixel_weights(x)
    assert torch.allclose(weights.mean((1, 2, 3)), torch.ones(2))
    assert torch.equal(weights[0], torch.ones(1, 32, 32))
    assert float(weights[1, 0, 12, 12]) == pytest.approx(5 * float(weights[1, 0, 0, 0]))
    assert float(weights[1, 0, 9, 9]) == float(weights[1, 0, 12, 12])  # its border, too


def test_a_larger_picture_is_taught_at_more_noise_and_costs_as_much() -> None:
    torch.manual_seed(0)
    small, large = (corruption(20_000, size).float() for size in SIZES)
    assert float(large.median()) > float(small.median()) + 50
    for t in (small, large):
        assert 0 <= float(t.min()) < 20
        assert 980 < float(t.max()) <= 999
    assert [size**2 * share(size) for size in SIZES] == [64**2, 64**2]
