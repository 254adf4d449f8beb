"""What is shown of a load that changes: plans, hand-off steps, by time window."""

from __future__ import annotations

import json

import httpx
import pytest

from diffusion_edge.bench.answered import Answer
from loadtest.run import changes, load, parser
from loadtest.windows import Throttle, edges, windows

SLOW = Throttle(("device", "cloud"), 0.05, 15.0)


def ok(due_s: float, plan: str, in_time: bool = True) -> Answer:
    return Answer(due_s, 1.0, "ok", plan, in_time)


def test_windows_begin_where_the_rate_or_a_link_changes() -> None:
    assert edges([0.1, 0.6], 40.0, [SLOW], 1) == [0.0, 15.0, 20.0, 40.0]
    assert edges([0.1], 8.0, [], 4) == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_a_window_tells_plans_and_where_they_hand_off() -> None:
    answers = [
        ok(1.0, "device:16,edge:4"),
        ok(2.0, "device:10,cloud:6,edge:4", in_time=False),
        Answer(3.0, 0.1, "queue_full"),
        ok(20.0, "cloud:20"),
    ]
    first, second, last = windows(answers, [0.1, 0.6], 40.0, [SLOW], 1)
    assert (first.rate_per_s, first.throttled, first.sent) == (0.1, "", 3)
    assert first.met_deadline == pytest.approx(1 / 3)
    assert first.plans == {"device:16,edge:4": 1, "device:10,cloud:6,edge:4": 1}
    assert (first.handed_off, first.handoff_step) == (2, 13.0)
    assert first.steps == {"cloud": 3.0, "device": 13.0, "edge": 4.0}
    assert (second.throttled, second.sent, second.met_deadline) == ("device-cloud x 0.05", 0, None)
    assert (last.rate_per_s, last.handoff_step, last.steps) == (0.6, None, {"cloud": 20.0})
    assert changes([first, second, last]).row_count == 3


@pytest.mark.parametrize(
    "text", ["device,cloud", "device,cloud,0@5", "device,cloud,0.1@-1", "device,0.1@5", "a,b,x@1"]
)
def test_what_is_no_throttle_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"should read like|a factor is"):
        Throttle.parse(text)
    with pytest.raises(SystemExit):
        parser().parse_args(["--rate", "1", "--throttle", text])


async def test_links_are_throttled_while_requests_go_on_and_let_go_afterwards() -> None:
    told: list[tuple[float, int]] = []
    sent = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal sent
        body = json.loads(request.content)
        if request.url.path == "/v1/throttle":
            told.append((body["factor"], sent))
            return httpx.Response(200, json={})
        if request.url.path == "/v1/plan":
            return httpx.Response(200, json={"deadline_ms": 5000})
        sent += 1
        return httpx.Response(429, json={"error": {"code": "queue_full"}})

    asked = ["--rate", "100", "300", "--seconds", "0.4", "-t", "device,cloud,0.05@0.2"]
    answers, _ = await load(parser().parse_args(asked), httpx.MockTransport(answer))
    assert [factor for factor, _ in told] == [1.0, 0.05, 1.0]
    before, during, after = (count for _, count in told)
    assert before == 0
    assert 0 < during < after == len(answers)
    slow, fast = (sum(a <= one.due_s < b for one in answers) for a, b in ((0, 0.2), (0.2, 0.4)))
    assert fast > slow > 0


async def test_a_link_that_cannot_be_throttled_gets_no_load() -> None:
    paths = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        if request.url.path == "/v1/throttle":
            return httpx.Response(404, text="Not Found")
        return httpx.Response(200, json={"deadline_ms": 5000})

    asked = ["--rate", "100", "--seconds", "0.1", "-t", "device,cloud,0.05@0.05"]
    with pytest.raises(SystemExit, match="does not throttle"):
        await load(parser().parse_args(asked), httpx.MockTransport(answer))
    assert "/v1/images/generations" not in paths
