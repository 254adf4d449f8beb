"""The grammar can be read back, scenes keep what their caption says, drawing is repeatable."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

import numpy as np
import pytest

from stage_models.shapes import scenes
from stage_models.shapes.scenes import Caption, Scene, Thing


@cache
def some_scenes(count: int, held_out: bool = False, seed: int = 0) -> tuple[Scene, ...]:
    rng = random.Random(seed)
    return tuple(scenes.sample(rng, 1 + i % 3, held_out) for i in range(count))


@pytest.mark.parametrize("held_out", [False, True])
def test_every_caption_is_read_back(held_out: bool) -> None:
    for scene in some_scenes(900, held_out):
        assert scenes.parse(str(scene.caption)) == scene.caption


def test_parse_reads_the_documented_sentences() -> None:
    assert scenes.parse("a red circle on a white background") == Caption(
        (Thing("circle", "red"),), (), "white"
    )
    said = "a small blue star left of a large yellow square on a black background"
    assert scenes.parse(said) == Caption(
        (Thing("star", "blue", "small"), Thing("square", "yellow", "large")), ("left of",), "black"
    )
    assert scenes.parse("  AN orange ring on a Green background. ") == Caption(
        (Thing("ring", "orange"),), (), "green"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "a red circle",
        "a red circle on white",
        "a red circle on a pink background",
        "a red circle on a white background with stars",
        "red circle on a white background",
        "a circle on a white background",
        "a red on a white background",
        "a huge red circle on a white background",
        "a red circle beside a blue star on a white background",
        "a red circle left of on a white background",
        "a red circle left a blue star on a white background",
        " on a white background",
        " ".join(["a red circle left of"] * 3) + " a red circle on a white background",
    ],
)
def test_parse_refuses_what_is_not_a_sentence(text: str) -> None:
    assert scenes.parse(text) is None


def test_every_word_of_a_caption_is_in_the_vocabulary() -> None:
    spoken = {word for scene in some_scenes(900) for word in str(scene.caption).split()}
    assert spoken <= set(scenes.WORDS)


def test_training_scenes_never_hold_a_held_out_pair() -> None:
    for scene in some_scenes(900):
        assert not {(t.colour, t.shape) for t in scene.caption.things} & scenes.HELD_OUT


def test_held_out_scenes_hold_one_and_in_time_all_of_them() -> None:
    seen: Counter[tuple[str, str]] = Counter()
    for scene in some_scenes(900, held_out=True):
        pairs = {(t.colour, t.shape) for t in scene.caption.things} & scenes.HELD_OUT
        assert pairs
        seen.update(pairs)
    assert set(seen) == scenes.HELD_OUT


def test_every_colour_and_shape_of_a_held_out_pair_is_trained_elsewhere() -> None:
    pairs = {(t.colour, t.shape) for s in some_scenes(900) for t in s.caption.things}
    assert len(pairs) == len(scenes.COLOURS) * len(scenes.SHAPES) - len(scenes.HELD_OUT)


def test_all_colours_of_a_scene_differ() -> None:
    for scene in some_scenes(900):
        colours = [scene.caption.background, *(t.colour for t in scene.caption.things)]
        assert len(set(colours)) == len(colours)


@pytest.mark.parametrize("held_out", [False, True])
def test_centres_keep_the_relations_and_the_canvas(held_out: bool) -> None:
    kinds: Counter[str] = Counter()
    for scene in some_scenes(900, held_out):
        radii = [scenes.RADII[size] for size in scene.sizes]
        for (x, y), radius in zip(scene.centres, radii, strict=True):
            assert {x, y} <= {16, 32, 48}  # three by three places
            assert radius < min(x, y)
            assert max(x, y) < scenes.CANVAS - radius
        for i, relation in enumerate(scene.caption.relations):
            kinds[relation] += 1
            (ax, ay), (bx, by) = scene.centres[i : i + 2]
            if relation == "left of":
                assert bx - ax > radii[i] + radii[i + 1]
                assert ay == by
            elif relation == "above":
                assert by - ay > radii[i] + radii[i + 1]
                assert ax == bx
            else:
                assert (ax, ay) == (bx, by)
                assert scene.sizes[i : i + 2] == ("small", "large")
                assert scene.caption.things[i + 1].shape in scenes.CONTAINERS
    assert all(kinds[relation] > 30 for relation in scenes.RELATIONS)


def test_said_sizes_are_the_drawn_ones() -> None:
    said = Counter(
        thing.size is None
        for scene in some_scenes(900)
        for thing, size in zip(scene.caption.things, scene.sizes, strict=True)
        if thing.size in (None, size)
    )
    assert sum(said.values()) == 1800
    assert 0.1 < said[True] / 1800 < 0.3


def test_fully_said_speaks_every_size() -> None:
    for scene in map(scenes.fully_said, some_scenes(60)):
        assert tuple(t.size for t in scene.caption.things) == scene.sizes


def test_a_relation_that_cannot_hold_has_no_place() -> None:
    caption = Caption((Thing("star", "red"), Thing("cross", "blue")), ("inside",), "white")
    assert scenes.place(random.Random(0), caption, ("small", "large")) is None


def test_the_same_seed_gives_the_same_scenes_and_pixels() -> None:
    first, second = some_scenes(30, seed=5), some_scenes.__wrapped__(30, seed=5)
    assert first == second
    assert scenes.draw(first[7]).tobytes() == scenes.draw(second[7]).tobytes()
    assert first != some_scenes(30, seed=6)


@pytest.mark.parametrize("size", [64, 96, 128])
def test_drawing_scales(size: int) -> None:
    caption = Caption((Thing("square", "red"),), (), "white")
    image = scenes.draw(Scene(caption, ("large",), ((16, 40),)), size)
    assert image.size == (size, size)
    assert image.mode == "RGB"
    assert image.getpixel((16 * size // 64, 40 * size // 64)) == scenes.COLOURS["red"]
    assert image.getpixel((40 * size // 64, 16 * size // 64)) == scenes.COLOURS["white"]


def test_a_ring_shows_the_background_and_what_is_inside_lies_on_top() -> None:
    ring = Caption((Thing("ring", "red"),), (), "yellow")
    assert scenes.draw(Scene(ring, ("large",), ((32, 32),))).getpixel((32, 32)) == (255, 228, 30)
    held = Caption((Thing("circle", "blue"), Thing("ring", "red")), ("inside",), "yellow")
    image = scenes.draw(Scene(held, ("small", "large"), ((32, 32), (32, 32))))
    assert image.getpixel((32, 32)) == scenes.COLOURS["blue"]


def test_shapes_look_different_and_a_silhouette_is_the_drawn_shape() -> None:
    drawn = {}
    for shape in scenes.SHAPES:
        caption = Caption((Thing(shape, "black"),), (), "white")
        image = np.asarray(scenes.draw(Scene(caption, ("large",), ((32, 32),))).convert("L"))
        mask = np.asarray(scenes.silhouette(shape, 14.0, (0.0, 0.0), 64))
        assert np.abs((250.0 - image) / 238 - mask / 255).max() < 0.02
        drawn[shape] = mask >= 128
    for first in scenes.SHAPES:
        for second in scenes.SHAPES:
            if first != second:
                shared = (drawn[first] & drawn[second]).sum()
                assert shared / (drawn[first] | drawn[second]).sum() < 0.9


def test_an_unknown_shape_is_named() -> None:
    with pytest.raises(ValueError, match="unknown shape 'heart'; known: circle, square"):
        scenes.silhouette("heart", 7.0, (0.0, 0.0), 32)
