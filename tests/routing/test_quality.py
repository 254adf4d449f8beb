import json
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_edge.errors import ConfigError
from diffusion_edge.plan import Plan
from diffusion_edge.routing.cost import cuts
from diffusion_edge.routing.losses import Curve, Model, StageCurve
from diffusion_edge.routing.quality import QualityTable, SizeQuality

from .views import row, symmetric, table, with_model

HERE, LARGER, OBLONG = (64, 64), (128, 128), (64, 128)

ALONE = (row(1.0, cloud=20), row(0.6, edge=20), row(0.4, device=20))
EDGE = StageCurve(stage="edge", steps=20, loss=(0.0, 0.1, 0.2))
DEVICE = StageCurve(stage="device", steps=20, loss=(0.0, 0.1, 0.5))
MODEL = Model(power=2.0, curves=(EDGE, DEVICE), hops=(Curve(steps=20, loss=(0.0, 0.2, 0.0)),))
TABLE = table(
    *ALONE,
    row(0.76, cloud=10, edge=10),
    row(0.64, edge=10, cloud=10),
    row(0.7, cloud=10, device=10),
    row(0.5, edge=10, device=10),
    model=MODEL,
)


@pytest.mark.parametrize(
    ("plan", "loss"),
    [
        ("cloud:20", 0.0),
        ("cloud:8,cloud:12", 0.0),
        ("edge:20", 0.2),
        ("cloud:10,edge:10", 0.1 + 0.2),
        ("edge:10,cloud:10", 0.1 + 0.2),
        ("cloud:15,edge:5", 0.05 + 0.1),
        ("cloud:15,device:5", 0.2 + 0.1),
        ("cloud:8,edge:8,device:4", 0.08 + 0.16 + 0.16 + 0.08),
        ("cloud:10,edge:5,edge:5", 0.1 + 0.2),
        ("cloud:20,edge:20", 0.1 + 0.2),  # half of 40 steps is as half of 20
    ],
)
def test_the_model_by_hand(plan: str, loss: float) -> None:
    assert TABLE.relative(Plan.parse(plan), HERE) == pytest.approx(1 - loss**2)


def test_between_two_numbers_of_steps_curves_are_linear_in_the_logarithm() -> None:
    few = StageCurve(stage="edge", steps=5, loss=(0.0, 0.8))
    many = StageCurve(stage="edge", steps=20, loss=(0.0, 0.2))
    rows = [row(0.5, **{stage: n}) for stage in ("cloud", "edge") for n in (5, 20)]
    cloud = StageCurve(stage="cloud", steps=5, loss=(0.0, 0.4))
    whole = cloud.model_copy(update={"steps": 20, "loss": (0.0, 0.0)})
    both = table(*rows, model=Model(power=1.0, curves=(many, few, cloud, whole)))
    found = [both.relative(Plan.parse(f"edge:{n}"), HERE) for n in (1, 5, 10, 20, 80)]
    assert found == pytest.approx([0.0, 0.2, 0.5, 0.8, 0.8])
    assert both.relative(Plan.parse("cloud:10"), HERE) == pytest.approx(0.8)


@pytest.mark.parametrize(
    "plan", ["device:10,edge:10", "device:5,cloud:5,edge:10", "edge:10,tpu:10", "tpu:20"]
)
def test_orders_that_were_not_measured_are_unknown(plan: str) -> None:
    parsed = Plan.parse(plan)
    assert not TABLE.knows([span.stage for span in parsed.spans], 20, HERE)
    assert TABLE.relative(parsed, HERE) == 0.0
    assert TABLE.bound(parsed, HERE) == 0.0


def test_an_order_of_three_is_known_by_its_twos_or_by_itself() -> None:
    assert TABLE.knows(["cloud", "edge", "device"], 20, HERE)
    assert TABLE.knows(["cloud", "edge", "cloud"], 20, HERE)
    assert not TABLE.knows(["device", "cloud", "edge"], 20, HERE)
    itself = table(*TABLE.sizes[0].rows, row(0.5, device=5, cloud=5, edge=10), model=MODEL)
    assert itself.knows(["device", "cloud", "edge"], 20, HERE)
    assert not itself.knows(["cloud", "edge", "cloud", "edge"], 20, HERE)


def test_an_order_of_three_needs_also_the_two_at_its_ends() -> None:
    """As much as cloud, edge and edge, device say, nothing is known of cloud and device."""
    without = [each for each in TABLE.sizes[0].rows if each.stages != ("cloud", "device")]
    known = table(*without, model=MODEL)
    assert known.knows(["cloud", "edge"], 20, HERE)
    assert known.knows(["edge", "device"], 20, HERE)
    assert not known.knows(["cloud", "edge", "device"], 20, HERE)
    assert known.relative(Plan.parse("cloud:8,edge:8,device:4"), HERE) == 0.0


def test_what_was_not_measured_is_unknown_but_for_the_reference_alone() -> None:
    """At another size, and in fewer steps than any; more steps count as the most."""
    for size in (LARGER, OBLONG):
        assert TABLE.relative(Plan.parse("cloud:20"), size) == 1.0
        assert TABLE.bound(Plan.parse("cloud:10,cloud:15"), size) == 1.0
        assert TABLE.knows(["cloud"], 20, size)
        for plan in ("edge:20", "cloud:19", "cloud:10,edge:10"):
            assert TABLE.relative(Plan.parse(plan), size) == 0.0
            assert TABLE.bound(Plan.parse(plan), size) == 0.0
    for plan in ("cloud:19", "edge:19", "cloud:10,edge:9"):
        parsed = Plan.parse(plan)
        assert not TABLE.knows([span.stage for span in parsed.spans], 19, HERE)
        assert TABLE.relative(parsed, HERE) == 0.0
    assert TABLE.relative(Plan.parse("edge:21"), HERE) == pytest.approx(1 - 0.2**2)
    assert TABLE.counts(HERE) == TABLE.counts(LARGER) == (20,)


def test_a_family_without_a_table_knows_only_its_reference_in_its_steps() -> None:
    unknown = QualityTable.unknown("mine", steps=20)
    assert unknown.relative(Plan.parse("cloud:20"), HERE) == 1.0
    assert unknown.bound(Plan.parse("cloud:10,cloud:10"), LARGER) == 1.0
    assert unknown.relative(Plan.parse("cloud:19"), HERE) == 0.0
    assert unknown.relative(Plan.parse("edge:20"), HERE) == 0.0
    assert unknown.relative(Plan.parse("cloud:19,edge:1"), HERE) == 0.0
    assert QualityTable.unknown("mine", "large", 3).relative(Plan.parse("large:3"), HERE) == 1.0


def test_every_size_has_its_own_models_and_bounds_are_never_above_estimates() -> None:
    cautious, careless = (
        Model(power=power, curves=MODEL.curves, hops=MODEL.hops) for power in (1.0, 3.0)
    )
    (here,), (there,) = TABLE.sizes, with_model(TABLE, cautious, careless).sizes
    here, there = here.model_copy(update={"low": cautious}), there.model_copy(update={"size": 128})
    both = TABLE.model_copy(update={"sizes": (here, there)})
    plan, lost = Plan.parse("cloud:10,edge:10"), 0.1 + 0.2
    assert both.relative(plan, HERE) == pytest.approx(1 - lost**2)
    assert both.bound(plan, HERE) == pytest.approx(1 - lost)
    assert both.relative(plan, LARGER) == both.bound(plan, LARGER) == pytest.approx(1 - lost)
    assert both.stages == ("cloud", "device", "edge")


# ---------------------------------------------------------------------------- properties


def _changes(order: tuple[str, ...]) -> bool:
    return all(a != b for a, b in pairwise(order))


losses = st.lists(st.floats(0, 0.3), min_size=4, max_size=4)


@st.composite
def tables(draw: st.DrawFn) -> QualityTable:
    """Every order is known; device loses more than edge everywhere."""
    slopes = np.array([draw(losses), draw(losses)]).cumsum(axis=0).cumsum(axis=1)
    curves = tuple(
        StageCurve(stage=stage, steps=20, loss=(0.0, *map(float, loss)))
        for stage, loss in zip(("edge", "device"), slopes, strict=True)
    )
    hops = (Curve(steps=20, loss=(0.0, *draw(losses), 0.0)),)
    model = Model(power=draw(st.floats(0.25, 4)), curves=curves, hops=hops)
    return with_model(symmetric(), model)


parts = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(18, 24))
names = st.sampled_from(
    [order for order in product(("cloud", "edge", "device"), repeat=3) if _changes(order)]
)
BETTER = {"device": "edge", "edge": "cloud", "cloud": "cloud"}


@settings(deadline=None, max_examples=200)
@given(known=tables(), steps=parts, stages=names, span=st.integers(0, 2))
def test_quality_is_in_bounds_and_a_better_stage_never_lowers_it(
    known: QualityTable, steps: tuple[int, ...], stages: tuple[str, ...], span: int
) -> None:
    """Also where the better stage is a neighbour's, and a hand-off is saved."""
    at = tuple(zip(stages, steps, strict=True))
    better = (*at[:span], (BETTER[stages[span]], steps[span]), *at[span + 1 :])
    before, after = known.relative(Plan.of(at), HERE), known.relative(Plan.of(better), HERE)
    assert 0 <= before <= after + 1e-9 <= 1 + 1e-9
    assert known.relative(Plan.of((("cloud", sum(steps)),)), HERE) == 1.0


@settings(deadline=None, max_examples=50)
@given(known=tables(), order=st.permutations(["device", "edge", "cloud"]))
def test_many_plans_at_once_are_as_each_alone(known: QualityTable, order: list[str]) -> None:
    counts = cuts(23, 3)
    together = known.relative_all(order, counts, HERE)
    alone = [
        known.relative(Plan.of(tuple(zip(order, map(int, each), strict=True))), HERE)
        for each in zip(*counts, strict=True)
    ]
    assert together == pytest.approx(alone)


# ---------------------------------------------------------------------------- the file


def written(folder: Path, **changes: Any) -> Path:
    """TABLE as a file, with these changes; fields of a size are changed in its only size."""
    content = json.loads(TABLE.model_dump_json())
    of_size = {key: changes.pop(key) for key in list(changes) if key in SizeQuality.model_fields}
    content["sizes"][0] |= of_size
    (folder / "quality.json").write_text(json.dumps(content | changes))
    return folder / "quality.json"


def a_row(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(row(0.8, cloud=20).model_dump_json())
    return content | changes


def a_model(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(MODEL.model_dump_json())
    return content | changes


def test_reads_its_file(tmp_path: Path) -> None:
    assert QualityTable.read(written(tmp_path)) == TABLE


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metrik": "x"}, "metrik"),
        ({"seed": "20"}, "seed"),
        ({"rows": [a_row(stages=["cloud", "edge"])]}, "2 stages but steps for 1"),
        ({"size": 0}, r"sizes\.0\.size"),
        ({"sizes": [json.loads(TABLE.sizes[0].model_dump_json())] * 2}, "size 64 occurs twice"),
        ({"steps": 10}, "size 64: the reference 'cloud' has no row of 10 steps"),
        ({"confidence": 1.0}, "confidence"),
        ({"rows": [a_row(score=1.2)]}, r"rows\.0\.score"),
        ({"rows": [a_row(score=-0.1)]}, r"rows\.0\.score"),
        ({"rows": [a_row()] * 2}, "plan cloud:20 occurs twice"),
        ({"rows": [a_row(stages=["edge"])]}, "the reference 'cloud' has no row of 20 steps"),
        ({"rows": [a_row(stages=["a", "a"], steps=[5, 15])]}, "twice in a row"),
        (
            {"rows": [a_row(), a_row(stages=["cloud", "edge"], steps=[5, 15])]},
            "'edge' has no row of its own of 20 steps",
        ),
        ({"model": a_model(curves=[])}, "size 64, model: 'device' has no loss curve of 20 steps"),
        ({"low": a_model(curves=[])}, "size 64, low: 'device' has no loss curve of 20 steps"),
        ({"model": a_model(power=0.0)}, r"model\.power"),
        (
            {"model": a_model(curves=[{"stage": "edge", "steps": 20, "loss": [0.0, 0.2, 0.1]}])},
            "the loss of 'edge' should start at 0 and never fall",
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
