"""What evaluate counts, prints, writes into the model card, and takes up again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_edge.errors import InvalidRequest
from diffusion_edge.families.card import load_card
from diffusion_edge.plan import Plan
from stage_models.shapes import evaluate, frechet, gallery, scenes
from stage_models.shapes.evaluate import Judged, Kind, Score, Summary
from stage_models.shapes.scenes import Caption
from stage_models.shapes.verify import Report, verify


def test_captions_take_turns_and_are_held_out() -> None:
    said = Kind(40, 1).captions()
    assert [len(c.things) for c in said] == [1, 2] * 20
    assert all({(t.colour, t.shape) for t in c.things} & scenes.HELD_OUT for c in said)
    assert said == gallery.captions(40, 1, (1, 2))
    seen = Kind(40, 1, (3,), held_out=False).captions()
    assert {len(c.things) for c in seen} == {3}
    assert not any({(t.colour, t.shape) for t in c.things} & scenes.HELD_OUT for c in seen)


def test_the_summary_counts_each_attribute_where_the_caption_has_it() -> None:
    one = scenes.parse("a red circle on a white background")
    two = scenes.parse("a small blue star left of a large red ring on a white background")
    assert one
    assert two
    judged = Judged()
    judged.add([one, two], [Image.new("RGB", (64, 64), scenes.COLOURS["white"])] * 2)
    summary = Summary.of(judged, np.array(judged.features) + 1.0)
    assert summary.scores["background"] == Score.of([1.0, 1.0])
    assert summary.scores["shape"] == Score.of([0.0, 0.0])
    assert summary.scores["relation"] == Score.of([0.0])
    assert summary.scores["accuracy"].value == pytest.approx((1 / 3 + 1 / 5) / 2)
    assert summary.scores["all right"].n == 2
    assert summary.frechet == pytest.approx(frechet.FEATURES, rel=1e-6)
    assert tuple(summary.scores) == evaluate.COLUMNS


def test_the_command_prints_a_table_or_one_json_line(
    tiny_family: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--family", str(tiny_family), "--plan", "device:2", "--captions", "4"]
    evaluate.main(asked)
    table = capsys.readouterr().out
    assert "device:2" in table
    assert "4 held-out captions" in table
    evaluate.main([*asked, "--plan", "edge:1,device:1", "--guidance", "2", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert data["guidance"] == 2
    rows = data["rows"]
    assert list(rows)[2:] == [evaluate.AUTOENCODER, evaluate.DRAWN]
    assert set(rows) == {"device:2", "edge:1,device:1", evaluate.AUTOENCODER, evaluate.DRAWN}
    assert data["captions"] == rows["device:2"]["accuracy"]["n"] == 4
    assert rows[evaluate.DRAWN]["accuracy"]["value"] == 1.0
    assert rows[evaluate.DRAWN]["frechet"] < rows["device:2"]["frechet"]


def test_an_interrupted_run_goes_on_where_it_stopped(
    tiny_family: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evaluate, "BATCH", 2)
    folder = shutil.copytree(tiny_family, tmp_path / "family")
    asked = ["--family", str(folder), "--captions", "6", "--json"]
    asked += ["--plan", "device:2", "--plan", "edge:2"]
    evaluate.main(asked)
    whole = capsys.readouterr().out
    judged: list[str] = []

    def stops(caption: Caption, image: Image.Image) -> Report:
        if len(judged) == 2 * 2 + 1:
            raise KeyboardInterrupt
        judged.append(str(caption))
        return verify(caption, image)

    monkeypatch.setattr(evaluate, "verify", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(asked)
    assert list(folder.glob("evaluate-*.part.jsonl"))
    monkeypatch.setattr(evaluate, "verify", lambda c, i: (judged.append(""), verify(c, i))[1])
    judged.clear()
    evaluate.main(asked)
    assert len(judged) == 4 * 2 + 6 * 2  # two batches by two plans; all drawn scenes, twice
    assert capsys.readouterr().out == whole
    assert not list(folder.glob("evaluate-*.part.jsonl"))


def test_the_command_says_what_is_wrong(
    tiny_family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--plan", "moon:3", "--family", str(tiny_family), "--captions", "4"], "model 'moon'"),
        (["--family", str(tmp_path)], "no family card"),
        (["--captions", "0"], "at least 4"),
    ):
        with pytest.raises(SystemExit):
            evaluate.main(arguments)
        assert message in capsys.readouterr().err


def test_a_grid_has_a_cell_for_every_caption_and_plan(tiny_family: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    plans = ["--plan", "device:2", "--plan", "cloud:1,device:1", "--plan", "device:3"]
    evaluate.main(["--family", str(tiny_family), "--captions", "4", "--grid", str(out), *plans])
    with Image.open(out) as grid:
        assert grid.size == (210 + 3 * 134, 44 + 4 * 134)


def test_the_card_is_written_between_its_marks(tiny_family: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_family, tmp_path / "family")
    page = folder / "README.md"
    page.write_text("before\n" + "\nold\n".join(evaluate.MARKS) + "\nafter\n")
    card = load_card(folder)
    evaluate.write_card(card, 8, 1)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("| `cloud:20` |") == 4
    assert text.count(f"| {evaluate.DRAWN} |") == 6
    assert text.count("| `device:14,cloud:6` |") == 2
    assert "**4 held-out captions of three things**" in text
    assert "- The verifier judges 24 of 24 drawn scenes all right, and " in text
    assert "- The classifier is right on 24 fresh scenes about background 100.0 %" in text
    assert "- 24 scenes of 2 things: left of " in text
    assert (folder / "examples.png").exists()
    with Image.open(folder / "failures.png") as failures:  # of models that have learned nothing
        assert failures.height == 44 + 8 * 134


def test_a_card_without_marks_is_told_before_the_work(
    tiny_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(evaluate, "judge")
    folder = shutil.copytree(tiny_family, tmp_path / "family")
    (folder / "README.md").write_text("no marks")
    with pytest.raises(InvalidRequest, match="lacks the lines"):
        evaluate.write_card(load_card(folder), 8, 1)


def test_the_card_names_its_plans_rightly() -> None:
    known = {*evaluate.ALONE, *evaluate.HANDED_OFF}
    assert {Plan.parse(plan).steps for plan in known} == {20}
    assert set(evaluate.GRID_PLANS) <= known
    assert set(evaluate.HANDED_OFF_LARGE) <= known


def test_relations_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main(["--relations", "--captions", "2000"])
    for line, things in zip(capsys.readouterr().out.split("; "), (2, 3), strict=True):
        assert line.startswith(f"2000 scenes of {things} things: left of ")
        left, above, inside = [int(word) for word in line.split() if word.isdecimal()][2:]
        assert 37 <= left <= 45
        assert 37 <= above <= 45
        assert 15 <= inside <= 22
