"""Open-loop load against a running server: Poisson arrivals at a stated rate.

    python -m loadtest.run --rate 0.5 --seconds 60
    python -m loadtest.run --rate 0.5 --seconds 60 --policy cloud-only --deadline-ms 5000
    python -m loadtest.run --rate 0.1 0.6 0.1 --seconds 360 --throttle device,cloud,0.05@300

Several rates take turns, each for an equal share of the seconds, and emulated links are throttled
at the times that are stated; then a second table shows the plans and hand-off steps by time window.

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
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from diffusion_edge.bench.answered import Answer, answer
from diffusion_edge.bench.open_loop import poisson, quantile
from diffusion_edge.urls import is_this_machine
from loadtest.windows import Throttle, Window, windows

PROMPTS = (
    "a red circle on a white background",
    "a small blue star left of a large yellow square on a black background",
    "a green triangle above a white ring on a purple background",
    "a large orange cross on a blue background",
)

MOST_OVERRUNS = 0.01


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


def summarise(sent: Sequence[Answer], seconds: float, elapsed_s: float) -> Summary:
    answered = [s for s in sent if s.ok]
    latencies = [s.latency_s for s in answered]
    parts = sum(s.parts for s in answered)
    share = sum(s.overruns for s in answered) / parts if parts else None
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


async def allowed_s(client: httpx.AsyncClient, args: argparse.Namespace) -> float:
    """The deadline that the server sets to such a request. Raises SystemExit where it sets none."""
    answer = await client.post("/v1/plan", json=body(0, args))
    try:
        planned = answer.json()
        if "error" not in planned:
            return float(planned["deadline_ms"]) / 1000
        told = planned["error"]["message"]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise SystemExit(
            f"error: {args.url} does not answer like this server: "
            f"POST /v1/plan gave {answer.status_code}, {answer.text[:200]!r}"
        ) from None
    raise SystemExit(f"error: the server refuses such a request: {told}")


async def load(
    args: argparse.Namespace, transport: httpx.AsyncBaseTransport | None = None
) -> tuple[list[Answer], float]:
    """Sends everything that is due; returns what came of it and the seconds it took in all."""
    due = arrivals(args.rate, args.seconds, random.Random(args.seed))
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=args.url,
        timeout=args.timeout,
        limits=limits,
        transport=transport,
        trust_env=not is_this_machine(args.url),
    ) as client:
        deadline_s = await allowed_s(client, args)
        async with throttled(client, args.throttle):
            return await sent_when_due(client, args, due, deadline_s)


async def sent_when_due(
    client: httpx.AsyncClient, args: argparse.Namespace, due: Sequence[float], deadline_s: float
) -> tuple[list[Answer], float]:
    start = time.monotonic()

    async def one(number: int, due_s: float) -> Answer:
        await asyncio.sleep(max(0.0, start + due_s - time.monotonic()))
        try:
            response = await client.post("/v1/images/generations", json=body(number, args))
        except httpx.HTTPError as error:
            return Answer(due_s, time.monotonic() - start - due_s, type(error).__name__)
        return answer(due_s, time.monotonic() - start - due_s, deadline_s, response)

    console = Console(file=sys.stderr)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("requests", total=len(due))
        pending = [asyncio.create_task(one(n, due_s)) for n, due_s in enumerate(due)]
        for finished in asyncio.as_completed(pending):
            await finished
            bar.advance(task)
    return [task.result() for task in pending], time.monotonic() - start


def arrivals(rates: Sequence[float], seconds: float, rng: random.Random) -> list[float]:
    """Poisson at one rate after another, each for an equal share of the seconds."""
    each_s = seconds / len(rates)
    return [k * each_s + at for k, rate in enumerate(rates) for at in poisson(rate, each_s, rng)]


@asynccontextmanager
async def throttled(client: httpx.AsyncClient, asked: Sequence[Throttle]) -> AsyncIterator[None]:
    """Throttles links at their times from now on; afterwards they are as configured. Raises
    SystemExit, before anything is sent, for one that the server cannot throttle."""

    async def one(each: Throttle) -> None:
        await asyncio.sleep(each.at_s)
        await throttle(client, each.between, each.factor)

    for between in {each.between for each in asked}:  # one that it cannot throttle is told at once
        await throttle(client, between, 1.0)
    tasks = [asyncio.create_task(one(each)) for each in asked]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for between in {each.between for each in asked}:
            await throttle(client, between, 1.0)


async def throttle(client: httpx.AsyncClient, between: tuple[str, str], factor: float) -> None:
    answer = await client.post("/v1/throttle", json={"between": between, "factor": factor})
    if answer.status_code != httpx.codes.OK:
        raise SystemExit(f"error: the server does not throttle {between}: {answer.text[:200]}")


def table(summary: Summary) -> Table:
    shown = Table("figure", "value", title="load test")
    for name, value in asdict(summary).items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        shown.add_row(name, _shown(value))
    return shown


def changes(found: Sequence[Window]) -> Table:
    """Of each window the plans that at least a tenth of its requests took."""
    head = ("seconds", "a second", "throttled", "sent", "in time", "hand-off", "steps", "plans")
    shown = Table(*head, title="what the router chose")
    for each in found:
        answered = sum(each.plans.values())
        often = (f"{p} {n / answered:.0%}" for p, n in each.plans.items() if 10 * n >= answered)
        shown.add_row(
            f"{each.start_s:g} to {each.stop_s:g}",
            f"{each.rate_per_s:g}",
            each.throttled or "-",
            str(each.sent),
            "-" if each.met_deadline is None else f"{each.met_deadline:.0%}",
            "-" if each.handoff_step is None else f"{each.handoff_step:.1f}",
            ", ".join(f"{stage} {steps:.1f}" for stage, steps in each.steps.items()),
            "\n".join(often),
        )
    return shown


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def link_and_factor(text: str) -> Throttle:
    try:
        return Throttle.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument(
        "--rate", type=float, nargs="+", required=True, help="requests a second; several in turn"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="for how long to send")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one answer")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--deadline-ms", type=float)
    parser.add_argument("--quality-floor", type=float)
    parser.add_argument("--policy")
    parser.add_argument("--plan")
    parser.add_argument(
        *("--throttle", "-t"),
        type=link_and_factor,
        action="append",
        default=[],
        metavar="STAGE,STAGE,FACTOR@SECONDS",
        help="such as device,cloud,0.05@60: an emulated link, from then on; may be repeated",
    )
    parser.add_argument(
        "--windows", type=int, default=1, help="equal parts of the time between two changes"
    )
    return parser


def main() -> None:
    arguments = parser()
    args = arguments.parse_args()
    if not all(0 < value < math.inf for value in (*args.rate, args.seconds)):
        arguments.error("--rate and --seconds must be positive and finite")
    if not all(0 <= each.at_s < args.seconds for each in args.throttle) or args.windows < 1:
        arguments.error("--throttle must be at a time within --seconds, --windows at least 1")
    try:
        sent, elapsed_s = asyncio.run(load(args))
    except httpx.HTTPError as error:
        raise SystemExit(f"error: {args.url} does not answer: {error}") from None
    summary = summarise(sent, args.seconds, elapsed_s)
    found = windows(sent, args.rate, args.seconds, args.throttle, args.windows)
    Console().print(table(summary))
    if len(found) > 1:
        Console().print(changes(found))
    print(json.dumps(asdict(summary) | {"windows": [asdict(each) for each in found]}))


if __name__ == "__main__":
    main()
