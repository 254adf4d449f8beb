"""`diffusion-edge simulate`: a table, a JSON file, and errors for people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffusion_edge.commands.app import app
from diffusion_edge.places import REPOSITORY

STEADY = str(REPOSITORY / "loadtest" / "scenarios" / "steady.yaml")


def test_a_scenario_is_played_by_every_policy(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    options = ["--policy", "in-turn", "--policy", "edge:20", "--requests", "6"]
    result = CliRunner().invoke(app, ["simulate", STEADY, *options, "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "edge:20: edge 100%" in result.output
    found = json.loads(file.read_text())
    assert [run["policy"] for run in found["runs"]] == ["in-turn", "edge:20"]
    assert found["scenario"]["requests"]["count"] == 6
    for run in found["runs"]:
        assert sum(run["fates"].values()) == run["requests"] == 6
        assert run["served"] == run["in_time"] + run["late"]
    (plan,) = found["runs"][1]["plans"]
    assert plan == "edge:20"
    assert found["runs"][1]["latency_s"]["mean"] >= 0.043 + 20 * 0.085 + 0.117


def test_several_rates_and_their_plots(tmp_path: Path) -> None:
    file, plots = tmp_path / "found.json", tmp_path / "plots"
    options = ["--policy", "edge:20", "--policy", "cloud-only", "--requests", "4"]
    rates = ["--rate", "0.2", "--rate", "2"]
    told = [*options, *rates, "--plots", str(plots), "--json", str(file)]
    result = CliRunner().invoke(app, ["simulate", STEADY, *told])
    assert result.exit_code == 0, result.output
    assert "reward" in result.output
    slow, fast = json.loads(file.read_text())
    assert [each["scenario"]["arrivals"]["rate"] for each in (slow, fast)] == [0.2, 2.0]
    names = {"frontier.png", "misses.png", "timeline-edge-20.png", "timeline-cloud-only.png"}
    assert {each.name for each in plots.iterdir()} == names


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        ([STEADY, "--policy", "elastik"], "did you mean 'elastic'"),
        ([STEADY, "--policy", "attic:20"], "there is no stage 'attic'"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["simulate", *arguments])
    assert result.exit_code == 1
    assert said in result.output
