"""Arrivals, latencies from the time that was due, and the search for a rate."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_edge.bench import open_loop
from diffusion_edge.bench.open_loop import Bisection, bursty, drive, poisson, quantile
from tests.fakes import FakeClock


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
    assert [quantile(values, q) for q in (0.25, 0.5, 0.75)] == [1.0, 2.0, 3.0]
    assert quantile([], 0.5) is None
    assert quantile([7.0], 0.5) == 7.0


@pytest.mark.parametrize(("share", "fewest"), [(0.75, 4), (0.9, 10), (0.95, 20), (0.99, 100)])
def test_a_tail_of_few_values_is_not_their_maximum(share: float, fewest: int) -> None:
    values = [float(i) for i in range(1, fewest + 1)]
    assert quantile(values, share) == fewest - 1
    assert quantile(values[:-1], share) is None


def test_bursts_come_at_once_and_keep_the_mean_rate() -> None:
    times = bursty(6.0, 2000.0, random.Random(1), 4)
    assert len(times) / 2000 == pytest.approx(6.0, rel=0.1)
    for first in range(0, len(times), 4):
        assert len(set(times[first : first + 4])) == 1
    assert len(set(times)) == len(times) / 4


async def test_a_slow_answer_holds_nothing_back() -> None:
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


class LateClock(FakeClock):
    """Wakes who sleeps a second too late, as a busy client does."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds + 1.0)


async def test_a_latency_counts_from_when_the_request_was_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither from the start of the load (6 s) nor from when it was sent (3 s)."""
    clock = LateClock()
    start, sent_at = clock.now(), []
    monkeypatch.setattr(open_loop, "time", SimpleNamespace(monotonic=clock.now))
    monkeypatch.setattr(
        open_loop, "asyncio", SimpleNamespace(sleep=clock.sleep, gather=asyncio.gather)
    )

    async def send(number: int) -> bool:
        sent_at.append(clock.now() - start)
        clock.advance(3.0)
        return True

    (one,) = await drive(send, [2.0])
    assert sent_at == [3.0]
    assert (one.due_s, one.latency_s) == (2.0, 4.0)


# ---------------------------------------------------------------------------- the search


@given(st.floats(0.31, 2.9))
def test_a_search_closes_in_on_the_rate_that_holds(truth: float) -> None:
    search = Bisection(0.3, 3.0)
    for _ in range(20):
        search = search.after(search.rate <= truth)
    assert search.holds is not None
    assert search.fails is not None
    assert search.holds <= truth <= search.fails
    assert search.fails / search.holds < 1.0001


@pytest.mark.parametrize("holds", [True, False])
def test_an_end_of_the_range_is_no_finding(holds: bool) -> None:
    """Only rates that were tried are reported."""
    search, tried = Bisection(0.3, 3.0), []
    for _ in range(5):
        tried.append(search.rate)
        search = search.after(holds)
    assert search.holds == (max(tried) if holds else None)
    assert search.fails == (None if holds else min(tried))
    assert 0.3 < min(tried) <= max(tried) < 3.0
