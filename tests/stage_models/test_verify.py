"""Truth is judged right, with and without blur and noise; every kind of wrong is judged wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image

from stage_models.shapes import scenes
from stage_models.shapes.scenes import Caption, Scene, Thing
from stage_models.shapes.verify import Report, label, main, see, settle, soften, verify

MIRRORED = {"left of": (-1, 1), "above": (1, -1)}


@cache
def truth(count: int) -> tuple[Scene, ...]:
    """Scenes of one to three things, every other one held out of training, all sizes said."""
    rng = random.Random(11)
    drawn = (scenes.sample(rng, 1 + i % 3, held_out=i % 2 == 0) for i in range(count))
    return tuple(map(scenes.fully_said, drawn))


def right(report: Report, *, but: tuple[str, ...] = ()) -> bool:
    """Everything is right, and nothing of `but` is wholly so."""
    return all((share < 1) == (name in but) for name, share in report.shares().items())


def change_thing(caption: Caption, index: int, thing: Thing) -> Caption:
    return replace(caption, things=(*caption.things[:index], thing, *caption.things[index + 1 :]))


# ---------------------------------------------------------------------------- truth


def test_truth_is_right() -> None:
    wrong = [str(s.caption) for s in truth(240) if not verify(s.caption, scenes.draw(s)).all_right]
    assert not wrong


def test_softened_truth_is_right() -> None:
    rng = np.random.default_rng(3)
    judged = [verify(s.caption, soften(scenes.draw(s), rng)).all_right for s in truth(150)]
    assert np.mean(judged) >= 0.97


def test_the_command_counts(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--scenes", "6"])
    assert capsys.readouterr().out.startswith("of 6 drawn scenes 6 are judged all right, ")


@pytest.mark.parametrize("size", [96, 128])
def test_truth_of_another_size_is_right(size: int) -> None:
    assert all(verify(s.caption, scenes.draw(s, size)).all_right for s in truth(45))


def test_every_held_thing_leaves_its_container_its_shape() -> None:
    for container in scenes.CONTAINERS:
        for shape in scenes.SHAPES:
            caption = Caption(
                (Thing(shape, "yellow", "small"), Thing(container, "red", "large")),
                ("inside",),
                "orange",
            )
            scene = Scene(caption, ("small", "large"), ((32, 40), (32, 40)))
            assert verify(caption, scenes.draw(scene)).all_right, str(caption)


@pytest.mark.parametrize("container", scenes.CONTAINERS)
def test_a_held_ring_hides_as_much_of_its_container_as_a_circle(container: str) -> None:
    """Its hole shows the ground, which says nothing of what holds it."""
    seen = []
    for shape in ("ring", "circle"):
        things = (Thing(shape, "yellow", "small"), Thing(container, "red", "large"))
        caption = Caption(things, ("inside",), "white")
        image = scenes.draw(Scene(caption, ("small", "large"), ((32, 32), (32, 32))))
        seen.append(next(blob for blob in see(image)[1] if blob.colour == "red"))
    assert seen[0].fit == pytest.approx(seen[1].fit, abs=0.01)
    assert (seen[0].shape, seen[0].radius) == (seen[1].shape, seen[1].radius)


def test_things_off_the_grid_and_of_odd_radius_are_right() -> None:
    rng = random.Random(2)
    for shape in scenes.SHAPES:
        for radius, size in ((6.0, "small"), (8.5, "small"), (12.0, "large"), (16.0, "large")):
            offset = (rng.uniform(-10, 10), rng.uniform(-10, 10))
            mask = scenes.silhouette(shape, radius, offset, 64)
            image = Image.new("RGB", (64, 64), scenes.COLOURS["green"])
            image.paste(scenes.COLOURS["purple"], mask=mask)
            caption = Caption((Thing(shape, "purple", size),), (), "green")
            assert verify(caption, image).all_right, (shape, radius, offset)


def test_unsaid_sizes_and_single_things_have_no_such_attribute() -> None:
    caption = Caption((Thing("star", "red"),), (), "white")
    report = verify(caption, scenes.draw(Scene(caption, ("small",), ((24, 24),))))
    assert report.shares() == {"background": 1.0, "colour": 1.0, "shape": 1.0}


def test_two_things_of_one_colour_are_told_apart_by_shape() -> None:
    things = (Thing("star", "red", "large"), Thing("ring", "red", "small"))
    caption = Caption(things, ("left of",), "white")
    image = scenes.draw(Scene(caption, ("large", "small"), ((16, 32), (48, 32))))
    assert verify(caption, image).all_right
    swapped = replace(caption, things=things[::-1])
    assert right(verify(swapped, image), but=("relation",))


# ---------------------------------------------------------------------------- wrong in one point


def with_another_colour(scene: Scene, rng: random.Random) -> Caption:
    index = rng.randrange(len(scene.sizes))
    used = {scene.caption.background, *(t.colour for t in scene.caption.things)}
    colour = rng.choice([c for c in scenes.COLOURS if c not in used])
    return change_thing(scene.caption, index, replace(scene.caption.things[index], colour=colour))


def with_another_shape(scene: Scene, rng: random.Random) -> Caption:
    index = rng.randrange(len(scene.sizes))
    thing = scene.caption.things[index]
    shape = rng.choice([s for s in scenes.SHAPES if s != thing.shape])
    return change_thing(scene.caption, index, replace(thing, shape=shape))


def with_another_size(scene: Scene, rng: random.Random) -> Caption:
    index = rng.randrange(len(scene.sizes))
    thing = scene.caption.things[index]
    size = "small" if thing.size == "large" else "large"
    return change_thing(scene.caption, index, replace(thing, size=size))


def with_another_background(scene: Scene, rng: random.Random) -> Caption:
    others = [c for c in scenes.COLOURS if c != scene.caption.background]
    return replace(scene.caption, background=rng.choice(others))


@pytest.mark.parametrize(
    ("change", "attributes"),
    [
        (with_another_shape, ("shape",)),
        (with_another_size, ("size",)),
        (with_another_background, ("background",)),
    ],
)
@pytest.mark.parametrize("softened", [False, True])
def test_one_wrong_attribute_is_wrong_and_no_other(
    change: Callable[[Scene, random.Random], Caption], attributes: tuple[str, ...], softened: bool
) -> None:
    rng, noise = random.Random(4), np.random.default_rng(4)
    judged = []
    for scene in truth(60):
        image = soften(scenes.draw(scene), noise) if softened else scenes.draw(scene)
        report = verify(change(scene, rng), image)
        assert not report.all_right
        judged.append(right(report, but=attributes))
    assert np.mean(judged) >= (0.97 if softened else 1.0)


def test_a_wrong_colour_is_wrong_and_takes_the_thing_with_it() -> None:
    rng = random.Random(5)
    for scene in truth(75):
        report = verify(with_another_colour(scene, rng), scenes.draw(scene))
        lost = [f for f in report.things if not f.colour]
        assert len(lost) == 1
        assert not lost[0].shape
        assert not lost[0].size
        assert not lost[0].blob
        assert report.background
        assert report.strangers == 1
        assert not all(report.relations) or len(report.things) == 1


def test_swapped_colours_are_wrong() -> None:
    for scene in truth(75):
        things = scene.caption.things
        if len(things) < 2 or (things[0].shape, things[0].size) == (
            things[1].shape,
            things[1].size,
        ):
            continue
        colours = [things[1].colour, things[0].colour, *(t.colour for t in things[2:])]
        swapped = tuple(
            replace(t, colour=colour) for t, colour in zip(things, colours, strict=True)
        )
        report = verify(replace(scene.caption, things=swapped), scenes.draw(scene))
        assert report.shares()["colour"] == 1.0
        assert report.shares()["shape"] < 1 or report.shares()["size"] < 1
        assert report.shares()["relation"] < 1


def test_mirrored_pictures_have_wrong_relations_only() -> None:
    checked = 0
    for scene in truth(240):
        for relation, (sx, sy) in MIRRORED.items():
            if set(scene.caption.relations) == {relation}:
                centres = tuple(
                    (x if sx > 0 else 64 - x, y if sy > 0 else 64 - y) for x, y in scene.centres
                )
                report = verify(scene.caption, scenes.draw(replace(scene, centres=centres)))
                assert right(report, but=("relation",))
                assert not any(report.relations)
                checked += 1
    assert checked >= 30


@pytest.mark.parametrize("said", scenes.RELATIONS)
def test_another_relation_is_wrong(said: str) -> None:
    for scene in truth(75):
        wrong = tuple(said for _ in scene.caption.relations)
        report = verify(replace(scene.caption, relations=wrong), scenes.draw(scene))
        assert report.relations == tuple(said == true for true in scene.caption.relations)


def test_side_by_side_in_the_wrong_direction_is_wrong() -> None:
    things = (Thing("star", "red", "small"), Thing("ring", "blue", "small"))
    caption = Caption(things, ("left of",), "white")
    above = verify(caption, scenes.draw(Scene(caption, ("small",) * 2, ((24, 16), (32, 48)))))
    assert not above.relations[0]


@pytest.mark.parametrize(
    ("relation", "aside", "down"),
    [("left of", 1, 0), ("left of", 6, 2), ("above", 0, 1), ("above", 1, 5)],
)
def test_off_the_middle_of_what_holds_it_is_not_beside_it(
    relation: str, aside: int, down: int
) -> None:
    things = (Thing("star", "red", "small"), Thing("ring", "blue", "large"))
    caption = Caption(things, (relation,), "white")
    scene = Scene(caption, ("small", "large"), ((32 - aside, 32 - down), (32, 32)))
    assert right(verify(caption, scenes.draw(scene)), but=("relation",))


# ---------------------------------------------------------------------------- wholly wrong


def test_a_missing_thing_is_wrong() -> None:
    for scene in truth(75):
        if len(scene.sizes) == 1:
            continue
        for gone in range(len(scene.sizes)):
            kept = [i for i in range(len(scene.sizes)) if i != gone]
            things = tuple(scene.caption.things[i] for i in kept)
            rest = Scene(
                replace(scene.caption, things=things),
                tuple(scene.sizes[i] for i in kept),
                tuple(scene.centres[i] for i in kept),
            )
            report = verify(scene.caption, scenes.draw(rest))
            assert [f.blob is None for f in report.things] == [
                i == gone for i in range(len(scene.sizes))
            ]
            assert not report.all_right
            assert report.accuracy < 0.9


def test_an_extra_thing_is_a_stranger() -> None:
    for scene in truth(60):
        if len(scene.sizes) == 1:
            continue
        first = replace(scene.caption, things=scene.caption.things[:1], relations=())
        report = verify(first, scenes.draw(scene))
        assert report.accuracy == 1.0
        assert report.strangers == len(scene.sizes) - 1
        assert not report.all_right


def test_an_empty_picture_has_only_its_background() -> None:
    for scene in truth(60):
        plain = Image.new("RGB", (64, 64), scenes.COLOURS[scene.caption.background])
        report = verify(scene.caption, plain)
        assert all(share == (name == "background") for name, share in report.shares().items())


def test_a_picture_of_another_caption_is_wrong() -> None:
    pictures = [scenes.draw(scene) for scene in truth(75)]
    for scene, other in zip(truth(75), pictures[1:], strict=False):
        assert not verify(scene.caption, other).all_right


@pytest.mark.parametrize("grain", [1, 2, 4, 8])
def test_noise_has_no_background_and_no_known_shapes(grain: int) -> None:
    rng = np.random.default_rng(grain)
    shares = []
    for scene in truth(30):
        pixels = rng.integers(0, 256, (64 // grain, 64 // grain, 3), dtype=np.uint8)
        noise = Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST)
        report = verify(scene.caption, noise)
        assert not report.background
        shares.append(report.shares()["shape"])
        assert not report.all_right
    assert np.mean(shares) < (0.2 if grain == 8 else 0.02)


def test_grey_is_nothing() -> None:
    assert see(Image.new("RGB", (64, 64), (128, 128, 128))) == (None, [])


def test_a_shapeless_blob_has_its_colour_but_no_shape() -> None:
    image = Image.new("RGB", (64, 64), scenes.COLOURS["white"])
    image.paste(scenes.COLOURS["blue"], (12, 24, 48, 33))
    caption = Caption((Thing("square", "blue", "large"),), (), "white")
    report = verify(caption, image)
    assert report.things[0].colour
    assert not report.things[0].shape
    assert see(image)[1][0].shape is None


def test_a_scratch_or_a_speck_is_no_thing() -> None:
    image = Image.new("RGB", (64, 64), scenes.COLOURS["white"])
    image.paste(scenes.COLOURS["blue"], (4, 30, 60, 31))
    image.paste(scenes.COLOURS["red"], (20, 40, 25, 45))
    assert see(image) == ("white", [])


def test_the_blend_at_a_border_is_no_third_colour() -> None:
    """Red on yellow has an orange border; it belongs to the red or to the yellow."""
    caption = Caption((Thing("circle", "red", "large"),), (), "yellow")
    image = scenes.draw(Scene(caption, ("large",), ((32, 32),)))
    pixels = np.asarray(image, dtype=np.float32)
    orange = list(scenes.COLOURS).index("orange")
    assert (label(pixels) == orange).sum() > 20
    assert (label(settle(pixels)) == orange).sum() < 5
    assert len(see(image)[1]) == 1


def test_the_best_of_several_blobs_is_taken() -> None:
    caption = Caption((Thing("star", "red", "small"),), (), "white")
    image = Image.new("RGB", (64, 64), scenes.COLOURS["white"])
    image.paste(scenes.COLOURS["red"], mask=scenes.silhouette("circle", 14.0, (-14.0, 0.0), 64))
    image.paste(scenes.COLOURS["red"], mask=scenes.silhouette("star", 7.0, (16.0, 0.0), 64))
    report = verify(caption, image)
    assert report.accuracy == 1.0
    assert report.strangers == 1
