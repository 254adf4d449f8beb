"""From what is asked to a task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_edge.bench.routing.command import BELOW, Asked, task_of
from diffusion_edge.bench.routing.parts import FULL, SHORT
from diffusion_edge.bench.routing.records import PARTS
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.families.card import load_card
from diffusion_edge.places import REPOSITORY
from diffusion_edge.plan import Plan

BUS = Path("loadtest/traces/links/lte_bus_nyc.csv")


def asked() -> Asked:
    card = load_card(REPOSITORY / "stage_models" / "shapes")
    return Asked(card, (), False, 2.5, False, BUS, 1000, Path("ledger"))


def test_the_floor_is_a_point_below_what_the_edge_alone_reaches() -> None:
    task = task_of(asked())
    assert task.floor == pytest.approx(task.bound(Plan.parse("edge:20")) - BELOW)
    assert 0.5 < task.floor < 1
    assert (task.size, task.parts, task.steps) == (FULL, PARTS, 20)


def test_parts_can_be_asked_for_one_by_one_and_in_a_short_form() -> None:
    some = replace(asked(), parts=("links", "burst"), short=True)
    task = task_of(some)
    assert (task.size, task.parts) == (SHORT, ("burst", "links"))
    assert str(some) == (
        "diffusion-edge bench routing shapes --part links --part burst --short --scale 2.5 "
        f"--trace {BUS} --seed 1000"
    )
    with pytest.raises(InvalidRequest, match=r"there is no part 'link'; .*did you mean 'links'"):
        task_of(replace(asked(), parts=("link",)))
