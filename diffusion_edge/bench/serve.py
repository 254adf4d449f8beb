"""The benchmark of the server: the same pictures first, then all arms under the same load in turns.

Every arm is a server of its own, started once, on the same machine; only one has work at a time.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import io
import json
import os
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
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

BURST = 4
RANGE = (0.3, 3.0)
"""Times the stock pipeline's capacity, searched for the sustained rate."""
PROBES = 5
FEW_STEPS = 4
PAIRS = 40
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


def measure(task: Task, tell: Callable[[str], None]) -> ServeReport:
    """`tell` gets a line before every part. Raises UnequalArm before any load."""
    card = task.card
    with asyncio.Runner() as runner, _arms(task, runner, tell) as arms:
        before = os.getloadavg()
        bench = _Bench(task, runner, arms, tell)
        differences = bench.differences()
        unloaded, capacity = bench.unloaded()
        rate, limit_s = SHARE * capacity, PATIENCE * unloaded[0].p50_s
        loads = (
            *bench.loaded("poisson", rate),
            *bench.loaded("bursty", rate),
        )
        sustained = bench.sustained(capacity, limit_s)
        overhead = bench.overhead()
        return ServeReport(
            command=task.command,
            measured=datetime.datetime.now(datetime.UTC).date().isoformat(),
            family=card.name,
            stage=task.stage,
            mixed=", ".join(map(str, bench.mixed)),
            machine=machine("", os.cpu_count() or 1),
            versions=versions(),
            load_before=before,
            load_after=os.getloadavg(),
            seconds=task.seconds,
            rounds=task.rounds,
            burst=BURST,
            worst_levels=differences,
            unloaded=unloaded,
            capacity_per_s=capacity,
            loads=loads,
            limit_s=limit_s,
            sustained=sustained,
            overhead=overhead,
        )


# ---------------------------------------------------------------------------- the arms


@contextmanager
def _arms(
    task: Task, runner: asyncio.Runner, tell: Callable[[str], None]
) -> Iterator[dict[str, Arm]]:
    """All servers, up and warm; the stock pipeline first."""
    cores = os.cpu_count() or 1
    with ExitStack() as closing, tempfile.TemporaryDirectory() as folder:

        def start(name: str, module: str, *arguments: str) -> httpx.AsyncClient:
            tell(f"starting: {name}")
            url = closing.enter_context(running(module, arguments))
            client = httpx.AsyncClient(
                base_url=url,
                timeout=TIMEOUT_S,
                limits=httpx.Limits(max_connections=None),
                trust_env=False,
            )
            closing.callback(lambda: runner.run(client.aclose()))
            return client

        def stock(name: str, replicas: int, threads: int) -> Arm:
            counts = ("--replicas", str(replicas), "--threads", str(threads))
            port = ("--port", str(free_port()))
            where = (str(task.card.root), task.stage)
            client = start(name, "diffusion_edge.bench.stock_server", *where, *port, *counts)
            return Arm(name, lambda asked: _ask_stock(client, asked))

        def ours(name: str, batching: Batching) -> Arm:
            path = Path(folder) / f"{batching}.yaml"
            path.write_text(json.dumps(_config(task, batching, cores)))
            client = start(name, "diffusion_edge.cli", "serve", str(path))
            return Arm(name, lambda asked: _ask_ours(client, asked))

        arms = [stock(STOCK, 1, cores)]
        arms += [stock(STOCK_EACH, cores, 1)] if cores > 1 else []
        arms += [ours(OURS, "in-flight"), ours(OURS_OFF, "off")]
        yield {arm.name: arm for arm in arms}


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


@dataclass(frozen=True)
class _Bench:
    task: Task
    runner: asyncio.Runner
    arms: Mapping[str, Arm]
    tell: Callable[[str], None]

    @property
    def mixed(self) -> list[Asked]:
        return workload.mixed(self.task.card, 8, self.task.steps, self.task.seed)

    def differences(self) -> dict[str, int]:
        """By arm, the largest difference of an 8-bit value from the first arm's pictures."""
        self.tell("equality of all arms")
        pictures = {
            name: [_pixels(self._one(arm, asked)[0]) for asked in self.mixed]
            for name, arm in self.arms.items()
        }
        expected = next(iter(pictures.values()))
        worst = {
            name: max(int(np.abs(a - b).max()) for a, b in zip(made, expected, strict=True))
            for name, made in pictures.items()
        }
        for name, levels in worst.items():
            if levels > LEVELS:
                raise UnequalArm(
                    f"a picture by {name!r} differs from the stock pipeline's by {levels} of 255 "
                    f"levels, at most {LEVELS}; its seconds would not be those of the same work"
                )
        return worst

    def unloaded(self) -> tuple[tuple[Unloaded, ...], float]:
        """The mixed requests one after the other, in turns; and how many a second the first arm
        makes so."""
        taken: dict[str, list[float]] = {name: [] for name in self.arms}
        for turn in range(self.task.rounds):
            self.tell(f"unloaded: round {turn + 1} of {self.task.rounds}")
            for name in turned(list(self.arms), turn):
                taken[name] += [self._one(self.arms[name], asked)[1] for asked in self.mixed]
        rows = tuple(
            Unloaded(name, median(seconds), quantile(seconds, 0.95) or 0.0, mean(seconds))
            for name, seconds in taken.items()
        )
        return rows, 1 / rows[0].mean_s

    def loaded(self, kind: Literal["poisson", "bursty"], rate: float) -> Iterator[Loaded]:
        """The same arrivals for every arm, others in every round."""
        sent: dict[str, list[list[Sent]]] = {name: [] for name in self.arms}
        for turn in range(self.task.rounds):
            rng = random.Random(f"{self.task.seed} {kind} {turn}")
            due = (
                poisson(rate, self.task.seconds, rng)
                if kind == "poisson"
                else bursty(rate, self.task.seconds, rng, BURST)
            )
            for name in turned(list(self.arms), turn):
                self.tell(f"{kind}, {rate:.2f}/s: round {turn + 1}: {name}")
                sent[name].append(self._drive(self.arms[name], due))
        for name, rounds in sent.items():
            every = [one for each in rounds for one in each]
            latencies = [one.latency_s for one in every if one.ok]
            yield Loaded(
                kind=kind,
                arm=name,
                rate_per_s=rate,
                sent=len(every),
                failed=len(every) - len(latencies),
                p50_s=quantile(latencies, 0.5),
                p95_s=quantile(latencies, 0.95),
                p95_by_round_s=tuple(
                    quantile([one.latency_s for one in each if one.ok], 0.95) for each in rounds
                ),
            )

    def sustained(self, capacity: float, limit_s: float) -> tuple[Sustained, ...]:
        """By bisection, an arm's probe after the other's; without what is only for comparison."""
        low, high = (share * capacity for share in RANGE)
        searches = {name: Bisection(low, high) for name in self.arms if name != OURS_OFF}
        for probe in range(PROBES):
            for name in turned(list(searches), probe):
                rate = searches[name].rate
                self.tell(f"sustained: probe {probe + 1} of {PROBES}: {name} at {rate:.2f}/s")
                rng = random.Random(f"{self.task.seed} sustained {probe}")
                sent = self._drive(self.arms[name], poisson(rate, self.task.seconds, rng))
                p95 = quantile([one.latency_s for one in sent], 0.95) or 0.0
                holds = bool(sent) and all(one.ok for one in sent) and p95 < limit_s
                searches[name] = searches[name].after(holds)
        return tuple(Sustained(name, found.low, found.high) for name, found in searches.items())

    def overhead(self) -> Overhead:
        """One short request at a time, through our server and in a bare engine here, in turns."""
        self.tell("overhead over the bare engine")
        task, card = self.task, self.task.card
        few = workload.equal(card, 1, FEW_STEPS, task.seed)
        leave_cores_to_lanes()
        family = load_family(card, task.stage, Loading(dtype="float32"))
        engine = Engine(self.runner, card, Watched(family), threads=os.cpu_count() or 1)
        served: list[float] = []
        bare: list[float] = []
        once = timed(lambda: engine.pictures(few))
        try:
            for _ in range(PAIRS + 1):
                served.append(self._one(self.arms[OURS], few[0])[1])
                bare.append(once())
        finally:
            engine.close()
        del served[0], bare[0]  # of the first use
        differences = [a - b for a, b in zip(served, bare, strict=True)]
        return Overhead(
            what=str(few[0]),
            served_s=median(served),
            bare_s=median(bare),
            difference_s=median(differences),
            lowest_s=quantile(differences, 0.25) or 0.0,
            highest_s=quantile(differences, 0.75) or 0.0,
        )

    def _one(self, arm: Arm, asked: Asked) -> tuple[bytes, float]:
        """The picture and its seconds. Raises UnequalArm where there is none."""
        began = time.perf_counter()
        png = self.runner.run(_awaited(arm.ask(asked)))
        took_s = time.perf_counter() - began
        if png is None:
            raise UnequalArm(f"{arm.name!r} gave no picture for {asked}")
        return png, took_s

    def _drive(self, arm: Arm, due: Sequence[float]) -> list[Sent]:
        mixed, seed = self.mixed, self.task.seed

        async def send(number: int) -> bool:
            asked = replace(mixed[number % len(mixed)], seed=seed + number)
            try:
                return await arm.ask(asked) is not None
            except httpx.HTTPError:
                return False

        return self.runner.run(drive(send, due))


async def _awaited(work: Awaitable[bytes | None]) -> bytes | None:
    return await work


def _pixels(png: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.int16)
