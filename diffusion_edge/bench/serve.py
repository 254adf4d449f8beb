"""The benchmark of the server: the same pictures first, then all arms under the same load in turns.

Every arm is a server of its own, and the only one that runs: idle ones beside it take enough of the
cores to slow what wants them all. So it is started anew in every round.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import io
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

import httpx
import numpy as np
from PIL import Image

from diffusion_edge.batching import Batching
from diffusion_edge.bench import workload
from diffusion_edge.bench.arms import Engine, Watched
from diffusion_edge.bench.open_loop import Bisection, Sent, bursty, drive, poisson, quantile
from diffusion_edge.bench.report import machine, versions
from diffusion_edge.bench.serve_report import (
    OURS,
    PATIENCE,
    SHARE,
    Loaded,
    Overhead,
    ServeReport,
    Sustained,
    Unloaded,
)
from diffusion_edge.bench.servers import free_port, running
from diffusion_edge.bench.timing import timed, turned
from diffusion_edge.bench.workload import Asked
from diffusion_edge.engine.lanes import leave_cores_to_lanes
from diffusion_edge.errors import UnequalArm
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.families.load import load_family
from diffusion_edge.families.pipeline import Loading

STOCK = "Ray Serve, one stock pipeline"
STOCK_EACH = "Ray Serve, a stock pipeline for each core"
OURS_OFF = "diffusion-edge, batching off"
_OURS: Mapping[str, Batching] = {OURS: "in-flight", OURS_OFF: "off"}

Kind = Literal["poisson", "bursty"]
KINDS: tuple[Kind, ...] = ("poisson", "bursty")

BURST = 4
RANGE = (0.3, 3.0)
"""Times the stock pipeline's capacity, searched for the sustained rate."""
PROBES = 5
FEW_STEPS = 4
PAIRS = 60
SETTLE_S = 0.1
"""Before each of a pair, for what the other one leaves on the cores: OpenMP's threads spin on."""
TAIL = 0.95
LEVELS = 1
"""Of 255, by which a value of a picture may differ: both sides round the same floats."""
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Task:
    """steps: of the first mixed request. seconds: of one load. rounds: of the loads of a fixed
    rate. seed: of the first image and of the arrivals."""

    card: FamilyCard
    stage: str
    steps: int
    seconds: float
    rounds: int
    seed: int
    command: str = ""


@dataclass(frozen=True)
class Arm:
    """A server: asks it for one image; the PNG, or None where it gave none."""

    name: str
    ask: Callable[[Asked], Awaitable[bytes | None]]


def arms(cores: int) -> list[str]:
    """Names of the arms, the stock pipeline first."""
    return [STOCK, *([STOCK_EACH] if cores > 1 else []), OURS, OURS_OFF]


def measure(task: Task, tell: Callable[[str], None]) -> ServeReport:
    """`tell` gets a line before every part. Raises UnequalArm before an arm's first load."""
    before = os.getloadavg()
    cores = os.cpu_count() or 1
    names = arms(cores)
    with asyncio.Runner() as runner:
        bench = Bench(task, runner, tell)
        for turn in range(task.rounds):
            for name in turned(names, turn):  # in the first round the stock pipeline is first
                tell(f"round {turn + 1} of {task.rounds}: starting {name}")
                with _server(name, task, runner, cores) as arm:
                    bench.visit(arm, turn)
    stock = bench.found[STOCK]
    return ServeReport(
        command=task.command,
        measured=datetime.datetime.now(datetime.UTC).date().isoformat(),
        family=task.card.name,
        stage=task.stage,
        mixed=", ".join(map(str, bench.mixed)),
        machine=machine("", cores),
        versions=versions(),
        load_before=before,
        load_after=os.getloadavg(),
        seconds=task.seconds,
        rounds=task.rounds,
        burst=BURST,
        worst_levels={name: bench.found[name].levels for name in names},
        unloaded=tuple(unloaded(name, bench.found[name].alone_s) for name in names),
        capacity_per_s=stock.capacity_per_s,
        loads=tuple(
            loaded(kind, name, bench.rate, bench.found[name].sent[kind])
            for kind in KINDS
            for name in names
        ),
        limit_s=bench.limit_s,
        sustained=tuple(
            Sustained(name, search.holds, search.fails)
            for name in names
            if (search := bench.found[name].search) is not None
        ),
        overhead=overhead(str(bench.few), bench.found[OURS].pairs_s),
    )


# ---------------------------------------------------------------------------- the arms


@contextmanager
def _server(name: str, task: Task, runner: asyncio.Runner, cores: int) -> Iterator[Arm]:
    """The arm's server, up and warm, and nothing else."""
    with ExitStack() as closing:
        if name in _OURS:
            folder = closing.enter_context(tempfile.TemporaryDirectory())
            path = Path(folder) / "bench.yaml"
            path.write_text(json.dumps(_config(task, _OURS[name], cores)))
            started = running("diffusion_edge", ["serve", str(path)])
            ask = _ask_ours
        else:
            replicas, threads = (1, cores) if name == STOCK else (cores, 1)
            where = (str(task.card.root), task.stage, "--port", str(free_port()))
            counts = ("--replicas", str(replicas), "--threads", str(threads))
            started = running("diffusion_edge.bench.stock_server", [*where, *counts])
            ask = _ask_stock
        client = httpx.AsyncClient(
            base_url=closing.enter_context(started),
            timeout=TIMEOUT_S,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )
        closing.callback(lambda: runner.run(client.aclose()))
        yield Arm(name, partial(ask, client))


def _config(task: Task, batching: Batching, cores: int) -> dict[str, Any]:
    """A server of one stage that has the machine for itself; nothing is emulated."""
    tier = task.card.stages[task.stage].tier
    stage = {
        "tier": tier,
        "model": task.stage,
        "threads": cores,
        "capacity": 1000,
        "batching": batching,
    }
    args = {
        "family": str(task.card.root),
        "policy": "elastic",
        "prices_per_s": {tier: 1.0},
        "defaults": {"deadline_s": TIMEOUT_S, "quality_floor": 0.0},
        "stages": {task.stage: stage},
        "links": [],
    }
    application = {
        "name": "diffusion-edge",
        "route_prefix": "/",
        "import_path": "diffusion_edge.serve.app:build",
        "args": args,
    }
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": free_port()},
        "applications": [application],
    }


async def _ask_stock(client: httpx.AsyncClient, asked: Asked) -> bytes | None:
    answer = await client.get("/imagine", params=asdict(asked))
    return answer.content if answer.status_code == httpx.codes.OK else None


async def _ask_ours(client: httpx.AsyncClient, asked: Asked) -> bytes | None:
    body = {
        "prompt": asked.prompt,
        "seed": asked.seed,
        "solver": asked.solver,
        "num_inference_steps": asked.steps,
        "guidance_scale": asked.guidance,
    }
    answer = await client.post("/v1/images/generations", json=body)
    if answer.status_code != httpx.codes.OK:
        return None
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


# ---------------------------------------------------------------------------- the parts


@dataclass
class Found:
    """What an arm's visits showed so far. sent: by kind of load and round. pairs_s: through the
    server and in the bare engine."""

    levels: int = 0
    alone_s: list[float] = field(default_factory=list)
    sent: dict[Kind, list[list[Sent]]] = field(default_factory=lambda: {k: [] for k in KINDS})
    search: Bisection | None = None
    pairs_s: list[tuple[float, float]] = field(default_factory=list)

    @property
    def capacity_per_s(self) -> float:
        """Requests a second, one after the other."""
        return 1 / mean(self.alone_s)


class Bench:
    """Visits one server after the other and keeps what it found."""

    def __init__(self, task: Task, runner: asyncio.Runner, tell: Callable[[str], None]) -> None:
        self._task, self._runner, self._tell = task, runner, tell
        self.mixed = workload.mixed(task.card, 8, task.steps, task.seed)
        (self.few,) = workload.equal(task.card, 1, FEW_STEPS, task.seed)
        self.found: dict[str, Found] = {}
        self.rate = self.limit_s = self._capacity = 0.0
        self._expected: list[np.ndarray[Any, Any]] = []

    def visit(self, arm: Arm, turn: int) -> None:
        """A round of every part. The first arm of all decides on pictures, rate and limit."""
        first = not self.found
        found = self.found.setdefault(arm.name, Found())
        if turn == 0:
            self._tell("  the same pictures")
            found.levels = self.levels(arm)
        self._tell("  one after the other")
        found.alone_s += [self._one(arm, asked)[1] for asked in self.mixed]
        if first:
            self._capacity = found.capacity_per_s
            self.rate, self.limit_s = SHARE * self._capacity, PATIENCE * median(found.alone_s)
        for kind in KINDS:
            self._tell(f"  {kind}, {self.rate:.2f} a second")
            found.sent[kind].append(self.load(arm, kind, self.rate, turn))
        if turn == 0 and arm.name != OURS_OFF:
            found.search = self.search(arm, self._capacity, self.limit_s)
        if turn == 0 and arm.name == OURS:
            found.pairs_s = self._pairs(arm)

    def levels(self, arm: Arm) -> int:
        """The largest difference of an 8-bit value from the first arm's pictures. Raises
        UnequalArm above LEVELS."""
        made = [_pixels(self._one(arm, asked)[0]) for asked in self.mixed]
        self._expected = self._expected or made
        worst = max(int(np.abs(a - b).max()) for a, b in zip(made, self._expected, strict=True))
        if worst > LEVELS:
            raise UnequalArm(
                f"a picture by {arm.name!r} differs from the stock pipeline's by {worst} of 255 "
                f"levels, at most {LEVELS}; its seconds would not be those of the same work"
            )
        return worst

    def load(self, arm: Arm, kind: Kind, rate: float, turn: int) -> list[Sent]:
        """The same arrivals for every arm, others in every round."""
        rng = random.Random(f"{self._task.seed} {kind} {turn}")
        if kind == "poisson":
            return self._drive(arm, poisson(rate, self._task.seconds, rng))
        return self._drive(arm, bursty(rate, self._task.seconds, rng, BURST))

    def search(self, arm: Arm, capacity: float, limit_s: float) -> Bisection:
        """For the highest rate that is sustained. A probe that sends nothing shows nothing."""
        low, high = (share * capacity for share in RANGE)
        search = Bisection(low, high)
        for probe in range(PROBES):
            self._tell(f"  probe {probe + 1} of {PROBES}: {search.rate:.2f} a second")
            rng = random.Random(f"{self._task.seed} sustained {probe}")
            sent = self._drive(arm, poisson(search.rate, self._task.seconds, rng))
            if sent:
                search = search.after(sustains(sent, limit_s))
        return search

    def _pairs(self, arm: Arm) -> list[tuple[float, float]]:
        """Seconds of a short request through the server and in a bare engine here, in turns."""
        self._tell("  overhead over the bare engine")
        task = self._task
        leave_cores_to_lanes()
        family = load_family(task.card, task.stage, Loading(dtype="float32"))
        engine = Engine(self._runner, task.card, Watched(family), threads=os.cpu_count() or 1)
        once = timed(lambda: engine.pictures([self.few]))
        try:
            pairs = [
                (settled(lambda: self._one(arm, self.few)[1]), settled(once))
                for _ in range(PAIRS + 1)
            ]
        finally:
            engine.close()
        return pairs[1:]  # without the first use

    def _one(self, arm: Arm, asked: Asked) -> tuple[bytes, float]:
        """The picture and its seconds. Raises UnequalArm where there is none."""
        began = time.perf_counter()
        png = self._runner.run(_answer(arm, asked))
        took_s = time.perf_counter() - began
        if png is None:
            raise UnequalArm(f"{arm.name!r} gave no picture for {asked}")
        return png, took_s

    def _drive(self, arm: Arm, due: Sequence[float]) -> list[Sent]:
        async def send(number: int) -> bool:
            asked = self.mixed[number % len(self.mixed)]
            return await _answer(arm, replace(asked, seed=self._task.seed + number)) is not None

        return self._runner.run(drive(send, due))


def settled(measured: Callable[[], float]) -> float:
    """What it measures after a pause."""
    time.sleep(SETTLE_S)
    return measured()


async def _answer(arm: Arm, asked: Asked) -> bytes | None:
    """The PNG, or None where the server gave none or was lost."""
    try:
        return await arm.ask(asked)
    except httpx.HTTPError:
        return None


def _pixels(png: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.int16)


# ---------------------------------------------------------------------------- what it comes to


def sustains(sent: Sequence[Sent], limit_s: float) -> bool:
    """Every request is answered, and TAIL of them within the limit, however few there are."""
    in_time = sum(one.latency_s < limit_s for one in sent)
    return all(one.ok for one in sent) and in_time >= TAIL * len(sent)


def unloaded(arm: str, seconds: Sequence[float]) -> Unloaded:
    return Unloaded(arm, median(seconds), quantile(seconds, TAIL), mean(seconds))


def loaded(kind: Kind, arm: str, rate: float, rounds: Sequence[Sequence[Sent]]) -> Loaded:
    sent = [one for each in rounds for one in each]
    return Loaded(
        kind=kind,
        arm=arm,
        rate_per_s=rate,
        sent=len(sent),
        failed=sum(not one.ok for one in sent),
        p50_s=percentile(sent, 0.5),
        p95_s=percentile(sent, TAIL),
        p95_by_round_s=tuple(percentile(each, TAIL) for each in rounds),
    )


def percentile(sent: Sequence[Sent], share: float) -> float | None:
    """Of the latencies; a failed request took longer than any. None where it is such a one's, and
    where the requests are too few."""
    found = quantile([one.latency_s if one.ok else math.inf for one in sent], share)
    return None if found == math.inf else found


def overhead(what: str, pairs_s: Sequence[tuple[float, float]]) -> Overhead:
    differences = [served - bare for served, bare in pairs_s]
    return Overhead(
        what=what,
        served_s=median(served for served, _ in pairs_s),
        bare_s=median(bare for _, bare in pairs_s),
        difference_s=median(differences),
        lowest_s=quantile(differences, 0.25),
        highest_s=quantile(differences, 0.75),
    )
