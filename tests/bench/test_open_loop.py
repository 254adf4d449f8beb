"""Arrivals, latencies from the time that was due, and the search for a rate."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_edge.bench.open_loop import Bisection, bursty, drive, poisson, quantile


def test_arrivals_are_poisson() -> None:
    """Mean and variance of the count in a unit of time are the rate."""
    times = poisson(5.0, 2000.0, random.Random(1))
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 2000
    counts = [0] * 2000
    for at in times:
        counts[int(at)] += 1
    mean = sum(counts) / len(counts)
    variance = sum((c - mean) ** 2 for c in counts) / len(counts)
    assert mean == pytest.approx(5, rel=0.05)
    assert variance == pytest.approx(5, rel=0.15)


def test_quantiles() -> None:
    values = [3.0, 1.0, 2.0, 4.0]
    assert [quantile(values, q) for q in (0.25, 0.5, 0.75, 0.99)] == [1.0, 2.0, 3.0, 4.0]
    assert quantile([], 0.5) is None


def test_bursts_come_at_once_and_keep_the_mean_rate() -> None:
    times = bursty(6.0, 2000.0, random.Random(1), 4)
    assert len(times) / 2000 == pytest.approx(6.0, rel=0.1)
    for first in range(0, len(times), 4):
        assert len(set(times[first : first + 4])) == 1
    assert len(set(times)) == len(times) / 4


async def test_a_slow_answer_holds_nothing_back_and_counts_from_when_it_was_due() -> None:
    """The first is answered only when the last has been sent."""
    all_sent = asyncio.Event()

    async def send(number: int) -> bool:
        if number == 0:
            await all_sent.wait()
        if number == 2:
            all_sent.set()
        return number != 1

    slow, refused, last = await drive(send, [0.0, 0.01, 0.02])
    assert (slow.ok, refused.ok, last.ok) == (True, False, True)
    assert slow.latency_s >= 0.02
    assert refused.latency_s < slow.latency_s


@given(st.floats(0.31, 2.9))
def test_a_search_closes_in_on_the_rate_that_holds(truth: float) -> None:
    search = Bisection(0.3, 3.0)
    for _ in range(20):
        search = search.after(search.rate <= truth)
    assert search.low <= truth <= search.high
    assert search.high / search.low < 1.0001
