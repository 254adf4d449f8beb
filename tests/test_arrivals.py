"""Streams of arrivals: how many come when, and what recordings say."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice, takewhile
from pathlib import Path

import pytest

from diffusion_edge import arrivals
from diffusion_edge.errors import InvalidRequest


def until(seconds: float, stream: Iterator[float]) -> list[float]:
    return list(takewhile(lambda at: at < seconds, stream))


def between(times: list[float], start: float, stop: float) -> int:
    return sum(start <= at < stop for at in times)


def test_an_excerpt_is_as_it_came_from_anywhere_and_never_all_at_once() -> None:
    """Premises: the first three come at once."""
    times, drawn = [0.0, 0.0, 0.0, 1.0, 3.0, 7.0], set()
    for seed in range(30):
        found = arrivals.excerpt(times, 3, random.Random(seed))
        assert found[0] == 0.0 < found[-1]
        drawn.add(tuple(found))
    assert drawn == {(0.0, 0.0, 1.0), (0.0, 1.0, 3.0), (0.0, 2.0, 6.0)}
    assert arrivals.excerpt(times, 50, random.Random(0)) == times


def test_bursts_come_together() -> None:
    times = list(islice(arrivals.bursty(4.0, 8, random.Random(0)), 800))
    assert len(set(times)) == 100
    assert times[-1] == pytest.approx(200.0, rel=0.3)


def test_a_day_is_quiet_at_first_and_busy_in_the_middle() -> None:
    times = until(1000.0, arrivals.diurnal(5.0, 1.0, 1000.0, random.Random(0)))
    assert len(times) == pytest.approx(5000, rel=0.05)
    assert between(times, 450.0, 550.0) > 8 * between(times, 0.0, 100.0)


def test_a_crowd_comes_when_it_comes() -> None:
    times = until(300.0, arrivals.crowd(2.0, 10.0, 100.0, 50.0, random.Random(0)))
    assert between(times, 100.0, 150.0) == pytest.approx(1000, rel=0.1)
    assert between(times, 0.0, 100.0) + between(times, 150.0, 300.0) == pytest.approx(500, rel=0.15)


def test_a_recording_begins_again_and_can_be_faster() -> None:
    times = list(islice(arrivals.recorded([0.0, 1.0, 4.0]), 6))
    assert times == [0.0, 1.0, 4.0, 6.0, 7.0, 10.0]
    faster = list(islice(arrivals.recorded([0.0, 1.0, 4.0], rate=1.0), 6))
    assert faster == pytest.approx([at / 2 for at in times])


def test_a_file_is_read_from_its_first_row_on(tmp_path: Path) -> None:
    file = tmp_path / "some.csv"
    file.write_text("t_s,tokens_in\n5.0,1\n5.0,2\n7.5,3\n")
    assert arrivals.read_arrivals(file) == [0.0, 0.0, 2.5]
    for wrong in ("t_s\n1.0\n", "t_s\n2.0\n1.0\n", "at\n1.0\n", "t_s\na\nb\n", "t_s\n1.0\n1.0\n"):
        file.write_text(wrong)
        with pytest.raises(InvalidRequest, match="some"):
            arrivals.read_arrivals(file)
