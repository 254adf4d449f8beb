"""Plans as text, and what fills what a plan leaves open."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_edge.errors import InvalidPlan
from diffusion_edge.plan import MAX_GUIDANCE, Plan, Span

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
