import math

import pytest

from diffusion_edge.profile.grid import orders, plans

STAGES = ("device", "edge", "cloud")


def test_every_order_of_up_to_three_spans() -> None:
    found = list(orders(STAGES))
    assert len(found) == len(set(found)) == 3 + 6 + 6
    assert ("edge", "device", "cloud") in found
    assert ("device", "cloud", "device") not in found  # no router takes it


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 10, 11, 20, 25, 50])
def test_plans_have_the_steps_and_each_is_there_once(steps: int) -> None:
    found = plans(STAGES, steps)
    assert {plan.steps for plan in found} == {steps}
    assert len({str(plan) for plan in found}) == len(found)
    odd = steps % 2  # a half of the steps is then rounded both ways
    most = 3 + 6 * min(7 + odd, steps - 1) + 6 * math.comb(min(3 + odd, steps - 1), 2)
    assert len(found) == most if steps >= 10 else 3 <= len(found) <= most


@pytest.mark.parametrize("steps", [2, 5, 10, 11, 20])
def test_both_orders_of_two_stages_are_cut_alike(steps: int) -> None:
    pairs = {str(plan) for plan in plans(("small", "large"), steps) if len(plan.spans) == 2}
    for text in pairs:
        first, second = text.split(",")
        assert f"{second},{first}" in pairs


def test_plans_of_three_spans_begin_as_plans_of_two_do() -> None:
    found = plans(STAGES, 20)
    begun = {(p.spans[0], p.spans[1].stage) for p in found if len(p.spans) == 2}
    assert all((p.spans[0], p.spans[1].stage) in begun for p in found if len(p.spans) == 3)
