"""Scenarios of cells: what a step takes, what a deadline is, what the stages can make at most."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diffusion_edge.bench.proof import cells
from diffusion_edge.bench.proof.grid import Cell
from diffusion_edge.bench.simulated import family_of

CELL = Cell(
    number=0,
    family="sdxl",
    ratio="1:4:16",
    near="lte_bus_nyc",
    far=50.0,
    wire=500.0,
    near_rtt_s=0.04,
    far_rtt_s=0.1,
    wire_rtt_s=0.005,
    load=0.5,
    arrivals="poisson",
    patience=2.0,
    floor=0.98,
    late="serve",
)


def test_with_1_4_16_and_models_of_16_4_1_a_step_takes_equally_long_everywhere() -> None:
    stages = cells.settings_of(CELL).stages
    steps = [stages[name].emulate for name in ("cloud", "edge", "device")]
    assert [each.curve[1] for each in steps if each] == pytest.approx([0.067] * 3)
    faster = cells.settings_of(replace(CELL, ratio="1:2:4")).stages["device"].emulate
    assert faster is not None
    assert faster.curve == {1: pytest.approx(0.067 / 4)}


def test_a_scenario_has_the_cells_links_deadline_and_floor() -> None:
    scenario = cells.scenario_of(CELL, 2.0, ["elastic"], [3])
    near, far, wire = scenario.links
    assert (near.between, near.kind, near.delay_s) == (("device", "edge"), "trace", 0.02)
    assert (far.between, far.bytes_per_s, far.delay_s) == (("device", "cloud"), 6.25e6, 0.05)
    assert (wire.between, wire.bytes_per_s) == (("edge", "cloud"), 62.5e6)
    alone_s = 0.067 * (0.5 + 20 + 0.51 / 0.37)
    assert list(scenario.requests.deadline_s or ()) == pytest.approx([2 * alone_s])
    assert scenario.requests.quality_floor == {0.98: 1.0}
    assert cells.settings_of(CELL).emulate is not None
    assert cells.settings_of(replace(CELL, family="shapes")).emulate is None


def test_what_the_stages_can_make_is_what_the_cloud_makes_where_only_it_is_good_enough() -> None:
    """Premises: only the reference itself is held to be as good as the reference."""
    cell = replace(CELL, floor=1.0)
    settings = cells.settings_of(cell)
    full_s = 0.067 * (0.5 + 0.51 / 0.37) + 20 * 0.268 / 8
    assert cells.capacity(cell, settings, family_of(settings)) == pytest.approx(1 / full_s)


def test_a_lower_floor_lets_more_be_made() -> None:
    settings = cells.settings_of(CELL)
    family = family_of(settings)
    made = [cells.capacity(replace(CELL, floor=floor), settings, family) for floor in (0.98, 0.5)]
    assert made[1] > 1.2 * made[0] > 0
