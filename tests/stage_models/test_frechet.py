"""The distance is Fréchet's, the classifier tells scenes apart, and wrong pictures are farther."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import linalg

from stage_models.shapes import frechet, gallery, scenes
from stage_models.shapes.frechet import Classifier, distance, features, labels
from stage_models.shapes.scenes import Caption, Scene, Thing


def a_set(count: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> frechet.Floats:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, 8)) @ np.random.default_rng(9).normal(size=(8, 8))
    return shift + scale * mixed


def test_the_distance_is_the_one_with_the_root_of_the_product() -> None:
    first, second = a_set(50, 1), a_set(70, 2, 0.5, 1.7)
    c, d = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = linalg.sqrtm(c @ d)
    expected = np.square(first.mean(0) - second.mean(0)).sum() + np.trace(c + d - 2 * root.real)
    assert distance(first, second) == pytest.approx(expected)
    assert distance(second, first) == pytest.approx(expected)


def test_the_distance_by_hand() -> None:
    """On a line: the squared differences of mean and of deviation."""
    line = np.array([[-1.0, 0.0], [1.0, 0.0]])
    assert distance(line, 3 * line + [5.0, 0.0]) == pytest.approx(25 + (2 * np.sqrt(2)) ** 2)
    assert distance(line, line) == pytest.approx(0, abs=1e-12)


def test_it_stands_singular_covariances() -> None:
    flat = np.ones((5, 8))
    assert distance(flat, flat + 1) == pytest.approx(8)
    assert np.isfinite(distance(a_set(3, 1), a_set(3, 2)))


def test_labels_say_what_is_there() -> None:
    things = (Thing("star", "blue", "small"), Thing("ring", "red"))
    caption = Caption(things, ("left of",), "white")
    ground, present = labels(Scene(caption, ("small", "large"), ((16, 32), (48, 32))))
    names = [*scenes.COLOURS, *scenes.SHAPES, *scenes.RADII]
    assert list(scenes.COLOURS)[ground] == "white"
    said = {name for name, there in zip(names, present, strict=True) if there}
    assert said == {"blue", "red", "star", "ring", "small", "large"}


def test_the_committed_classifier_is_right_on_fresh_scenes() -> None:
    shares = frechet.right(frechet.classifier(), 300, seed=99)
    assert set(shares) == {"background", *frechet.GROUPS}
    assert min(shares.values()) >= 0.97


def test_an_untrained_one_is_not() -> None:
    assert max(frechet.right(Classifier().eval(), 100, seed=99).values()) < 0.9


def drawn(seed: int, count: int = 200) -> list[Image.Image]:
    return [scenes.draw(scene) for scene in gallery.some_scenes(count, seed, (1, 2))]


def test_drawn_scenes_are_near_each_other_and_anything_else_is_farther() -> None:
    others = features(drawn(1))
    least = distance(features(drawn(2)), others)
    small = [image.resize((24, 24)).resize((64, 64)) for image in drawn(2)]
    three = [scenes.draw(scene) for scene in gallery.some_scenes(200, 3, (3,), held_out=False)]
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in small]
    blurred, more, nothing = (distance(features(each), others) for each in (small, three, noise))
    assert 2 * least < min(blurred, more)
    assert max(blurred, more) < nothing


def test_pictures_of_another_size_are_resized() -> None:
    scene = gallery.some_scenes(1, 5, (2,))[0]
    near = features([scenes.draw(scene, 64), scenes.draw(scene, 128)])
    other = features([scenes.draw(gallery.some_scenes(1, 6, (1,))[0])])
    assert np.abs(near[0] - near[1]).max() < 0.2 * np.abs(near[0] - other[0]).max()


def test_training_learns_and_is_repeatable() -> None:
    first, second = (frechet.train(12, seed=3) for _ in range(2))
    same = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(bool((a == b).all()) for a, b in same)
    assert frechet.WEIGHTS.stat().st_size < 2**20
