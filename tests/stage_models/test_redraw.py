"""The second judge: truth is right, every kind of wrong is wrong, and what the first mistakes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image

from stage_models.shapes import redraw, scenes
from stage_models.shapes.redraw import Report, drawing, judge, see
from stage_models.shapes.scenes import COLOURS, Caption, Scene, Thing
from stage_models.shapes.verify import soften


@cache
def truth(count: int) -> tuple[Scene, ...]:
    """Scenes of one to three things, every other one held out of training, all sizes said."""
    rng = random.Random(23)
    drawn = (scenes.sample(rng, 1 + i % 3, held_out=i % 2 == 0) for i in range(count))
    return tuple(map(scenes.fully_said, drawn))


def wrong_in(report: Report) -> set[str]:
    """The attributes that are not wholly right."""
    return {name for name, share in report.shares().items() if share < 1}


def one(shape: str, colour: str, size: str | None, ground: str) -> Caption:
    return Caption((Thing(shape, colour, size),), (), ground)


def two(first: Thing, relation: str, second: Thing, ground: str) -> Caption:
    return Caption((first, second), (relation,), ground)


def plain(ground: str) -> Image.Image:
    return Image.new("RGB", (64, 64), COLOURS[ground])


def put(image: Image.Image, shape: str, colour: str, radius: float, x: float, y: float) -> None:
    """Draws a shape with its middle at (x, y)."""
    mask = scenes.silhouette(shape, radius, (x - 32, y - 32), 64)
    image.paste(COLOURS[colour], mask=mask)


# ---------------------------------------------------------------------------- truth


def test_truth_is_right() -> None:
    wrong = [str(s.caption) for s in truth(90) if not judge(s.caption, scenes.draw(s)).all_right]
    assert not wrong


def test_softened_truth_is_right() -> None:
    rng = np.random.default_rng(3)
    right = [judge(s.caption, soften(scenes.draw(s), rng)).all_right for s in truth(60)]
    assert np.mean(right) >= 0.97


def test_truth_of_another_size_is_right() -> None:
    assert all(judge(s.caption, scenes.draw(s, 128)).all_right for s in truth(21))


@pytest.mark.parametrize("container", scenes.CONTAINERS)
@pytest.mark.parametrize("colours", [("yellow", "red", "orange"), ("purple", "white", "blue")])
def test_what_holds_a_thing_keeps_its_shape(container: str, colours: Sequence[str]) -> None:
    """A ring's hole shows the ground, also in a square; a circle around a thing is no ring."""
    inner, outer, ground = colours
    for shape in scenes.SHAPES:
        things = (Thing(shape, inner, "small"), Thing(container, outer, "large"))
        caption = Caption(things, ("inside",), ground)
        scene = Scene(caption, ("small", "large"), ((32, 48), (32, 48)))
        assert judge(caption, scenes.draw(scene)).all_right, str(caption)


def test_things_off_the_grid_and_of_odd_radius_are_right() -> None:
    rng = random.Random(2)
    for shape in scenes.SHAPES:
        for radius, size in ((6.0, "small"), (8.5, "small"), (12.0, "large"), (15.5, "large")):
            image = plain("green")
            put(image, shape, "purple", radius, rng.uniform(22, 42), rng.uniform(22, 42))
            assert judge(one(shape, "purple", size, "green"), image).all_right, (shape, radius)


def test_the_drawing_is_the_picture() -> None:
    for scene in truth(12):
        picture = scenes.draw(scene)
        apart = np.asarray(drawing(picture), dtype=float) - np.asarray(picture, dtype=float)
        assert np.abs(apart).mean() < 0.5


# ---------------------------------------------------------------------------- wrong captions


def other(known: Sequence[str], now: str, rng: random.Random) -> str:
    return rng.choice([name for name in known if name != now])


@pytest.mark.parametrize("softened", [False, True])
def test_one_wrong_attribute_is_wrong_and_no_other(softened: bool) -> None:
    rng, noise = random.Random(4), np.random.default_rng(4)
    for scene in truth(30):
        caption, image = scene.caption, scenes.draw(scene)
        image = soften(image, noise) if softened else image
        first, *rest = caption.things
        shape = replace(first, shape=other(scenes.SHAPES, first.shape, rng))
        size = replace(first, size="small" if first.size == "large" else "large")
        ground = other(tuple(COLOURS), caption.background, rng)
        for changed, attribute in (
            (replace(caption, things=(shape, *rest)), "shape"),
            (replace(caption, things=(size, *rest)), "size"),
            (replace(caption, background=ground), "background"),
        ):
            assert wrong_in(judge(changed, image)) == {attribute}, str(caption)


def test_a_wrong_colour_takes_the_thing_with_it() -> None:
    rng = random.Random(5)
    for scene in truth(30):
        used = {scene.caption.background, *(t.colour for t in scene.caption.things)}
        first, *rest = scene.caption.things
        absent = replace(first, colour=rng.choice([c for c in COLOURS if c not in used]))
        said = replace(scene.caption, things=(absent, *rest))
        report = judge(said, scenes.draw(scene))
        assert [found.colour for found in report.things] == [False, *[True] * len(rest)]
        assert (report.things[0].shape, report.things[0].size) == (False, False)
        assert not rest or not report.relations[0]
        assert (report.background, report.strangers) == (True, 1)


@pytest.mark.parametrize("said", scenes.RELATIONS)
def test_another_relation_is_wrong(said: str) -> None:
    for scene in truth(45):
        if scene.caption.relations:
            wrong = replace(scene.caption, relations=(said,) * len(scene.caption.relations))
            report = judge(wrong, scenes.draw(scene))
            assert report.relations == tuple(said == true for true in scene.caption.relations)


@pytest.mark.parametrize(
    ("relation", "aside", "down"), [("left of", 2, 0), ("left of", 6, 1), ("above", 0, 3)]
)
def test_off_the_middle_of_what_holds_it_is_not_beside_it(
    relation: str, aside: int, down: int
) -> None:
    things = (Thing("star", "red", "small"), Thing("circle", "blue", "large"))
    caption = Caption(things, (relation,), "white")
    scene = Scene(caption, ("small", "large"), ((32 - aside, 32 - down), (32, 32)))
    assert wrong_in(judge(caption, scenes.draw(scene))) == {"relation"}


def test_a_thing_not_said_is_a_stranger() -> None:
    for scene in truth(30):
        if len(scene.sizes) > 1:
            first = replace(scene.caption, things=scene.caption.things[:1], relations=())
            report = judge(first, scenes.draw(scene))
            assert (report.accuracy, report.strangers) == (1.0, len(scene.sizes) - 1)
            assert not report.all_right


# ---------------------------------------------------------------------------- wholly wrong


def test_an_empty_picture_has_only_its_background() -> None:
    for scene in truth(9):
        report = judge(scene.caption, plain(scene.caption.background))
        assert all(share == (name == "background") for name, share in report.shares().items())


@pytest.mark.parametrize("grain", [1, 2, 4])
def test_noise_has_no_background_and_no_shapes(grain: int) -> None:
    rng = np.random.default_rng(grain)
    for scene in truth(9):
        pixels = rng.integers(0, 256, (64 // grain, 64 // grain, 3), dtype=np.uint8)
        noise = Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST)
        report = judge(scene.caption, noise)
        assert not report.background
        assert not any(found.shape for found in report.things)


def test_grey_is_no_ground() -> None:
    assert see(Image.new("RGB", (64, 64), (128, 128, 128)))[0] is None


def test_a_shapeless_blob_has_its_colour_but_no_shape() -> None:
    image = plain("white")
    image.paste(COLOURS["blue"], (12, 29, 50, 34))
    report = judge(one("square", "blue", None, "white"), image)
    assert (report.things[0].colour, report.things[0].shape) == (True, False)


# ---------------------------------------------------------------------------- as models draw


def test_two_things_of_one_colour_that_touch_are_two() -> None:
    image = plain("red")
    image.paste(COLOURS["white"], (20, 20, 70, 44))
    put(image, "star", "purple", 7, 32, 32)
    caption = two(
        Thing("star", "purple", "small"), "inside", Thing("square", "white", "large"), "red"
    )
    assert judge(caption, image).accuracy == 1.0
    assert [seen.shape for seen in see(image)[1]].count("square") == 2


def test_a_thing_of_two_colours_has_that_of_the_larger_part() -> None:
    image = plain("white")
    put(image, "ring", "orange", 14, 32, 32)
    mask = scenes.silhouette("ring", 14, (0, 0), 64)
    mask.paste(0, (24, 0, 64, 64))
    image.paste(COLOURS["yellow"], mask=mask)
    assert judge(one("ring", "orange", "large", "white"), image).accuracy == 1.0
    assert not judge(one("ring", "yellow", "large", "white"), image).things[0].shape


def test_a_hole_is_no_thing() -> None:
    image = plain("red")
    put(image, "circle", "yellow", 14, 32, 32)
    put(image, "star", "red", 7, 32, 32)
    assert judge(one("circle", "yellow", "large", "red"), image).all_right


def test_a_faint_blurred_thing_is_seen() -> None:
    """Yellow and white lie near each other, and so do purple and blue."""
    for colour, ground in (("yellow", "white"), ("purple", "blue"), ("green", "black")):
        image = plain(ground)
        put(image, "cross", colour, 7, 48, 16)
        image = soften(image, np.random.default_rng(0))
        assert judge(one("cross", colour, "small", ground), image).all_right, (colour, ground)


def test_it_shares_no_code_with_the_first_judge() -> None:
    used = {getattr(value, "__module__", None) for value in vars(redraw).values()}
    assert "stage_models.shapes.verify" not in used
    assert not hasattr(redraw, "verify")
