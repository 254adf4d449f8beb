import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_edge.errors import ConfigError
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.types import Plan

from .views import row, symmetric, table

TABLE = table(
    row(0.8, cloud=1.0),
    row(0.6, edge=1.0),
    row(0.4, device=1.0),
    row(0.76, cloud=0.5, edge=0.5),
    row(0.68, cloud=0.25, edge=0.75),
    row(0.64, edge=0.5, cloud=0.5),
    row(0.5, edge=0.5, device=0.5),
    row(0.7, cloud=0.5, device=0.5),
    row(0.72, cloud=0.4, edge=0.4, device=0.2),
)


@pytest.mark.parametrize(
    ("plan", "accuracy"),
    [
        ("cloud:20", 0.8),
        ("cloud:8,cloud:12", 0.8),
        ("edge:20", 0.6),
        ("cloud:10,edge:10", 0.76),
        ("cloud:5,edge:15", 0.68),
        ("edge:10,cloud:10", 0.64),
        ("cloud:15,edge:5", 0.78),  # half way from the measured half to cloud alone
        ("cloud:2,edge:18", 0.632),  # two fifths of the way from edge alone
        ("cloud:8,edge:8,device:4", 0.72),
    ],
)
def test_measured_rows_and_what_lies_between(plan: str, accuracy: float) -> None:
    assert TABLE.relative(Plan.parse(plan)) == pytest.approx(accuracy / 0.8)


@pytest.mark.parametrize("plan", ["device:10,edge:10", "device:5,cloud:5,edge:10", "edge:5,tpu:5"])
def test_orders_that_were_not_measured_are_unknown(plan: str) -> None:
    parsed = Plan.parse(plan)
    assert not TABLE.knows([span.stage for span in parsed.spans])
    assert TABLE.relative(parsed) == 0.0


def test_three_spans_approach_the_measured_sides() -> None:
    near_side = TABLE.relative(Plan.parse("cloud:499,edge:500,device:1"))
    assert near_side == pytest.approx(TABLE.relative(Plan.parse("cloud:499,edge:501")), abs=2e-3)
    near_corner = TABLE.relative(Plan.parse("cloud:1,edge:1,device:998"))
    assert near_corner == pytest.approx(0.4 / 0.8, abs=5e-3)


@settings(deadline=None, max_examples=50)
@given(
    steps=st.tuples(*[st.integers(1, 40)] * 3),
    order=st.permutations(["device", "edge", "cloud"]),
)
def test_three_spans_lie_between_the_accuracies_around_them(
    steps: tuple[int, int, int], order: list[str]
) -> None:
    value = symmetric().relative(Plan.of(tuple(zip(order, steps, strict=True))))
    linear = {"device": 0.4, "edge": 0.7, "cloud": 1.0}
    expected = sum(linear[s] * n for s, n in zip(order, steps, strict=True)) / sum(steps)
    assert value == pytest.approx(expected)  # a plane through the corners is met exactly


def test_a_family_without_a_table_knows_only_its_cloud_model() -> None:
    unknown = QualityTable.unknown("mine")
    assert unknown.relative(Plan.parse("cloud:20")) == 1.0
    assert unknown.relative(Plan.parse("cloud:10,cloud:10")) == 1.0
    assert unknown.relative(Plan.parse("edge:20")) == 0.0
    assert unknown.relative(Plan.parse("cloud:19,edge:1")) == 0.0


def written(folder: Path, **changes: object) -> Path:
    content = json.loads(TABLE.model_dump_json(exclude={"reference"})) | changes
    (folder / "quality.json").write_text(json.dumps(content))
    return folder / "quality.json"


def test_reads_its_file(tmp_path: Path) -> None:
    assert QualityTable.read(written(tmp_path)) == TABLE


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metrik": "x"}, "metrik"),
        ({"steps": "20"}, "steps"),
        ({"rows": [{"stages": ["cloud"], "shares": [0.5], "accuracy": 1, "n": 1}]}, "sum to 1"),
        ({"rows": [{"stages": ["cloud"], "shares": [1], "accuracy": 1.2, "n": 1}]}, "rows.0.accur"),
        ({"rows": [{"stages": ["cloud"], "shares": [1], "accuracy": 0, "n": 1}]}, "reference"),
        ({"rows": [{"stages": ["edge"], "shares": [1], "accuracy": 1, "n": 1}]}, "'cloud'"),
        (
            {"rows": [{"stages": ["cloud"], "shares": [1], "accuracy": 1, "n": 1}] * 2},
            "occur twice",
        ),
        (
            {"rows": [{"stages": ["a", "b"], "shares": [0.5, 0.5], "accuracy": 1, "n": 1}]},
            "'a' has no row",
        ),
        (
            {"rows": [{"stages": ["a", "a"], "shares": [0.5, 0.5], "accuracy": 1, "n": 1}]},
            "twice in a row",
        ),
    ],
)
def test_refuses_a_wrong_file(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        QualityTable.read(written(tmp_path, **changes))
    assert caught.value.file.endswith("quality.json")


def test_refuses_a_missing_or_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json"):
        QualityTable.read(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match=r"bad\.json"):
        QualityTable.read(tmp_path / "bad.json")
