"""The metric that the family's card names is there, and is the verifier's accuracy."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from diffusion_edge.errors import InvalidRequest
from diffusion_edge.families.card import load_card
from diffusion_edge.profile.metric import load_metric
from diffusion_edge.request import Picture
from stage_models.shapes import scenes

CARD = load_card(Path(__file__).parents[2] / "stage_models" / "shapes")
METRIC = load_metric(CARD.metric)


def picture(scene: scenes.Scene) -> Picture:
    image = scenes.draw(scene)
    return Picture(*image.size, image.tobytes())


def test_prompts_are_held_out_captions_of_one_and_two_things() -> None:
    assert METRIC.prompts
    said = [scenes.parse(prompt) for prompt in METRIC.prompts(20, 3)]
    assert [len(caption.things) for caption in said if caption] == [1, 2] * 10
    for caption in said:
        assert caption
        assert {(t.colour, t.shape) for t in caption.things} & scenes.HELD_OUT
    assert METRIC.prompts(10, 3) == METRIC.prompts(20, 3)[:10]


def test_scores_are_the_verifiers() -> None:
    rng = random.Random(0)
    scene, other = scenes.sample(rng, 2), scenes.sample(rng, 1)
    assert METRIC.score(str(scene.caption), picture(scene), picture(other)) == 1.0
    assert METRIC.score(str(scene.caption), picture(other), picture(scene)) < 0.5


def test_a_prompt_outside_of_the_grammar_is_told() -> None:
    with pytest.raises(InvalidRequest, match="'a cat' is not a sentence"):
        METRIC.score("a cat", *[picture(scenes.sample(random.Random(0), 1))] * 2)
