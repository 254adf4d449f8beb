from __future__ import annotations

import json
import random

import httpx
import pytest

from diffusion_edge.bench.open_loop import poisson
from loadtest.run import Sent, load, parser, summarise, table


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
    assert summary.sent == len(seen) == len(poisson(200, 0.1, random.Random(0)))
    assert summary.outcomes["ok"] == len(seen) // 2
    assert summary.plans == {"cloud:20": len(seen) // 2}
    assert summary.emulated
    assert all(b["diffusion_edge"] == {"policy": "cloud-only"} for b in seen)
    assert len({b["seed"] for b in seen}) == len(seen)
    assert table(summary).row_count > 10
