"""Plans as text, and what fills what a plan leaves open."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_edge.errors import InvalidPlan
from diffusion_edge.types import MAX_GUIDANCE, NEVER, Plan, Span, StageStatus, Times

stages = st.from_regex(r"[a-z][a-z0-9_.-]{0,20}", fullmatch=True)
guidances = st.none() | st.floats(0, MAX_GUIDANCE).map(abs)
parts = st.lists(st.tuples(stages, st.integers(1, 100), guidances), min_size=1, max_size=10)


@given(parts)
def test_a_plan_is_read_as_it_is_written(given: list[tuple[str, int, float | None]]) -> None:
    spans: list[Span] = []
    for stage, steps, guidance in given:
        start = spans[-1].stop if spans else 0
        spans.append(Span(stage, start, start + steps, guidance))
    plan = Plan(tuple(spans), ("exact",) * (len(spans) - 1), "asked for")
    assert Plan.parse(str(plan)) == plan


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("cloud:8@7.5,edge:12@1", "cloud:8@7.5,edge:12@1"),
        (" cloud : 8 @ 7.50 , edge:12", "cloud:8@7.5,edge:12"),
        ("cloud:8@0,edge:12@50.0", "cloud:8@0,edge:12@50"),
    ],
)
def test_guidance_stands_behind_the_steps(text: str, written: str) -> None:
    assert str(Plan.parse(text)) == written


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cloud:8@", "'cloud:8@' in plan 'cloud:8@' is not stage:steps or stage:steps@guidance"),
        ("cloud@7.5:8", "is not stage:steps"),
        ("cloud:8@seven", "is not stage:steps"),
        ("cloud:8@-1", "guidance -1 is not a number between 0 and 50"),
        ("cloud:8@7.5.5", "guidance 7.5.5 is not a number between 0 and 50"),
        ("cloud:8@51", "guidance 51 is not a number"),
        ("cloud:8@1e9", "guidance 1e9 is not a number"),
        ("cloud:8@1@2", "is not stage:steps"),
        ("cloud:0@1", "the span on 'cloud' has no steps"),
        ("cloud:1001@1", "more than 1000 steps"),
        ("cloud:٣", "is not stage:steps"),
    ],
)
def test_what_is_no_plan_is_told(text: str, told: str) -> None:
    with pytest.raises(InvalidPlan) as caught:
        Plan.parse(text)
    assert told in caught.value.message
    assert caught.value.param == "plan"


def test_a_stages_own_guidance_fills_spans_that_have_none() -> None:
    plan = Plan.parse("cloud:8,edge:6@7.5,device:6", "why").with_codecs(["int8"] * 20)
    filled = plan.with_guidance({"cloud": 2.0, "edge": 1.0})
    assert str(filled) == "cloud:8@2,edge:6@7.5,device:6"
    assert (filled.codecs, filled.reason) == (plan.codecs, "why")
    assert plan.with_guidance({}) == plan


def test_never_is_never_on_any_clock_and_zero_is_a_time() -> None:
    assert Times(0.0, None).shifted(5.0) == Times(5.0, None)
    assert Times(None, 7.5).shifted(-8.0) == Times(None, -0.5)
    assert NEVER.shifted(1e9) == NEVER


def test_only_a_model_that_doubles_takes_two_rows() -> None:
    def status(**more: object) -> StageStatus:
        seconds = {64: {1: 0.1, 2: 0.15}}
        return StageStatus("a", "edge", "a", 0.0, 0, 8, seconds, 0.0, {64: 0.2}, 1, **more)  # type: ignore[arg-type]  # of any field

    assert status().seconds_per_step(guided=True, cells=64) == 0.15
    assert status().seconds_per_step(guided=False, cells=64) == 0.1
    assert status(guiding="embedded").seconds_per_step(guided=True, cells=64) == 0.1
    assert status(emulated=True).seconds_per_step(guided=True, cells=64) == 0.1
    assert status(guiding="off").seconds_per_step(guided=True, cells=64) == 0.1


def test_seconds_of_a_size_that_a_stage_does_not_know_come_from_the_nearest() -> None:
    steps, decoding = {64: {1: 0.1, 2: 0.15}, 256: {1: 0.2}}, {64: 0.2, 256: 0.3}
    status = StageStatus("a", "edge", "a", 0.0, 0, 8, steps, 0.0, decoding, 1)
    assert status.seconds_per_step(guided=False, cells=256) == 0.2
    assert status.seconds_per_step(guided=True, cells=16) == pytest.approx(0.05)
    assert status.seconds_per_step(guided=False, cells=512) == pytest.approx(0.4)
    assert status.seconds_to_decode(256) == 0.3
    assert status.seconds_to_decode(96) == pytest.approx(0.3)
