"""`bench proof`, in a small form: from nothing to a page, plots and JSON; and it goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffusion_edge.bench.proof import command, play
from diffusion_edge.commands.app import app
from diffusion_edge.places import REPOSITORY

TINY = replace(command.SHORT, cells=command.SHORT.cells[:1], requests=4, plays=3)
TINY = replace(TINY, seeds=TINY.seeds[:1])


def test_from_nothing_to_a_page_with_plots_and_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "SHORT", TINY)
    few = (REPOSITORY / command.COLLAPSE).read_text().replace("count: 100", "count: 2")
    (tmp_path / "few.yaml").write_text(few)
    monkeypatch.setattr(command, "COLLAPSE", str(tmp_path / "few.yaml"))
    page, ledger = tmp_path / "proof.md", tmp_path / "proof.part.jsonl"
    options = ["--short", "--policy", "cloud-only", "--policy", "oracle", "--workers", "1"]
    asked = ["bench", "proof", *options, "--ledger", str(ledger), "--page", str(page)]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert [point["policy"] for point in told["policies"]] == ["elastic", "cloud-only", "oracle"]
    ours, cloud, oracle = (point["earned"] for point in told["policies"])
    assert oracle >= max(ours, cloud)
    text = page.read_text()
    assert "no figure of it counts" in text
    assert text.count("\n| 3 |") == 1
    plots = {"proof-sdxl-frontier.png", "proof-timeline.png"}
    assert {file.name for file in tmp_path.glob("*.png")} == plots
    assert all(f"]({name})" in text for name in plots)

    monkeypatch.setattr(play, "play", lambda *_: pytest.fail("played again"))
    again = CliRunner().invoke(app, asked)
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout.splitlines()[-1])["cells"] == told["cells"]


def test_what_cannot_be_played_is_said_before_the_work(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.json")
    for options, said in (
        (["--policy", "elastik"], "did you mean 'elastic'"),
        (["--signals", missing], "profile shapes --signals"),
    ):
        result = CliRunner().invoke(app, ["bench", "proof", "--short", *options])
        assert result.exit_code == 1
        assert said in " ".join(result.output.split())
