"""Goals and comparisons, from results that were made by hand."""

from __future__ import annotations

from math import inf, isinf

import pytest

from diffusion_edge.bench.proof import figures

from .made import found, result


def test_the_share_of_the_oracle_and_of_what_nobody_earns_more_than() -> None:
    """Premises: two seeds, means 0.6 and 0.8, at most 1."""
    one = found(
        0,
        (result("elastic", earned=0.5), result("oracle", earned=0.7)),
        (result("elastic", earned=0.7), result("oracle", earned=0.9)),
        most=1.0,
    )
    assert figures.share(one) == pytest.approx(0.75)
    assert figures.share_of_most(one) == pytest.approx(0.6)
    assert figures.gap(one) == pytest.approx(0.2)
    nothing = found(1, (result("elastic", earned=0.0), result("oracle", earned=0.0)))
    assert figures.share(nothing) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "times"), [(0.9, 0.5, 5.0), (1.0, 0.5, inf), (1.0, 1.0, None)]
)
def test_misses_count_where_there_are_any(ours: float, theirs: float, times: float | None) -> None:
    one = found(0, (result("elastic", in_time=ours), result("hindsight", in_time=theirs)))
    assert figures.fewer_misses(one) == (times if times is None else pytest.approx(times))


def test_cloud_seconds_and_latency_count_where_quality_is_held_by_its_bound() -> None:
    """Premises: the mean quality is fine, its bound is not."""
    cloud = result("cloud-only", cloud_s=4.0, latency_s=5.0)
    good = found(0, (result("elastic"), cloud))
    assert figures.cloud_saved(good) == pytest.approx(0.75)
    assert figures.faster(good) == pytest.approx(2.5)
    assert figures.faster(found(0, (result("elastic"), cloud), ratio="1:4:16")) is None
    unsure = found(0, (result("elastic", quality=0.99, bound=0.979), cloud))
    assert figures.cloud_saved(unsure) is None
    assert figures.faster(unsure) is None


def test_goals_are_medians_of_cells_and_say_what_was_reached() -> None:
    rows = [
        found(k, (result("elastic", in_time=1 - 0.1), result("hindsight", in_time=1 - 0.1 * times)))
        for k, times in enumerate((1.0, 3.0, 9.0))
    ]
    shares, misses, saved, _ = figures.goals(rows)
    assert misses.values == pytest.approx((1.0, 3.0, 9.0))
    assert misses.value == pytest.approx(3.0)
    assert misses.reached == "reached, the aim not"
    assert (shares.value, saved.reached) == (None, "not measured")
    free = figures.goals([found(0, (result("elastic", in_time=1.0), result("hindsight")))])[1]
    assert free.value is not None
    assert isinf(free.value)


def test_a_policy_that_is_better_in_one_cell_is_told_with_that_cell() -> None:
    """Premises: 0.1 worse in two cells; 0.1 better in the third; seeds hardly differ."""
    rows = []
    for number, gain in enumerate((-0.1, -0.1, 0.1)):
        seeds = [
            (result("elastic", earned=0.5), result("earliest", earned=0.5 + gain + wobble))
            for wobble in (-1e-4, 0.0, 1e-4)
        ]
        rows.append(found(number, *seeds))
    (earliest,) = figures.against(rows)
    assert earliest.policy == "earliest"
    assert earliest.overall.mean == pytest.approx(0.1 / 3)
    assert (earliest.better, earliest.worse, earliest.surely) == (2, (2,), (2,))


def test_every_policy_is_a_point_over_cloud_only_by_load_and_over_all() -> None:
    cloud = result("cloud-only", latency_s=4.0, cost=2.0)
    late = result("elastic", in_time=0.5)
    rows = [found(0, (result("elastic"), cloud), load=0.3), found(1, (late, cloud), load=0.9)]
    ours, _ = figures.points(rows)
    assert (ours.latency, ours.cost, ours.load) == (0.5, 0.5, None)
    assert ours.misses == pytest.approx(0.3)
    by_load = [p for p in figures.by_load(rows) if p.policy == "elastic"]
    assert [(p.load, pytest.approx(p.misses)) for p in by_load] == [(0.3, 0.1), (0.9, 0.5)]
    alone = figures.points([found(0, (result("elastic", quality=None),))])
    assert (alone[0].latency, alone[0].quality) == (None, None)
