"""What codecs lose, measured with the tiny family; only the way there is tested, no figure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from diffusion_edge.commands.app import app
from diffusion_edge.engine.run import run_last_span, run_span
from diffusion_edge.families.base import Family
from diffusion_edge.families.card import load_card
from diffusion_edge.families.load import load_family
from diffusion_edge.packet import new_packet, read, write
from diffusion_edge.plan import Plan
from diffusion_edge.profile.codecs import MARKS, interval_of_change, losses
from diffusion_edge.profile.metric import Metric, load_metric
from diffusion_edge.request import ImageRequest, Picture
from diffusion_edge.routing.codecs import codec_table

PROMPTS = ("a red circle on a white background", "a blue square on a black background", "a circle")


@pytest.fixture(scope="module")
def family(tiny_family: Path) -> Family:
    return load_family(load_card(tiny_family), "cloud")


def requests(tiny_family: Path, solver: str = "dpmpp-2m") -> list[ImageRequest]:
    card = load_card(tiny_family)
    return [
        replace(card.request(prompt, seed), solver=solver, steps=6)
        for seed, prompt in enumerate(PROMPTS)
    ]


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "euler-ancestral"])
def test_the_loss_is_that_of_a_hop_in_the_codec(
    tiny_family: Path, family: Family, solver: str
) -> None:
    """Against `run_span`, the packet's bytes and `run_last_span`, image by image."""
    asked = requests(tiny_family, solver)
    found = {
        (at, codec): each
        for at, codec, each in losses(family, asked, (2, 5), load_metric("distance"))
    }
    assert list(found) == [(2, "bf16"), (2, "int8"), (5, "bf16"), (5, "int8")]
    for (at, codec), each in found.items():
        for one, loss in zip(asked, each, strict=True):
            split = Plan.of((("cloud", at), ("cloud", 6 - at)))
            start = new_packet(one, replace(split, codecs=(codec,)), 0, family.latent_space)
            data = write(run_span(family, start, start.plan.spans[0]))
            final, _ = run_last_span(family, read(data, family.latent_space))
            whole = new_packet(one, Plan.of((("cloud", 6),)), 0, family.latent_space)
            exact, _ = run_last_span(family, whole)
            error = float(torch.linalg.vector_norm(final - exact) / torch.linalg.vector_norm(exact))
            assert loss.error == pytest.approx(error, rel=0.02, abs=2e-6)  # batches round alike
            assert loss.error > 1e-5
            assert loss.packet_bytes == len(data) < loss.exact_bytes


def test_the_change_is_in_the_metric(tiny_family: Path, family: Family) -> None:
    seen: list[tuple[str, Picture, Picture]] = []

    def score(prompt: str, picture: Picture, reference: Picture) -> float:
        seen.append((prompt, picture, reference))
        return 0.75 if picture == reference else 0.25

    asked = requests(tiny_family)
    found = list(losses(family, asked, (5,), Metric("mine", score)))
    assert all(loss.change == -0.5 for _, _, each in found for loss in each)
    assert [prompt for prompt, _, _ in seen] == [*PROMPTS] * 3
    best = [reference for _, _, reference in seen[:3]]
    assert [reference for _, _, reference in seen] == best * 3


@pytest.mark.parametrize(
    ("changes", "inside", "outside"),
    [
        ([0.0] * 64, (0.0, 0.02), (-0.1, 0.1)),
        ([0.0] * 63 + [-1.0], (0.0, -0.05), (-0.1, 0.05)),
        ([-0.5] * 64, (-0.5,), (-0.6, -0.4)),
        ([1.0] * 4, (1.0,), (-0.5,)),
    ],
)
def test_the_interval_of_a_change(
    changes: list[float], inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    low, high = interval_of_change(changes)
    assert -1 <= low < high <= 1
    assert all(low <= value <= high for value in inside)
    assert not any(low <= value <= high for value in outside)


def test_the_interval_by_hand() -> None:
    """Ten pairs, three for the worse and one for the better: Agresti and Min's by its formula."""
    low, high = interval_of_change([-1.0] * 3 + [1.0] + [0.0] * 6)
    middle, spread = -2 / 12, 1.959964 * ((3.5 + 1.5 - 2**2 / 12) ** 0.5) / 12
    assert (low, high) == pytest.approx((middle - spread, middle + spread))


# ---------------------------------------------------------------------------- the command


def run(family: Path, folder: Path, *more: str) -> Result:
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    where = ("--out", folder / "codecs.json", "--page", folder / "codecs.md")
    arguments = (family, *where, "--prompts", folder / "prompts.txt", *more)
    return CliRunner().invoke(app, ["codecs", *(str(each) for each in arguments)])


def test_the_command_writes_the_table_and_the_page(tiny_family: Path, tmp_path: Path) -> None:
    page = tmp_path / "codecs.md"
    page.write_text(f"# Before\n\n{MARKS[0]}\nold\n{MARKS[1]}\n\nafter\n")
    result = run(tiny_family, tmp_path, "--solver", "ddim", "--solver", "pndm", "--steps", "6")
    assert result.exit_code == 0, result.output
    table = codec_table(tmp_path)
    assert table is not None
    assert (table.family, table.model, table.captions) == ("tiny", "cloud", 3)
    places = [(row.solver, row.steps, row.handoff) for row in table.rows if row.codec == "int8"]
    assert places == [("ddim", 6, k) for k in range(1, 6)] + [("pndm", 7, k) for k in range(1, 7)]
    for row in table.rows:
        assert 0 < row.error <= row.worst
        assert row.n == 3
    text = page.read_text()
    assert text.startswith("# Before\n\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    assert "diffusion-edge codecs tiny --captions 3 --steps 6 --seed 1000 --solver ddim" in text
    assert text.count("| `pndm` |") == 6
    assert not list(tmp_path.glob("*.jsonl"))


def test_an_interrupted_run_goes_on(
    tiny_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_edge.profile import codecs as module

    asked = ("--solver", "ddim", "--solver", "euler", "--steps", "4", "--hand-off", "2")
    batches: list[str] = []
    original = module.losses

    def counted(family: Family, *rest: object):  # noqa: ANN202
        batches.append(rest[0][0].solver)  # type: ignore[index]  # trajectories
        if len(batches) == 2:
            raise KeyboardInterrupt
        return original(family, *rest)  # type: ignore[arg-type]  # as given

    monkeypatch.setattr(module, "losses", counted)
    stopped = run(tiny_family, tmp_path, *asked)
    assert stopped.exit_code == 130
    assert "the same command goes on" in stopped.stderr
    assert run(tiny_family, tmp_path, *asked).exit_code == 0
    assert batches == ["ddim", "euler", "euler"]
    rows = json.loads((tmp_path / "codecs.json").read_text())["rows"]
    assert [row["solver"] for row in rows] == ["ddim", "ddim", "euler", "euler"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--steps", "4", "--hand-off", "4"), "has no hand-off before step 4 of 4"),
        (("--solver", "heun"), "'heun' is not known"),
        (("--page", "nowhere/codecs.md"), "there is no folder nowhere"),
        (("--captions", "9"), "has 3 prompts, not 9"),
    ],
)
def test_wrong_arguments_end_with_a_sentence(
    tiny_family: Path, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    result = run(tiny_family, tmp_path, *arguments)
    assert result.exit_code == 1
    assert told in result.stderr


def test_a_page_without_the_marks_is_told_before_the_work(
    tiny_family: Path, tmp_path: Path
) -> None:
    (tmp_path / "codecs.md").write_text("# Mine\n")
    result = run(tiny_family, tmp_path)
    assert result.exit_code == 1
    assert "lacks the lines" in result.stderr
    assert not list(tmp_path.glob("*.json*"))
