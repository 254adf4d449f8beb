"""Scenario files: those that come with the project are right, and wrong ones are told why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from diffusion_edge.errors import ConfigError
from diffusion_edge.places import REPOSITORY
from diffusion_edge.sim.scenario import Scenario, load

FOLDER = REPOSITORY / "loadtest" / "scenarios"
PLAIN: dict[str, Any] = {"arrivals": {"rate": 2.0}}


def written(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "some.yaml"
    file.write_text(yaml.safe_dump(PLAIN | changes))
    return file


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_those_that_come_with_the_project_are_right(file: Path) -> None:
    scenario = load(file)
    assert scenario.title
    assert (REPOSITORY / scenario.config).is_file()
    assert all((REPOSITORY / link.file).is_file() for link in scenario.links if link.file)


def test_little_has_to_be_said(tmp_path: Path) -> None:
    scenario = load(written(tmp_path))
    assert scenario.policies == ["elastic"]
    assert (scenario.requests.count, scenario.requests.images) == (400, {1: 1.0})
    assert load(written(tmp_path), ["earliest"], 7).requests.count == 7


def test_one_value_or_some_by_their_shares(tmp_path: Path) -> None:
    mixed = {"steps": {20: 3, 10: 1}, "deadline_s": 4, "late": {"serve": 1, "refuse": 2}}
    asked = load(written(tmp_path, requests=mixed)).requests
    assert asked.steps == {20: 3, 10: 1}
    assert asked.deadline_s == {4: 1.0}
    assert asked.late == {"serve": 1, "refuse": 2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arrivals": {"kind": "poison", "rate": 1.0}}, "did you mean 'poisson'"),
        ({"arrivals": {"kind": "bursty"}}, "arrivals.rate: 'bursty' needs this key"),
        ({"arrivals": {"rate": 1.0, "burst": 3}}, "arrivals.burst: 'poisson' has no such key"),
        ({"arrivals": {"kind": "trace"}}, "arrivals.file: 'trace' needs this key"),
        ({"policies": ["elastik"]}, "did you mean 'elastic'"),
        ({"policies": ["edge:0"]}, "has no steps"),
        ({"requests": {"steps": {0: 1.0}}}, "0 is not a number from 1 on"),
        ({"requests": {"steps": {20: -1.0}}}, "the share of 20 should be"),
        ({"requests": {"late": "never"}}, "'never' is not one of serve, refuse"),
        ({"request": {}}, "did you mean 'requests'"),
        ({"sites": {"count": {"edge": 2}, "sees": {"edge": 3}}}, "cannot have 3 of 2"),
        ({"links": [{"between": ["a", "b"], "kind": "step", "steps": {1.0: 2.0}}]}, "from 0 s on"),
        ({"faults": [{"kind": "slow", "at_s": 1.0, "for_s": 1.0}]}, "'slow' needs this key"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(written(tmp_path, **changes))
    assert said in raised.value.message
    assert "some.yaml, line" in raised.value.message


def test_a_scenario_needs_arrivals() -> None:
    with pytest.raises(ValueError, match="arrivals"):
        Scenario.model_validate({})
