"""The rules that others publish: the plan that each must choose, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_edge.errors import InvalidRequest, NoPlan, QueueFull
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import cascade, sr_diffusion
from diffusion_edge.routing.losses import Model, StageCurve
from diffusion_edge.routing.pairs import handoff
from diffusion_edge.routing.policies import SERVED, policy, rule, served
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.rule import Finished, Outcome, Standing
from diffusion_edge.view import Carried, Choice, View

from .views import request, row, stage, symmetric, table, view


def chosen(name: str, asked: ImageRequest, seen: View) -> Choice:
    return policy(name)(asked, seen, symmetric())


def three(**kw: float) -> View:
    return view(stage("phone", 0.4), stage("tower", 0.2), stage("hall", 0.05), **kw)


def in_counts(*counts: int, large: Mapping[int, float] | None = None) -> QualityTable:
    """Of two models in several numbers of steps. In n steps the small one loses 8 / n, the large
    one what `large` says."""
    lost = {("device", n): 8.0 / n for n in counts}
    lost |= {("cloud", n): (large or {}).get(n, 0.0) for n in counts}
    curves = (
        StageCurve(stage=stage, steps=n, loss=(0.0, loss)) for (stage, n), loss in lost.items()
    )
    orders = [{"device": 1, "cloud": -1}, {"cloud": 1, "device": -1}]
    rows = [row(0.9, **{name: n}) for name, n in lost]
    rows += [row(0.9, **{k: d % n for k, d in order.items()}) for order in orders for n in counts]
    return table(*rows, model=Model(power=1.0, curves=tuple(curves)))


# ---------------------------------------------------------------------------- constant hand-offs


@pytest.mark.parametrize(
    ("name", "plan"), [("t-stitch", "phone:8,hall:12"), ("hybrid-sd", "hall:8,phone:12")]
)
def test_the_hand_off_is_a_constant_whatever_load_link_and_floor(name: str, plan: str) -> None:
    """Premises: 20 steps; the edge is between the two that the rules know, and left out."""
    for seen in (
        three(),
        three(bytes_per_s=1e3),
        view(stage("phone", 0.4, queue_s=9.0), stage("tower", 0.2), stage("hall", 0.05)),
    ):
        for floor in (0.0, 0.99):
            assert str(chosen(name, request(quality_floor=floor), seen).plan) == plan


def test_they_say_what_they_do_not_hold() -> None:
    choice = chosen("t-stitch", request(quality_floor=0.99, deadline_s=1.0), three())
    assert choice.reason == (
        "the first 40% of the steps on the small model; predicted to miss the deadline of 1 s; "
        "below the quality floor 0.99"
    )
    assert choice.predicted_s == pytest.approx(8 * 0.4 + 12 * 0.05, rel=1e-3)


def test_of_several_stages_of_a_tier_those_that_are_done_first() -> None:
    """Premises: the hall that comes first by name has something to do."""
    idle, busy = stage("hall", 0.05), stage("hall", 0.05, queue_s=7.0)
    seen = view(stage("phone", 0.4), replace(busy, stage="a"), replace(idle, stage="b"))
    assert str(chosen("t-stitch", request(), seen).plan) == "phone:8,b:12"
    assert str(chosen("hybrid-sd", request(), seen).plan) == "b:8,phone:12"


@pytest.mark.parametrize("name", ["t-stitch", "hybrid-sd"])
def test_what_there_is_no_link_or_no_room_for(name: str) -> None:
    """Without a link all steps go to the large model; a full device leaves the edge the smallest;
    with one tier left there is one model."""
    assert str(chosen(name, request(), replace(three(), links={})).plan) == "hall:20"
    full = replace(stage("phone", 0.4), queued=32)
    others = stage("tower", 0.2), stage("hall", 0.05)
    stages = {span.stage for span in chosen(name, request(), view(full, *others)).plan.spans}
    assert stages == {"tower", "hall"}
    assert str(chosen(name, request(), view(stage("tower", 0.2))).plan) == "tower:20"
    assert str(chosen(name, request(steps=1), three()).plan) == "hall:1"
    with pytest.raises(QueueFull):
        chosen(name, request(), view(full))
    with pytest.raises(NoPlan, match="alive"):
        chosen(name, request(), view())


@given(share=st.floats(0, 1), steps=st.integers(2, 50))
def test_both_models_make_a_step_at_least_and_the_share_as_nearly_as_whole_steps_can(
    share: float, steps: int
) -> None:
    at = handoff(share, steps)
    assert 1 <= at < steps
    assert abs(at - share * steps) <= 1.0


def test_the_number_of_steps_is_the_cheapest_that_reaches_the_floor_in_time() -> None:
    """Premises: the small model loses the less the more steps there are."""
    quality = in_counts(10, 20, 40)
    seen = replace(
        view(stage("phone", 0.01), stage("hall", 0.01)),
        carried={n: Carried((1,) * (n + 1), ("exact",) * (n + 1)) for n in (10, 20, 40)},
    )

    def steps(floor: float, deadline_s: float = 10.0) -> int:
        asked = request(free_steps=(10, 20, 40), quality_floor=floor, deadline_s=deadline_s)
        return policy("t-stitch")(asked, seen, quality).plan.steps

    bounds = {
        n: policy("t-stitch")(request(steps=n), seen, quality).quality_bound for n in (10, 20, 40)
    }
    assert bounds[10] < bounds[20] < bounds[40]
    assert [steps(bounds[n]) for n in (10, 20, 40)] == [10, 20, 40]
    assert steps(1.0) == 40  # nothing reaches it: what comes nearest
    assert steps(bounds[10], deadline_s=0.05) == 10  # nothing is in time: what is done first


# ---------------------------------------------------------------------------- sr-diffusion

SWITCHES = sr_diffusion.revise


def standing(plan: str, *changes: float) -> Standing:
    return Standing(Plan.parse(plan), len(changes) + 1, changes)


def test_the_plan_of_a_request_has_the_last_switch() -> None:
    assert str(chosen("sr-diffusion", request(), three()).plan) == "hall:12,phone:8"


def test_it_switches_at_once_when_the_output_becomes_flat() -> None:
    """d falls by 0.005 from the second change to the third; the codec is that of the new hand-off
    step, and a span keeps the guidance that it has."""
    codecs = tuple("int8" if step <= 10 else "exact" for step in range(21))
    seen = replace(three(), codecs=codecs)
    falling = (0.9, 0.305, 0.3)
    revised = SWITCHES(request(), seen, standing("hall:12@2,phone:8", *falling))
    assert revised is not None
    assert str(revised) == "hall:4@2,phone:16"
    assert revised.codecs == ("int8",)
    assert revised.reason == "the output of the large model is flat after step 3"


@pytest.mark.parametrize(
    ("plan", "changes"),
    [
        ("hall:12,phone:8", (0.9, 0.5, 0.3)),  # it still falls
        ("hall:12,phone:8", (0.9, 0.3, 0.305)),  # it rises
        ("hall:12,phone:8", (0.305, 0.3)),  # flat, but before the fifth part of the steps
        ("hall:12,phone:8", (0.9,)),  # nothing to compare
        ("hall:4,phone:16", (0.9, 0.305, 0.3)),  # it has switched
        ("hall:20", (0.9, 0.305, 0.3)),  # there is no small model
    ],
)
def test_where_all_stays_as_it_is(plan: str, changes: tuple[float, ...]) -> None:
    assert SWITCHES(request(), three(), standing(plan, *changes)) is None


@given(changes=st.lists(st.floats(0, 5), min_size=1, max_size=19))
def test_it_switches_once_within_its_range_and_never_back(changes: list[float]) -> None:
    plan = Plan.parse("hall:12,phone:8")
    for position in range(2, 20):
        told = Standing(plan, position, tuple(changes[: position - 1]))
        if len(told.changes) < position - 1:
            break
        revised = SWITCHES(request(), three(), told)
        if revised is not None:
            assert 4 <= position < 12
            assert (revised.spans[0].stop, revised.steps) == (position, 20)
            plan = revised
    assert plan.spans[0].stop >= 4


# ---------------------------------------------------------------------------- cascade


def made(score: float, elapsed_s: float = 1.0, plan: str = "phone:20") -> Finished:
    return Finished(Plan.parse(plan), score, elapsed_s)


def after(seen: cascade.Seen, asked: ImageRequest, known: View, finished: Finished) -> str | None:
    found = cascade.after(seen, asked, known, finished)
    return found and str(found)


def outcome(came_s: float, score: float | None = None) -> Outcome:
    choice = chosen("device-only", request(), three())
    return Outcome(request(), three(), choice, came_s, 1.0, 0.5, score)


def watched(scores: Sequence[float], every_s: float) -> cascade.Seen:
    seen = cascade.Seen()
    for k, score in enumerate(scores):
        seen = cascade.observe(seen, outcome(k * every_s, score))
    return seen


def test_the_small_model_first_and_the_large_one_if_that_is_not_good_enough() -> None:
    seen, asked = cascade.Seen(), request(deadline_s=60.0)
    assert str(chosen("cascade", asked, three()).plan) == "phone:20"
    assert after(seen, asked, three(), made(0.75)) == "hall:20"
    assert after(seen, asked, three(), made(1.0)) is None
    assert after(seen, asked, three(), made(0.75, plan="hall:20")) is None  # it was the large one


def test_a_second_picture_that_would_be_late_is_not_begun() -> None:
    """Premises: all steps on the large model take 1 s."""
    asked = request(deadline_s=10.0)
    assert after(cascade.Seen(), asked, three(), made(0.2, elapsed_s=8.9)) == "hall:20"
    assert after(cascade.Seen(), asked, three(), made(0.2, elapsed_s=9.1)) is None


def test_the_threshold_is_what_the_large_model_can_bear() -> None:
    """Premises: it makes one picture a second; scores are even from 0 to 0.99."""
    scores = [k / 100 for k in range(100)]
    asked = request()
    assert cascade.rate(("hall",), asked, three()) == pytest.approx(1.0)
    for every_s, share in ((2.0, 1.0), (0.5, 0.5), (0.25, 0.25), (0.1, 0.1)):
        found = cascade.threshold(watched(scores, every_s), asked, three())
        assert found == pytest.approx(share, abs=0.011)
    assert cascade.threshold(cascade.Seen(), asked, three()) == 1.0
    few = watched(scores[:8], 0.01)
    assert cascade.threshold(few, asked, three()) == 1.0  # no demand is told of so few


def test_it_learns_from_what_it_is_told_and_from_nothing_else() -> None:
    first = cascade.rule()
    assert first.observe is not None
    told = [first, first.observe(outcome(0.0, 0.2)), first.observe(outcome(0.0))]
    finished, asked = made(0.75), request(deadline_s=60.0)
    assert {str(rule.after and rule.after(asked, three(), finished)) for rule in told} == {
        "hall:20"
    }
    seen = watched([0.2], 1.0)
    assert seen == cascade.Seen((0.2,), (0.0,))
    assert cascade.observe(seen, outcome(3.0)) == cascade.Seen((0.2,), (0.0, 3.0))


def test_a_cascade_takes_the_fewest_steps_in_which_the_large_model_reaches_the_floor() -> None:
    """Premises: alone it reaches 0.9 in 10 steps and 1 in 20 and in 40."""
    quality = in_counts(10, 20, 40, large={10: 0.1})
    for floor, steps in ((0.85, 10), (0.95, 20), (1.0, 20)):
        asked = request(free_steps=(10, 20, 40), quality_floor=floor)
        assert str(policy("cascade")(asked, three(), quality).plan) == f"phone:{steps}"


# ---------------------------------------------------------------------------- what a server follows


def test_a_server_refuses_what_chooses_again_and_says_why() -> None:
    for name in ("sr-diffusion", "cascade"):
        with pytest.raises(InvalidRequest, match=f"'{name}' chooses again .* served: elastic"):
            served(name)
    assert {"elastic", "t-stitch", "hybrid-sd", "linucb"} <= set(SERVED)
    assert all(served(name) is rule(name) for name in SERVED)
