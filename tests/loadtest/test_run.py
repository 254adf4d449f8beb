from __future__ import annotations

import io
import json
import random

import httpx
import pytest
from rich.console import Console

from diffusion_edge.bench.answered import Answer
from diffusion_edge.bench.open_loop import poisson
from loadtest import run
from loadtest.run import Summary, load, main, parser, summarise, table
from tests.answering import answering, behind_a_dead_proxy


def test_a_summary_counts_failures_and_voids_overruns() -> None:
    good = Answer(0, 1.0, "ok", "cloud:20", True, 100, 1, True)
    late = Answer(0, 3.0, "ok", "cloud:20", False, 100, 0, True)
    full = Answer(0, 0.1, "queue_full")
    summary = summarise([good, late, full], seconds=2, elapsed_s=4)
    assert (summary.offered_per_s, summary.achieved_per_s) == (1.5, 0.5)
    assert summary.met_deadline == pytest.approx(1 / 3)
    assert summary.outcomes == {"ok": 2, "queue_full": 1}
    assert summary.valid
    assert not summarise([Answer(0, 1, "ok", "p", True, 10, 1, True)], 1, 1).valid


def test_a_run_without_an_answer_shows_nothing() -> None:
    """Neither that it is valid nor that nothing was emulated."""
    summary = summarise([Answer(0, 0.1, "ConnectError"), Answer(0, 120.0, "ReadTimeout")], 2, 120)
    assert not summary.valid
    assert (summary.sent, summary.ok, summary.achieved_per_s) == (2, 0, 0.0)
    assert summary.met_deadline == 0.0
    assert (summary.emulated, summary.overrun_share) == (None, None)
    assert (summary.p50_s, summary.p90_s, summary.p99_s) == (None, None, None)


def test_a_run_that_sent_nothing_has_no_shares() -> None:
    summary = summarise([], 1, 0)
    assert not summary.valid
    assert summary.met_deadline is None
    assert "None" not in printed(summary)


def test_percentiles_are_of_answers_and_not_of_too_few() -> None:
    answers = [Answer(0, float(i), "ok", "cloud:20", True, 20) for i in range(1, 11)]
    summary = summarise([*answers, Answer(0, 100.0, "ReadTimeout")], 1, 10)
    assert (summary.p50_s, summary.p90_s, summary.p99_s) == (5.0, 9.0, None)
    assert summary.valid


def printed(summary: Summary) -> str:
    console = Console(record=True, file=io.StringIO())
    console.print(table(summary))
    return console.export_text()


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


PLAN = {"deadline_ms": 5000}


def arguments(*more: str) -> list[str]:
    return ["--rate", "100", "--seconds", "0.1", *more]


async def outcomes(status: int, body: str) -> set[str]:
    """What a load makes of a server that gives every request for an image this answer."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/plan":
            return httpx.Response(200, json=PLAN)
        return httpx.Response(status, text=body)

    sent, _ = await load(parser().parse_args(arguments()), httpx.MockTransport(answer))
    return {one.outcome for one in sent}


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (503, '{"error": {"code": "stage_lost"}}', "stage_lost"),
        (502, "<html>bad gateway</html>", "http_502"),
        (500, '{"error": "an error of somebody else"}', "http_500"),
        (500, '["no error of ours"]', "http_500"),
        (404, '{"detail": "Not Found"}', "http_404"),
        (200, "{}", "http_200"),
        (200, "[]", "http_200"),
        (200, '{"diffusion_edge": {"plan": "cloud:20", "images": [{}]}}', "http_200"),
    ],
)
async def test_answers_of_others_are_counted_and_end_no_load(
    status: int, body: str, outcome: str
) -> None:
    assert await outcomes(status, body) == {outcome}


async def test_a_latency_counts_from_when_the_request_was_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that are sent 50 seconds late have taken 50 seconds already, answered or not."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/plan":
            return httpx.Response(200, json=PLAN)
        if json.loads(request.content)["seed"] == 1:
            raise httpx.ReadTimeout("too late", request=request)
        span = {"start": 0, "stop": 20, "overruns": 0}
        report = {"plan": "cloud:20", "images": [{"spans": [span]}], "emulated": {}}
        return httpx.Response(200, json={"diffusion_edge": report})

    monkeypatch.setattr(run, "poisson", lambda *_: [-50.0, -50.0])
    sent, _ = await load(parser().parse_args(arguments()), httpx.MockTransport(answer))
    assert [one.outcome for one in sent] == ["ok", "ReadTimeout"]
    assert all(50.0 <= one.latency_s < 100.0 for one in sent)
    assert not any(one.in_time for one in sent)


def test_a_server_on_this_machine_is_loaded_without_the_proxy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behind_a_dead_proxy(monkeypatch)
    with answering(json.dumps(PLAN)) as url:
        monkeypatch.setattr("sys.argv", ["run", *arguments("--url", url)])
        main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["outcomes"] == {"http_200": found["sent"]}


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, '{"error": {"message": "no such policy"}}', "refuses such a request: no such policy"),
        (502, "<html>bad gateway</html>", "does not answer like this server"),
        (200, "[]", "does not answer like this server"),
        (200, "{}", "does not answer like this server"),
    ],
)
def test_a_server_that_cannot_plan_gets_no_load(
    monkeypatch: pytest.MonkeyPatch, status: int, body: str, said: str
) -> None:
    with answering(body, status) as url:
        monkeypatch.setattr("sys.argv", ["run", *arguments("--url", url)])
        with pytest.raises(SystemExit, match=said):
            main()


@pytest.mark.parametrize("wrong", [("--rate", "inf"), ("--rate", "nan"), ("--seconds", "inf")])
def test_a_load_has_an_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: tuple[str, str]
) -> None:
    monkeypatch.setattr("sys.argv", ["run", *arguments(*wrong)])
    monkeypatch.setattr(run, "load", None)
    with pytest.raises(SystemExit):
        main()
    assert "must be positive and finite" in capsys.readouterr().err
