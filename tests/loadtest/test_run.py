from __future__ import annotations

import json
import random

import httpx
import pytest

from loadtest.run import Sent, arrivals, load, parser, quantile, summarise, table


def test_arrivals_are_poisson() -> None:
    """Mean and variance of the count in a unit of time are the rate."""
    times = arrivals(5.0, 2000.0, random.Random(1))
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


def test_a_summary_counts_failures_and_voids_overruns() -> None:
    good = Sent(0, 1.0, "ok", "cloud:20", True, 100, 1, True)
    late = Sent(0, 3.0, "ok", "cloud:20", False, 100, 0, True)
    full = Sent(0, 0.1, "queue_full")
    summary = summarise([good, late, full], seconds=2, elapsed_s=4)
    assert (summary.offered_per_s, summary.achieved_per_s) == (1.5, 0.5)
    assert summary.met_deadline == pytest.approx(1 / 3)
    assert summary.outcomes == {"ok": 2, "queue_full": 1}
    assert summary.valid
    assert not summarise([Sent(0, 1, "ok", "p", True, 10, 1, True)], 1, 1).valid


async def test_load_sends_what_is_due_and_reads_the_answers() -> None:
    seen: list[dict[str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if request.url.path == "/v1/plan":
            return httpx.Response(200, json={"deadline_ms": 5000})
        seen.append(body)
        if len(seen) % 2:
            return httpx.Response(429, json={"error": {"code": "queue_full"}})
        span = {"start": 0, "stop": 20, "overruns": 0}
        report = {
            "plan": "cloud:20",
            "images": [{"spans": [span]}],
            "emulated": {"stages": ["cloud"], "links": []},
        }
        return httpx.Response(200, json={"diffusion_edge": report})

    args = parser().parse_args(["--rate", "200", "--seconds", "0.1", "--policy", "cloud-only"])
    sent, elapsed_s = await load(args, httpx.MockTransport(answer))
    summary = summarise(sent, args.seconds, elapsed_s)
    assert summary.sent == len(seen) == len(arrivals(200, 0.1, random.Random(0)))
    assert summary.outcomes["ok"] == len(seen) // 2
    assert summary.plans == {"cloud:20": len(seen) // 2}
    assert summary.emulated
    assert all(b["diffusion_edge"] == {"policy": "cloud-only"} for b in seen)
    assert len({b["seed"] for b in seen}) == len(seen)
    assert table(summary).row_count > 10
