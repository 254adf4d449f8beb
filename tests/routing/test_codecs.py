from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_edge.errors import ConfigError
from diffusion_edge.plan import Codec
from diffusion_edge.routing.codecs import CodecRow, CodecTable, codec_table, codecs_by_step

from .views import request


def row(
    solver: str, steps: int, handoff: int, codec: Literal["bf16", "int8"], error: float
) -> CodecRow:
    return CodecRow(
        solver=solver,
        steps=steps,
        share=handoff / steps,
        codec=codec,
        error=error,
        worst=2 * error,
        change=0.0,
        interval=(-0.01, 0.01),
        packet_bytes=1000,
        exact_bytes=3000,
        n=64,
    )


def table(*rows: CodecRow) -> CodecTable:
    return CodecTable(
        family="shapes",
        model="cloud",
        metric="attribute accuracy",
        guidance=4.0,
        size=64,
        seed=0,
        prompts="prompts.txt",
        captions=64,
        weights="",
        versions={},
        measured="2026-01-01",
        rows=rows,
    )


# int8 is good early, bf16 to the last but one measured hand-off.
TABLE = table(
    row("ddim", 20, 2, "int8", 0.004),
    row("ddim", 20, 10, "int8", 0.008),
    row("ddim", 20, 15, "int8", 0.02),
    row("ddim", 20, 18, "int8", 0.05),
    row("ddim", 20, 2, "bf16", 0.0004),
    row("ddim", 20, 10, "bf16", 0.0008),
    row("ddim", 20, 15, "bf16", 0.002),
    row("ddim", 20, 18, "bf16", 0.03),
)


@pytest.mark.parametrize(
    ("handoff", "codec", "loss"),
    [
        (2, "int8", 0.004),
        (10, "int8", 0.008),
        (5, "int8", 0.008),  # the worse neighbour
        (11, "int8", 0.02),
        (16, "bf16", 0.03),
        (1, "int8", None),  # before the first measured one
        (19, "bf16", None),  # after the last
        (0, "exact", 0.0),
        (20, "exact", 0.0),
    ],
)
def test_loss_at_measured_hand_offs_and_between(
    handoff: int, codec: Codec, loss: float | None
) -> None:
    assert TABLE.loss("ddim", 20, handoff, codec) == loss


def test_auto_takes_the_smallest_codec_below_the_bound() -> None:
    found = codecs_by_step(request(steps=20, solver="ddim", codec="auto"), TABLE, 0.01)
    assert len(found) == 21
    assert found[:2] == ("exact", "exact")
    assert found[2:11] == ("int8",) * 9
    assert found[11:16] == ("bf16",) * 5
    assert found[16:] == ("exact",) * 5


@pytest.mark.parametrize(("bound", "codec"), [(0.0, "exact"), (0.0008, "bf16"), (0.008, "int8")])
def test_the_bound_counts_as_good_enough(bound: float, codec: Codec) -> None:
    assert TABLE.smallest("ddim", 20, 10, bound) == codec


def test_other_numbers_of_steps_go_by_the_share() -> None:
    assert TABLE.loss("ddim", 10, 5, "int8") == 0.008
    assert TABLE.loss("ddim", 100, 50, "int8") == 0.008
    both = table(row("ddim", 10, 5, "int8", 0.03), row("ddim", 20, 10, "int8", 0.008))
    assert both.loss("ddim", 14, 7, "int8") == 0.03  # the worse of 10 and 20 steps
    assert both.loss("ddim", 20, 10, "int8") == 0.008
    assert both.loss("ddim", 40, 20, "int8") == 0.008


def test_both_numbers_of_steps_beside_it_have_to_know_the_share() -> None:
    """14 steps lie between 10 and 20; hand-offs of 10 steps were measured in their middle only."""
    middle = table(*TABLE.rows, row("ddim", 10, 5, "int8", 0.001))
    assert middle.loss("ddim", 14, 7, "int8") == 0.008
    assert middle.loss("ddim", 14, 4, "int8") is None
    assert middle.smallest("ddim", 14, 4, 1.0) == "bf16"  # of which only 20 steps were measured


def test_a_loss_of_nothing_is_a_known_loss() -> None:
    nothing = table(row("ddim", 20, 10, "bf16", 0.0))
    assert nothing.loss("ddim", 20, 10, "bf16") == 0.0
    assert nothing.smallest("ddim", 20, 10, 0.0) == "bf16"


def test_what_was_not_measured_is_exact() -> None:
    auto = request(steps=20, solver="euler", codec="auto")
    assert codecs_by_step(auto, TABLE, 1.0) == ("exact",) * 21
    assert codecs_by_step(auto, None, 1.0) == ("exact",) * 21


@pytest.mark.parametrize("codec", ["exact", "bf16", "int8"])
def test_a_codec_that_is_asked_for_is_taken(codec: Codec) -> None:
    assert codecs_by_step(request(steps=4, codec=codec), TABLE, 0.0) == (codec,) * 5


@given(st.floats(0, 0.1), st.floats(0, 0.1), st.integers(1, 150), st.data())
def test_a_looser_bound_never_takes_a_larger_codec(
    low: float, high: float, steps: int, data: st.DataObject
) -> None:
    handoff = data.draw(st.integers(0, steps))
    low, high = sorted((low, high))
    sizes = {"exact": 4, "bf16": 2, "int8": 1}
    strict = sizes[TABLE.smallest("ddim", steps, handoff, low)]
    assert sizes[TABLE.smallest("ddim", steps, handoff, high)] <= strict


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    (tmp_path / "codecs.json").write_text(TABLE.model_dump_json())
    assert codec_table(tmp_path) == TABLE
    assert codec_table(tmp_path / "elsewhere") is None


def wrong(**changes: Any) -> dict[str, Any]:
    """The table with its first row changed."""
    content: dict[str, Any] = json.loads(TABLE.model_dump_json())
    content["rows"][0] |= changes
    return content


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (wrong(solvr="ddim"), r"rows\.0\.solvr"),
        (wrong(codec="fp4"), r"rows\.0\.codec"),
        (wrong(codec="exact"), r"rows\.0\.codec"),
        (wrong(codec="int8", share=0.5), "occur twice"),
        (wrong(share=0.123), "no whole number of 20 steps"),
        (wrong(share=1.0), r"rows\.0\.share"),
        (wrong(error=-0.1), r"rows\.0\.error"),
        (wrong(error="small"), r"rows\.0\.error"),
        (wrong(error=1.0), "larger than the worst"),
        (wrong(change=0.5), "outside its interval"),
        (wrong(n=0), r"rows\.0\.n"),
        ({}, "family"),
        ([], "should be an object"),
    ],
)
def test_refuses_a_wrong_file(tmp_path: Path, content: Any, told: str) -> None:
    path = tmp_path / "codecs.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=told) as caught:
        codec_table(tmp_path)
    assert caught.value.file == str(path)
