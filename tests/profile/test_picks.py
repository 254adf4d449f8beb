"""Which plans the router would take, by made-up views."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_edge.families.card import FamilyCard, load_card
from diffusion_edge.profile.measure import of_size
from diffusion_edge.profile.picks import FLOORS, idle_view, picks, situations

from ..routing.views import symmetric


@pytest.fixture
def card(tiny_family: Path) -> FamilyCard:
    """It has the same stages as the table, which knows 64 pixels."""
    return of_size(load_card(tiny_family), 64)


def test_every_pick_promises_its_floor_and_deadlines_force_several(card: FamilyCard) -> None:
    found = picks(card, symmetric(device=0.86, edge=0.97), [20])
    assert {pick.floor for pick in found} == set(FLOORS)
    for pick in found:
        assert pick.bound >= pick.floor - 1e-9
        assert pick.plan.steps == 20
    for floor in FLOORS:
        plans = [str(pick.plan) for pick in found if pick.floor == floor]
        assert len(plans) == len(set(plans)) > 1


def test_a_floor_that_nothing_reaches_has_no_pick(card: FamilyCard) -> None:
    unknown = symmetric().model_copy(update={"sizes": ()})
    larger = picks(of_size(card, 128), unknown, [20])
    assert {str(pick.plan) for pick in larger} == {"cloud:20"}
    assert not picks(card, unknown, [19])


def test_seconds_go_by_the_denoiser_and_the_tier(card: FamilyCard) -> None:
    stages = {
        name: stage.model_copy(update={"parameters_millions": millions})
        for (name, stage), millions in zip(card.stages.items(), (1.0, 4.0, 16.0), strict=True)
    }
    view = idle_view(card.model_copy(update={"stages": stages}), 20)
    each = {name: s.seconds_per_step(True, view.cells) for name, s in view.stages.items()}
    assert each == pytest.approx({"device": 20 / 16, "edge": 1.9 / 4, "cloud": 1.0})
    unsaid = idle_view(card, 20)
    assert unsaid.stages["device"].step_s == view.stages["device"].step_s  # its place says as much


def test_every_stage_is_idle_once_and_busy_once(card: FamilyCard) -> None:
    found = list(situations(card, 20))
    busy = [tuple(n for n, s in view.stages.items() if s.held) for view, _ in found]
    assert set(busy) == {(), ("device",), ("edge",), ("cloud",)}
    assert all(deadline_s > 0 for _, deadline_s in found)
