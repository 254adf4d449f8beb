from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_edge.errors import InvalidRequest
from diffusion_edge.traces import Trace, joined, read_rates, read_round_trips, transfer_s


def trace(*values: float, each_s: float = 1.0) -> Trace:
    starts = np.arange(len(values)) * each_s
    return Trace(starts, np.array(values, dtype=float), len(values) * each_s)


def test_a_transfer_takes_until_its_bytes_have_passed() -> None:
    link = trace(100.0, 50.0)
    assert transfer_s(link, 0.0, 100) == pytest.approx(1.0)
    assert transfer_s(link, 0.5, 75) == pytest.approx(1.0)  # 50 at once, 25 at half the rate
    assert transfer_s(link, 0.0, 450 + 100) == pytest.approx(7.0)  # three periods and one second
    assert transfer_s(link, 1.25, 0) == 0.0


def test_an_outage_is_waited_for() -> None:
    link = trace(100.0, 0.0, 0.0, 100.0)
    assert transfer_s(link, 1.5, 10) == pytest.approx(1.6)
    assert transfer_s(link, 0.0, 100) == pytest.approx(1.0)  # not until the outage is over
    last = trace(100.0, 0.0)
    assert transfer_s(last, 0.0, 200) == pytest.approx(3.0)
    with pytest.raises(InvalidRequest, match="always 0"):
        transfer_s(trace(0.0), 0.0, 1)


RATES = st.lists(st.sampled_from([0.0, 1.0, 7.0, 1000.0]), min_size=1, max_size=6)


@given(RATES.filter(any), st.floats(0.0, 50.0), st.floats(0.5, 5000.0), st.floats(0.5, 5000.0))
def test_two_transfers_one_after_another_take_what_one_takes(
    rates: list[float], start_s: float, first: float, second: float
) -> None:
    link = trace(*rates, each_s=0.5)
    split = transfer_s(link, start_s, first)
    split += transfer_s(link, start_s + split, second)
    assert split == pytest.approx(transfer_s(link, start_s, first + second), rel=1e-6, abs=1e-6)
    passed = link.until(start_s + split) - link.until(start_s)
    assert passed == pytest.approx(first + second, rel=1e-6, abs=1e-2)


def test_values_hold_until_the_next_and_begin_again() -> None:
    link = trace(3.0, 5.0)
    assert [link.at(time) for time in (0.0, 0.99, 1.0, 1.99, 2.0, 5.0)] == [3, 3, 5, 5, 3, 5]
    assert link.mean == 4.0
    assert link.scaled(0.5).at(1.0) == 2.5


@given(st.lists(st.floats(0.0, 9.0), min_size=1, max_size=6), st.floats(0.0, 20.0))
def test_a_later_trace_is_the_same_from_another_start(rates: list[float], time_s: float) -> None:
    link = trace(*rates, each_s=0.5)
    later = link.later(time_s)
    assert later.period_s == link.period_s
    assert later.mean == pytest.approx(link.mean)
    for at_s in np.arange(0.13, 4.0, 0.37):
        passed = link.until(time_s + at_s) - link.until(time_s)
        assert later.until(at_s) == pytest.approx(passed, abs=1e-6)
    assert np.array_equal(link.later(0.0).values, link.values)


def test_traces_are_joined_for_as_long_as_asked() -> None:
    link = joined([trace(1.0, 2.0), trace(7.0)], 3.0)
    assert [link.at(time + 0.5) for time in range(6)] == [1, 2, 1, 7, 7, 7]
    assert link.period_s == 6.0


@pytest.mark.parametrize(
    ("starts", "values", "period"),
    [([0.0, 1.0], [1.0], 2.0), ([1.0], [1.0], 2.0), ([0.0, 0.0], [1.0, 1.0], 2.0),
     ([0.0], [1.0], 0.0), ([0.0], [-1.0], 1.0), ([0.0], [float("nan")], 1.0), ([], [], 1.0)],
)  # fmt: skip
def test_what_is_no_trace_is_refused(
    starts: list[float], values: list[float], period: float
) -> None:
    with pytest.raises(InvalidRequest):
        Trace(np.array(starts), np.array(values), period)


def test_files_are_read(tmp_path: Path) -> None:
    rates = tmp_path / "a.csv"
    rates.write_text("t_s,bytes_per_s\n10,100\n12,300\n14,0\n")
    found = read_rates(rates)
    assert (found.period_s, found.at(2.5), found.mean) == (6.0, 300.0, pytest.approx(400 / 3))
    pings = tmp_path / "b.csv"
    pings.write_text("t_s,rtt_s,segment\n0,0.1,0\n0.2,0.2,0\n300,0.3,1\n300.2,0.4,1\n")
    trips = read_round_trips(pings)
    assert trips.period_s == pytest.approx(0.8)  # without the minutes between the segments
    assert [trips.at(time) for time in (0.1, 0.3, 0.5, 0.7)] == [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("text", "said"),
    [("t_s,rate\n0,1\n", "bytes_per_s"), ("t_s,bytes_per_s\n0,x\n", "numbers"),
     ("t_s,bytes_per_s\n", "no rows"), ("t_s,bytes_per_s\n0,1\n0,2\n", "must grow")],
)  # fmt: skip
def test_files_that_are_no_traces_are_told(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=said) as raised:
        read_rates(file)
    assert str(file) in raised.value.message
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_rates(tmp_path / "none.csv")
