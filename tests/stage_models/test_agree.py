"""What is counted where two judges agree and differ, and the sheet of pictures where they do."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image

from stage_models.shapes import scenes
from stage_models.shapes.agree import Agreement, Verdict, agreements, judged, main, sheet, table
from stage_models.shapes.scenes import COLOURS, Caption, Scene, Thing


def a_ring_of_two_colours() -> Image.Image:
    """Red for the most part, with enough orange for a blob of its own."""
    image = Image.new("RGB", (64, 64), COLOURS["black"])
    mask = scenes.silhouette("ring", 14.0, (0, 0), 64)
    image.paste(COLOURS["red"], mask=mask)
    mask.paste(0, (26, 0, 64, 64))
    image.paste(COLOURS["orange"], mask=mask)
    return image


def test_judges_agree_on_drawn_scenes() -> None:
    rng = random.Random(6)
    drawn = [scenes.sample(rng, 1 + i % 3) for i in range(12)]
    pictures = [judged(scene.caption, scenes.draw(scene)) for scene in drawn]
    found = agreements(pictures)
    assert all(one.share == 1.0 for one in found.values())
    assert found["background"].count == 12
    assert found["shape"].count == sum(len(scene.sizes) for scene in drawn)
    assert found["relation"].count == sum(len(scene.sizes) - 1 for scene in drawn)
    said = sum(thing.size is not None for scene in drawn for thing in scene.caption.things)
    assert found["size"].count == said
    assert found["all"].count == sum(
        found[name].count for name in ("background", "colour", "shape", "size", "relation")
    )


def test_verdicts_name_what_they_are_of() -> None:
    things = (Thing("star", "red", "small"), Thing("ring", "blue"))
    caption = Caption(things, ("left of",), "white")
    one = judged(caption, scenes.draw(Scene(caption, ("small", "small"), ((16, 32), (48, 32)))))
    assert [(verdict.attribute, verdict.what) for verdict in one.verdicts] == [
        ("background", "ground"),
        ("colour", "red star"),
        ("shape", "red star"),
        ("size", "red star"),
        ("colour", "blue ring"),
        ("shape", "blue ring"),
        ("relation", "red star left of blue ring"),
    ]
    assert one.agreed


def test_a_difference_is_counted_for_who_says_right() -> None:
    caption = Caption((Thing("ring", "orange"),), (), "black")
    one = judged(caption, a_ring_of_two_colours())
    assert not one.agreed
    found = agreements([one])
    assert found["colour"] == Agreement(count=1, agreed=0, first_alone=1, second_alone=0)
    assert found["background"] == Agreement(count=1, agreed=1, first_alone=0, second_alone=0)
    assert found["all"] == Agreement(count=3, agreed=2, first_alone=1, second_alone=0)
    assert "size" not in found
    assert table(found, "title").row_count == 4


def test_who_is_right_alone() -> None:
    verdicts = [
        Verdict("shape", "red star", first, second)
        for first, second in ((True, True), (False, False), (True, False), (False, True))
    ]
    assert Agreement.of(verdicts) == Agreement(4, 2, first_alone=1, second_alone=1)


def test_the_sheet_has_a_row_for_each_picture() -> None:
    caption = Caption((Thing("ring", "orange"),), (), "black")
    one = judged(caption, a_ring_of_two_colours())
    wide, high = sheet([one]).size
    assert sheet([one] * 3).size == (wide, high + 2 * (high - 8))
    row = sheet([one])
    assert row.getpixel((8 + 96, 8 + 96)) == COLOURS["black"]  # the middle of the ring
    assert row.getpixel((8 + 192 + 8 + 96, 8 + 96)) == COLOURS["black"]


def test_the_command_counts_pictures_of_a_model(
    tiny_family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "differ.png"
    asked = ["--family", str(tiny_family), "--plan", "device:2", "--captions", "3"]
    main([*asked, "--out", str(out)])
    said = capsys.readouterr().out
    assert "3 pictures by device:2" in said
    assert "relation" in said
    assert out.exists() == ("of" in said.rpartition("differ.png:")[2])


@pytest.mark.parametrize(
    ("asked", "told"),
    [(["--captions", "0"], "at least 1"), (["--family", "nowhere"], "nowhere")],
)
def test_wrong_arguments_end_with_a_sentence(
    asked: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(asked)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
