"""What is asked for: mixed requests, and which of them a stock pipeline can batch."""

from __future__ import annotations

from pathlib import Path

from diffusion_edge.bench.stock import stock_scheduler
from diffusion_edge.bench.workload import Asked, equal, grouped, mixed
from diffusion_edge.families.card import load_card


def test_mixed_requests_differ_in_solver_steps_and_guidance(tiny_family: Path) -> None:
    card = load_card(tiny_family)
    asked = mixed(card, 8, 20, 0)
    assert len({request.solver for request in asked}) == 7
    assert len({request.steps for request in asked}) == 8
    assert len({request.guidance for request in asked}) == 8
    assert all(request.guidance > 1 for request in asked)
    assert grouped(asked) == [[i] for i in range(8)]
    assert mixed(card, 5, 20, 0) == asked[:5]


def test_equal_requests_share_one_call(tiny_family: Path) -> None:
    asked = equal(load_card(tiny_family), 8, 20, 0)
    assert grouped(asked) == [list(range(8))]
    assert len({request.seed for request in asked}) == 8


def test_only_what_agrees_in_all_three_is_grouped() -> None:
    def a(solver: str, steps: int, guidance: float) -> Asked:
        return Asked("a circle", 0, solver, steps, guidance)

    asked = [a("ddim", 9, 2), a("euler", 9, 2), a("ddim", 9, 2), a("ddim", 8, 2), a("ddim", 9, 3)]
    assert grouped(asked) == [[0, 2], [1], [3], [4]]


def test_pndm_is_asked_for_one_step_less_than_it_makes(tiny_family: Path) -> None:
    card = load_card(tiny_family)
    assert Asked("a circle", 3, "pndm", 9, 2.0).request(card).steps == 10
    assert Asked("a circle", 3, "ddim", 9, 2.0).request(card).steps == 9


def test_a_stock_scheduler_leaves_the_familys_config_as_it_is() -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    assert stock_scheduler("flow-unipc", config).config.flow_shift == 3.0
    assert config["shift"] == 3.0
