"""Pictures by plan, scores and their intervals, the table and the model card, on a tiny family."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from PIL import Image

from diffusion_edge.engine.run import run_last_span, run_span
from diffusion_edge.families.card import FamilyCard, load_card
from diffusion_edge.packet import new_packet, read, write
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.types import Plan
from stage_models.shapes import evaluate, gallery, quality, scenes
from stage_models.shapes.evaluate import Score
from stage_models.shapes.gallery import Batch
from stage_models.shapes.verify import verify

PLANS = tuple(
    map(Plan.parse, ("cloud:4", "device:4", "cloud:1,device:3", "cloud:1,edge:2,cloud:1"))
)


@pytest.fixture(scope="module")
def card(tiny_family: Path) -> FamilyCard:
    return load_card(tiny_family)


def batch(card: FamilyCard, count: int = 2) -> Batch:
    said = gallery.captions(count, 3, (1, 2))
    stages = gallery.load_stages(card, PLANS)
    return Batch(stages, [gallery.request(card, str(s), i, 4) for i, s in enumerate(said)])


def lone_picture(card: FamilyCard, asked: Batch, index: int, plan: Plan) -> Image.Image:
    """The same image made alone, span by span, through packet bytes."""
    request = asked.requests[index]
    space = asked.stages["cloud"].latent_space
    packet = new_packet(request, plan, 0, space)
    for span in plan.spans[:-1]:
        packet = read(write(run_span(asked.stages[span.stage], packet, span)), space)
    picture = run_last_span(asked.stages[plan.spans[-1].stage], packet)[1]
    return Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_batch_makes_the_pictures_of_run_span(card: FamilyCard, plan: Plan) -> None:
    asked = batch(card)
    for other in PLANS:
        asked.pictures(other)
    for index, picture in enumerate(asked.pictures(plan)):
        alone = lone_picture(card, asked, index, plan)
        worst = max(abs(a - b) for a, b in zip(picture.tobytes(), alone.tobytes(), strict=True))
        assert worst <= 1


def test_plans_differ(card: FamilyCard) -> None:
    asked = batch(card)
    assert len({asked.pictures(plan)[0].tobytes() for plan in PLANS}) == len(PLANS)


def test_captions_take_turns_and_are_held_out() -> None:
    said = gallery.captions(40, 1, (1, 2))
    assert [len(c.things) for c in said] == [1, 2] * 20
    assert all({(t.colour, t.shape) for t in c.things} & scenes.HELD_OUT for c in said)
    assert said == gallery.captions(40, 1, (1, 2))
    seen = gallery.captions(40, 1, (3,), held_out=False)
    assert not any({(t.colour, t.shape) for t in c.things} & scenes.HELD_OUT for c in seen)


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    [
        (0.5, 100, 0.4038, 0.5962),
        (0.9, 50, 0.7864, 0.9565),
        (1.0, 20, 0.8389, 1.0),
        (0, 20, 0, 0.1611),
    ],
)
def test_intervals_are_wilsons(share: float, n: int, low: float, high: float) -> None:
    assert Score(share, n).interval == pytest.approx((low, high), abs=1e-4)


def test_the_summary_counts_each_attribute_where_the_caption_has_it() -> None:
    one = scenes.parse("a red circle on a white background")
    two = scenes.parse("a small blue star left of a large red ring on a white background")
    assert one
    assert two
    white = Image.new("RGB", (64, 64), scenes.COLOURS["white"])
    scores = evaluate.summary([verify(one, white), verify(two, white)])
    assert scores["background"] == Score(1.0, 2)
    assert scores["shape"] == Score(0.0, 2)
    assert scores["relation"] == Score(0.0, 1)
    assert scores["accuracy"].value == pytest.approx((1 / 3 + 1 / 5) / 2)
    assert scores["all right"] == Score(0.0, 2)


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
    assert set(data["plans"]) == {"device:2", "edge:1,device:1"}
    assert data["captions"] == data["plans"]["device:2"]["accuracy"]["n"] == 4


def test_the_command_says_what_is_wrong(
    tiny_family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--plan", "moon:3", "--family", str(tiny_family)], "no stage model 'moon'"),
        (["--family", str(tmp_path)], "no family card"),
        (["--captions", "0"], "at least 2"),
    ):
        with pytest.raises(SystemExit):
            evaluate.main(arguments)
        assert message in capsys.readouterr().err


def test_a_grid_has_a_cell_for_every_caption_and_plan(tiny_family: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    plans = ["--plan", "device:2", "--plan", "cloud:1,device:1"]
    evaluate.main(["--family", str(tiny_family), "--captions", "3", "--grid", str(out), *plans])
    with Image.open(out) as grid:
        assert grid.size == (210 + 2 * 134, 44 + 3 * 134)


def test_the_card_is_written_between_its_marks(tiny_family: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_family, tmp_path / "family")
    page = folder / "README.md"
    page.write_text("before\n" + "\nold\n".join(evaluate.MARKS) + "\nafter\n")
    card = load_card(folder)
    for _ in range(2):
        evaluate.write_card(card, 4, 1)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("| `cloud:20` |") == text.count("`cloud:20`, three things") == 1
    assert "| none, drawn scenes | " in text
    assert (folder / "examples.png").exists()
    with pytest.raises(ValueError, match="lacks the marks"):
        evaluate.between("no marks", "text")


# ---------------------------------------------------------------------------- quality table


@pytest.fixture
def folder(tiny_family: Path, tmp_path: Path) -> Path:
    """The tiny family with 4 steps by default."""
    copy = shutil.copytree(tiny_family, tmp_path / "family")
    path = copy / "family.yaml"
    path.write_text(path.read_text().replace("steps: 10", "steps: 4"))
    return copy


def test_every_order_of_up_to_three_stages_has_its_rows() -> None:
    found = list(quality.rows(("device", "edge", "cloud")))
    assert len(found) == 3 + 6 * 3 + 6 * 3
    assert (("cloud", "edge"), (0.5, 0.5)) in found
    assert (("edge", "cloud"), (0.75, 0.25)) in found
    assert all(math.isclose(sum(shares), 1) for _, shares in found)
    assert len({order for order, _ in found if len(order) == 3}) == 6


def test_a_share_must_be_whole_steps() -> None:
    row = (("cloud", "edge"), (0.25, 0.75))
    assert str(quality.plan_of(row, 20)) == "cloud:5,edge:15"
    with pytest.raises(ValueError, match="multiple of 4"):
        quality.plan_of(row, 10)


def test_the_table_is_what_the_router_reads_and_an_interrupted_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "BATCH", 2)
    quality.main(["--family", str(folder), "--captions", "4"])
    whole = (folder / "quality.json").read_text()
    table = QualityTable.read(folder / "quality.json")
    assert len(table.rows) == 39
    assert {row.n for row in table.rows} == {4}
    assert table.relative(Plan.parse("cloud:4")) == 1.0
    assert not (folder / "quality.part.json").exists()

    judged: list[int] = []

    def stops_after_a_batch(*arguments: object) -> object:
        judged.append(1)
        if len(judged) > 2 * 39:
            raise KeyboardInterrupt
        return verify(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(quality, "verify", stops_after_a_batch)
    with pytest.raises(KeyboardInterrupt):
        quality.main(["--family", str(folder), "--captions", "4"])
    assert (folder / "quality.part.json").exists()
    judged.clear()
    quality.main(["--family", str(folder), "--captions", "4"])
    assert len(judged) == 2 * 39
    assert (folder / "quality.json").read_text() == whole


def test_what_was_measured_on_other_weights_is_not_taken_over(folder: Path) -> None:
    kept = folder / "quality.part.json"
    kept.write_text(json.dumps({"settings": "others", "found": {"cloud:4": [1.0] * 4}}))
    found = quality.measure(load_card(folder), 2, 1, kept)
    assert {len(each) for each in found.values()} == {2}
