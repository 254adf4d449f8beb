"""What is chosen where a request leaves the number of steps to the router."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diffusion_edge.errors import NoPlan
from diffusion_edge.plan import Codec
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.losses import Model, StageCurve
from diffusion_edge.routing.policies import policy
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.view import Carried, Choice, View

from .views import request, row, stage, table, view

KNOWN = {5: 0.8, 10: 0.97, 20: 1.0, 30: 1.0}


def known() -> QualityTable:
    """The cloud alone, in four numbers of steps."""
    curves = (StageCurve(stage="cloud", steps=n, loss=(0.0, 1 - q)) for n, q in KNOWN.items())
    rows = (row(value, cloud=steps) for steps, value in KNOWN.items())
    return table(*rows, model=Model(power=1.0, curves=tuple(curves)))


def free(**kw: object) -> ImageRequest:
    return request(free_steps=tuple(KNOWN), **kw)


def chosen(asked: ImageRequest, seen: View | None = None, name: str = "elastic") -> Choice:
    return policy(name)(asked, seen or view(stage("hall", 0.1)), known())


@pytest.mark.parametrize("name", ["elastic", "earliest"])
def test_as_few_steps_as_the_floor_allows(name: str) -> None:
    for floor, steps in ((0.0, 5), (0.9, 10), (0.98, 20), (1.0, 20)):
        choice = chosen(free(quality_floor=floor, deadline_s=9.0), name=name)
        assert str(choice.plan) == f"hall:{steps}"
        assert choice.quality == pytest.approx(KNOWN[steps])
        assert choice.predicted_s == pytest.approx(0.1 * steps)
        assert choice.cost == pytest.approx(0.4 * steps)
        assert choice.reason.endswith(f"; best in {steps} of 5, 10, 20, 30 steps")
        assert choice.plan.reason == choice.reason


def test_a_named_number_of_steps_is_kept() -> None:
    assert str(chosen(request(steps=30, quality_floor=0.0)).plan) == "hall:30"
    assert str(chosen(free(steps=30, quality_floor=0.0), name="cloud-only").plan) == "hall:30"


def test_where_no_number_is_in_time_the_earliest_is_taken() -> None:
    choice = chosen(free(quality_floor=0.9, deadline_s=0.3))
    assert str(choice.plan) == "hall:10"
    assert choice.reason.startswith("no plan meets the deadline of 0.3 s")


def test_a_plan_in_time_comes_before_a_cheaper_one_that_is_late() -> None:
    """Premises: what waits makes seconds dear, and only few steps are in time."""
    seen = view(stage("hall", 0.1, queue_s=1.0))
    choice = chosen(free(quality_floor=0.9, deadline_s=2.5), seen)
    assert (str(choice.plan), choice.predicted_s) == ("hall:10", pytest.approx(2.0))


def test_of_equal_choices_the_request_s_own_number_is_taken() -> None:
    seen = view(stage("hall", 0.1), prices={"device": 0.0, "edge": 0.0, "cloud": 0.0})
    asked = free(steps=20, quality_floor=0.9)
    assert str(chosen(asked, seen).plan) == "hall:10"  # done earlier, where nothing costs anything
    free_and_instant = view(stage("hall", 1e-12), prices={"device": 0.0, "edge": 0.0, "cloud": 0.0})
    assert str(chosen(asked, free_and_instant).plan) == "hall:20"


def test_packets_are_those_of_the_number_that_is_tried() -> None:
    """Premises: in ten steps every packet is small and rounded; in twenty large and exact."""
    both = view(stage("tower", 0.01), stage("hall", 0.5), bytes_per_s=1e3, nbytes=10_000)
    rounded: tuple[Codec, ...] = ("int8",) * 11
    seen = replace(both, carried={10: Carried((10,) * 11, rounded)})
    curves = (
        *(StageCurve(stage="edge", steps=n, loss=(0.0, 0.9)) for n in (10, 20)),
        StageCurve(stage="cloud", steps=10, loss=(0.0, 0.0)),
    )
    rows = [
        row(score, **{a: n // 2, b: n // 2} if b else {a: n})
        for n in (10, 20)
        for a, b, score in (("cloud", "", 1.0), ("edge", "", 0.1), ("edge", "cloud", 0.5))
    ]
    quality = table(*rows, model=Model(power=1.0, curves=curves))
    asked = request(quality_floor=0.5, deadline_s=4.0, free_steps=(10, 20))
    choice = policy("elastic")(asked, seen, quality)
    assert str(choice.plan) == "tower:5,hall:5"
    assert choice.plan.codecs == ("int8",)
    assert choice.predicted_s == pytest.approx(0.05 + 0.01 + 2.5)


def test_only_if_no_number_has_a_plan_it_is_refused_as_for_its_own() -> None:
    with pytest.raises(NoPlan, match=r"floor 0\.95; the best of them reaches 0"):
        policy("elastic")(free(quality_floor=0.95), view(stage("tower", 0.1)), known())
