"""Whether what was served is as good as the table promised."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diffusion_edge.api.watch import Watched
from diffusion_edge.errors import ConfigError, InvalidRequest
from diffusion_edge.families.card import load_card
from diffusion_edge.plan import Plan
from diffusion_edge.profile import batch, watch
from diffusion_edge.profile.measure import of_size
from diffusion_edge.profile.metric import Metric
from diffusion_edge.profile.watch import Seen, judge, kept
from diffusion_edge.request import Picture

PROMPTS = ("a red circle", "a red square", "a blue circle", "a blue square")


def score(prompt: str, picture: Picture, reference: Picture) -> float:
    if "unjudged" in prompt:
        raise InvalidRequest("no caption")
    return 1.0 if picture == reference else 0.5


METRIC = Metric("test", score)


def served(folder: Path, family: Path, plan: str, bound: float) -> None:
    """A picture for each prompt, of both sizes, by this plan; and two that nobody can judge."""
    card = load_card(family)
    stages = batch.load_stages(card, [span.stage for span in Plan.parse(plan).spans])
    records = [(prompt, 70 + i, 16 if i % 2 else 32, "w") for i, prompt in enumerate(PROMPTS)]
    records += [("an unjudged red", 90, 16, "w"), ("a red circle", 91, 16, "of other weights")]
    for i, (prompt, seed, size, weights) in enumerate(records):
        asked = [of_size(card, size).request(prompt, seed)]
        ((_, (picture,)),) = batch.pictures(stages, asked, [Plan.parse(plan)])
        watched = Watched(
            prompt=prompt,
            plan=plan,
            seed=seed,
            width=size,
            height=size,
            quality=bound + 0.1,
            quality_bound=bound,
            weights=weights,
        )
        file = folder / f"{i}.json"
        file.write_text(watched.model_dump_json())
        image = Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)
        image.save(file.with_suffix(".png"))


def seen(folder: Path, family: Path) -> Seen:
    told: list[int] = []
    found = judge(load_card(family), METRIC, "w", kept(folder), told.append)
    assert sum(told) == 5
    return found


def test_pictures_of_the_reference_are_as_good_as_itself(tiny_family: Path, tmp_path: Path) -> None:
    """Bit for bit, so they were drawn by the same seeds at the same sizes."""
    served(tmp_path, tiny_family, "cloud:10", bound=0.9)
    found = seen(tmp_path, tiny_family)
    assert (found.quality, found.n, found.passed) == (1.0, 4, 2)
    assert found.is_true
    assert found.bound == pytest.approx(0.9)
    assert found.promised == pytest.approx(1.0)


def test_worse_ones_tell_that_the_table_is_not_true(tiny_family: Path, tmp_path: Path) -> None:
    served(tmp_path, tiny_family, "device:10", bound=0.8)
    found = seen(tmp_path, tiny_family)
    assert found.quality == 0.5
    assert not found.is_true


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="nowhere: there is no such folder"):
        kept(tmp_path / "nowhere")


@pytest.mark.parametrize("data", [None, b"", b"\x89PNG\r\n\x1a\n half"])
def test_a_picture_that_cannot_be_read_is_told(tmp_path: Path, data: bytes | None) -> None:
    watched = Watched(
        prompt="a red circle",
        plan="cloud:10",
        seed=0,
        width=16,
        height=16,
        quality=1.0,
        quality_bound=0.9,
        weights="w",
    )
    (tmp_path / "0.json").write_text(watched.model_dump_json())
    if data is not None:
        (tmp_path / "0.png").write_bytes(data)
    with pytest.raises(ConfigError, match=r"0\.png: "):
        kept(tmp_path)


def test_two_are_needed(tiny_family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "load_stages", lambda card, names: {})
    with pytest.raises(InvalidRequest, match="0 of 0 kept requests can be judged"):
        watch.judge(load_card(tiny_family), METRIC, "w", [], lambda count: None)
