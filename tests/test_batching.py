"""The rules of batching, on a virtual clock: who steps together, and who waits how long."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_edge.batching import (
    AGAIN,
    GAIN,
    STRETCH,
    Sample,
    best_rows,
    drained_s,
    due,
    nearest,
    next_batch,
    rows_now,
)

# ---------------------------------------------------------------------------- one boundary


def test_the_one_due_first_steps_with_those_that_can_share_its_pass() -> None:
    samples = [
        Sample("small", 1, due=9.0, cells=4),
        Sample("large", 1, due=5.0, cells=16),
        Sample("small", 1, due=4.0, cells=4),
        Sample("small", 1, due=7.0, cells=4),
    ]
    assert next_batch(samples, 8) == [2, 3, 0]
    assert next_batch(samples, 2) == [2, 3]
    assert next_batch(samples[:2], 8) == [1]


def test_a_guided_sample_takes_two_rows_and_the_first_one_always_steps() -> None:
    samples = [Sample("g", 2, float(i), 4) for i in range(5)]
    assert next_batch(samples, 8) == [0, 1, 2, 3]
    assert next_batch(samples, 1) == [0]


def test_who_has_failed_in_a_large_pass_is_in_no_such_one_again() -> None:
    samples = [Sample("k", 1, float(i), 4, most=2 if i == 1 else None) for i in range(5)]
    assert next_batch(samples, 8) == [0, 1]
    assert next_batch(samples[1:], 8) == [0, 1]
    assert next_batch(samples, 1) == [0]
    late = [Sample("k", 1, 9.0, 4, most=2), *samples[2:]]
    assert next_batch(late, 8) == [1, 2, 3]
    assert next_batch([Sample("k", 2, 0.0, 4, most=1)], 8) == [0]


rows = st.integers(1, 16)
some = st.lists(
    st.builds(Sample, st.sampled_from("abc"), st.integers(1, 2), st.floats(0, 100), st.just(4)),
    min_size=1,
    max_size=30,
)


@given(some, rows)
def test_a_batch_fits_is_alike_and_leaves_nobody_out_who_is_due_before(
    samples: list[Sample], most: int
) -> None:
    taken = next_batch(samples, most)
    first = samples[taken[0]]
    assert len(set(taken)) == len(taken)
    assert first.due == min(sample.due for sample in samples)
    assert {samples[i].key for i in taken} == {first.key}
    used = sum(samples[i].rows for i in taken)
    assert len(taken) == 1 or used <= most
    for i, sample in enumerate(samples):
        if i not in taken and sample.key == first.key:
            earlier = sum(samples[k].rows for k in taken if samples[k].due <= sample.due)
            assert earlier + sample.rows > most


# ---------------------------------------------------------------------------- how many


@pytest.mark.parametrize(
    ("step_s", "best"),
    [
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, 8),
        ({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}, 1),
        ({1: 1.0, 2: 1.2, 4: 2.0, 8: 4.1}, 4),
        ({1: 1.0, 2: 2.1, 4: 1.9, 8: 3.9}, 4),  # one bad size does not hide a better one
        ({1: 1.0, 2: 2.0 / (GAIN - 0.01)}, 1),
    ],
)
def test_a_size_that_buys_no_throughput_is_not_used(step_s: dict[int, float], best: int) -> None:
    assert best_rows(step_s) == best


FLAT = {1: 1.0, 2: 1.2, 4: 2.4, 8: 4.8}
"""Seconds by rows: two rows pay, more do not."""


@pytest.mark.parametrize(
    ("unit", "waiting", "most", "rested_s", "rows"),
    [
        (1, 9, 32, {}, 4),  # never tried
        (1, 9, 32, {4: 0.0}, 8),
        (1, 9, 32, {4: 0.0, 8: 0.0}, 2),
        (1, 7, 32, {4: 0.0}, 2),  # it could not be filled
        (1, 9, 32, {4: AGAIN * 2.4, 8: 0.0}, 4),
        (1, 9, 32, {4: AGAIN * 2.3, 8: 0.0}, 2),
        (1, 9, 3, {}, 3),
        (1, 9, 2, {}, 2),
        (1, 9, 1, {}, 1),
        (2, 9, 32, {4: 0.0}, 8),
        (2, 9, 5, {4: 0.0}, 2),
    ],
)
def test_larger_passes_are_tried_when_filled_and_rested(
    unit: int, waiting: int, most: int, rested_s: dict[int, float], rows: int
) -> None:
    assert rows_now(FLAT, unit, waiting, most, rested_s) == rows


@pytest.mark.parametrize(
    ("rows", "found"), [(1, 10), (2, 20), (3, 20), (4, 20), (6, 80), (8, 80), (99, 80)]
)
def test_what_was_not_measured_is_taken_from_the_size_nearest_to_it(rows: int, found: int) -> None:
    assert nearest({8: 80, 1: 10, 2: 20}, rows) == found


def test_drained_counts_rows_in_full_batches() -> None:
    curve = {1: 1.0, 2: 1.0, 4: 2.0}
    assert best_rows(curve) == 2
    assert drained_s([(3, 1), (4, 2)], curve) == pytest.approx((3 + 8) * 0.5)
    assert drained_s([], curve) == 0


# ---------------------------------------------------------------------------- over time


@dataclass
class Request:
    name: str
    arrives: float
    steps: int
    deadline: float | None = None
    done: float = 0.0


def played(requests: list[Request], slots: int = 1, step_s: float = 1.0) -> dict[str, float]:
    """When each request is done if every boundary follows the rules; a batch takes `step_s`."""
    now, left = 0.0, {r.name: r.steps for r in requests}
    by_name = {r.name: r for r in requests}
    while any(left.values()):
        here = [r for r in requests if r.arrives <= now and left[r.name]]
        if not here:
            now = min(r.arrives for r in requests if left[r.name])
            continue
        samples = [
            Sample("k", 1, due(r.arrives, r.steps * step_s, r.deadline, "in-flight"), 4)
            for r in here
        ]
        now += step_s
        for index in next_batch(samples, slots):
            left[here[index].name] -= 1
            if not left[here[index].name]:
                here[index].done = now
    return {name: request.done for name, request in by_name.items()}


def test_a_long_request_does_not_block_short_ones() -> None:
    long, shorts = Request("long", 0, 100), [Request(f"s{i}", 10.0 * i + 1, 4) for i in range(5)]
    done = played([long, *shorts])
    for short in shorts:
        assert done[short.name] - short.arrives <= 4 + 1
    assert done["long"] == pytest.approx(100 + 5 * 4)


def test_a_long_request_does_not_starve() -> None:
    """However many short ones keep coming, it is done soon after it is due."""
    long, shorts = Request("long", 0, 20), [Request(f"s{i}", 4.0 * i, 4) for i in range(200)]
    done = played([long, *shorts])
    assert done["long"] <= STRETCH * 20 + 20
    assert max(done[s.name] - s.arrives for s in shorts) <= 20 + 2 * STRETCH * 4


def test_equals_are_served_in_the_order_of_arrival() -> None:
    done = played([Request(name, i * 0.1, 5) for i, name in enumerate("abc")])
    assert done["a"] < done["b"] < done["c"]


def test_an_earlier_deadline_goes_first() -> None:
    done = played([Request("calm", 0, 5), Request("urgent", 0, 5, deadline=6.0)])
    assert done == {"urgent": 5.0, "calm": 10.0}


@pytest.mark.parametrize("told", [8.0, 0.0, -3.0, 99.0])
def test_what_is_told_to_be_due_is_due_then_and_zero_is_a_time(told: float) -> None:
    assert due(7.0, 4.0, told, "in-flight") == told
    assert due(7.0, 4.0, told, "reproducible") == told


def test_what_is_not_told_is_due_by_its_own_seconds() -> None:
    assert due(7.0, 4.0, None, "in-flight") == 7.0 + STRETCH * 4.0


def test_first_come_first_served_when_off() -> None:
    assert due(7.0, 100.0, 8.0, "off") == 7.0
