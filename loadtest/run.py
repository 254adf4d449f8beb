"""Open-loop load against a running server: Poisson arrivals at a stated rate.

    python -m loadtest.run --rate 0.5 --seconds 60
    python -m loadtest.run --rate 0.5 --seconds 60 --policy cloud-only --deadline-ms 5000

Requests are sent when they are due, whether or not earlier ones have been answered, so a slow
server shows as latency and not as a lower rate. A latency counts from the time a request was due.
Prints a table; the last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from diffusion_edge.bench.open_loop import poisson, quantile
from diffusion_edge.urls import is_this_machine

PROMPTS = (
    "a red circle on a white background",
    "a small blue star left of a large yellow square on a black background",
    "a green triangle above a white ring on a purple background",
    "a large orange cross on a blue background",
)

MOST_OVERRUNS = 0.01
_OF_OTHERS = (ValueError, LookupError, TypeError, AttributeError)
"""What reading an answer raises that has another form than our server's."""


@dataclass(frozen=True)
class Sent:
    """One request: seconds after the start that it was due, its latency and outcome.

    outcome: `ok`, or the error's code. overruns: emulated parts that took longer than stated.
    """

    due_s: float
    latency_s: float
    outcome: str
    plan: str = ""
    in_time: bool = False
    steps: int = 0
    overruns: int = 0
    emulated: bool = False


@dataclass(frozen=True)
class Summary:
    """What a run showed. Latencies are of answered requests; the share in time is of all.

    None is what a run cannot show: percentiles of too few answers, shares of nothing.
    valid: something was answered, and at most MOST_OVERRUNS of the emulated steps took longer
    than stated.
    """

    offered_per_s: float
    achieved_per_s: float
    sent: int
    ok: int
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    met_deadline: float | None
    outcomes: dict[str, int]
    plans: dict[str, int]
    emulated: bool | None
    overrun_share: float | None
    valid: bool
    machine: str


def summarise(sent: Sequence[Sent], seconds: float, elapsed_s: float) -> Summary:
    answered = [s for s in sent if s.outcome == "ok"]
    latencies = [s.latency_s for s in answered]
    steps = sum(s.steps for s in answered)
    share = sum(s.overruns for s in answered) / steps if steps else None
    emulated = any(s.emulated for s in answered) if answered else None
    return Summary(
        offered_per_s=len(sent) / seconds,
        achieved_per_s=len(answered) / max(seconds, elapsed_s),
        sent=len(sent),
        ok=len(answered),
        p50_s=quantile(latencies, 0.50),
        p90_s=quantile(latencies, 0.90),
        p99_s=quantile(latencies, 0.99),
        met_deadline=sum(s.in_time for s in answered) / len(sent) if sent else None,
        outcomes=dict(Counter(s.outcome for s in sent)),
        plans=dict(Counter(s.plan for s in answered).most_common()),
        emulated=emulated,
        overrun_share=share,
        valid=emulated is False or (share is not None and share <= MOST_OVERRUNS),
        machine=f"{platform.machine()}, Python {platform.python_version()}",
    )


def body(number: int, args: argparse.Namespace) -> dict[str, Any]:
    """The request's JSON. Prompts take turns; seeds count up."""
    options = {
        "deadline_ms": args.deadline_ms,
        "policy": args.policy,
        "plan": args.plan,
        "quality_floor": args.quality_floor,
    }
    fields = {
        "prompt": PROMPTS[number % len(PROMPTS)],
        "seed": args.seed + number,
        "num_inference_steps": args.steps,
    }
    given = {key: value for key, value in options.items() if value is not None}
    return {k: v for k, v in fields.items() if v is not None} | {"diffusion_edge": given}


def outcome(due_s: float, latency_s: float, deadline_s: float, response: httpx.Response) -> Sent:
    """What an answer means; one that is not of our server counts as `http_` and its status."""
    try:
        answer = response.json()
        if response.status_code == httpx.codes.OK:
            return _answered(due_s, latency_s, deadline_s, answer["diffusion_edge"])
        return Sent(due_s, latency_s, answer["error"]["code"])
    except _OF_OTHERS:
        return Sent(due_s, latency_s, f"http_{response.status_code}")


def _answered(due_s: float, latency_s: float, deadline_s: float, report: dict[str, Any]) -> Sent:
    spans = [span for image in report["images"] for span in image["spans"]]
    return Sent(
        due_s,
        latency_s,
        "ok",
        plan=str(report["plan"]),
        in_time=latency_s <= deadline_s,
        steps=sum(span["stop"] - span["start"] for span in spans),
        overruns=sum(span["overruns"] for span in spans),
        emulated=any(report["emulated"].values()),
    )


async def allowed_s(client: httpx.AsyncClient, args: argparse.Namespace) -> float:
    """The deadline that the server sets to such a request. Raises SystemExit where it sets none."""
    answer = await client.post("/v1/plan", json=body(0, args))
    try:
        planned = answer.json()
        if "error" not in planned:
            return float(planned["deadline_ms"]) / 1000
        told = planned["error"]["message"]
    except _OF_OTHERS:
        raise SystemExit(
            f"error: {args.url} does not answer like this server: "
            f"POST /v1/plan gave {answer.status_code}, {answer.text[:200]!r}"
        ) from None
    raise SystemExit(f"error: the server refuses such a request: {told}")


async def load(
    args: argparse.Namespace, transport: httpx.AsyncBaseTransport | None = None
) -> tuple[list[Sent], float]:
    """Sends everything that is due; returns what came of it and the seconds it took in all."""
    due = poisson(args.rate, args.seconds, random.Random(args.seed))
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=args.url,
        timeout=args.timeout,
        limits=limits,
        transport=transport,
        trust_env=not is_this_machine(args.url),
    ) as client:
        deadline_s = await allowed_s(client, args)
        start = time.monotonic()

        async def one(number: int, due_s: float) -> Sent:
            await asyncio.sleep(max(0.0, start + due_s - time.monotonic()))
            try:
                response = await client.post("/v1/images/generations", json=body(number, args))
            except httpx.HTTPError as error:
                return Sent(due_s, time.monotonic() - start - due_s, type(error).__name__)
            latency_s = time.monotonic() - start - due_s
            return outcome(due_s, latency_s, deadline_s, response)

        console = Console(file=sys.stderr)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("requests", total=len(due))
            pending = [asyncio.create_task(one(n, due_s)) for n, due_s in enumerate(due)]
            for finished in asyncio.as_completed(pending):
                await finished
                bar.advance(task)
        return [task.result() for task in pending], time.monotonic() - start


def table(summary: Summary) -> Table:
    shown = Table("figure", "value", title="load test")
    for name, value in asdict(summary).items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        shown.add_row(name, _shown(value))
    return shown


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="for how long to send")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one answer")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--deadline-ms", type=float)
    parser.add_argument("--quality-floor", type=float)
    parser.add_argument("--policy")
    parser.add_argument("--plan")
    return parser


def main() -> None:
    arguments = parser()
    args = arguments.parse_args()
    if not (0 < args.rate < math.inf and 0 < args.seconds < math.inf):
        arguments.error("--rate and --seconds must be positive and finite")
    try:
        sent, elapsed_s = asyncio.run(load(args))
    except httpx.HTTPError as error:
        raise SystemExit(f"error: {args.url} does not answer: {error}") from None
    summary = summarise(sent, args.seconds, elapsed_s)
    Console().print(table(summary))
    print(json.dumps(asdict(summary)))


if __name__ == "__main__":
    main()
