"""What the benchmark does with a running server: waits until it is quiet, sends what is due, reads
answers and counters. No torch."""

from __future__ import annotations

import asyncio
import datetime
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from diffusion_edge.bench.answered import Answer, answer
from diffusion_edge.bench.open_loop import drive
from diffusion_edge.bench.routing.records import Arm, Ran
from diffusion_edge.bench.workload import PROMPTS
from diffusion_edge.errors import EdgeError
from diffusion_edge.view import Link, StageStatus, View

QUIET_S = 300.0
NOT_READY = httpx.codes.SERVICE_UNAVAILABLE
EVERY_S = 0.1
SETTLE_S = 0.5
"""For the board to hear from every stage that it is quiet."""


@dataclass(frozen=True)
class Wanted:
    """What all requests of the benchmark ask for, whatever the arm."""

    steps: int
    deadline_s: float
    quality_floor: float

    def body(self, number: int, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
        wanted = {"deadline_ms": 1e3 * self.deadline_s, "quality_floor": self.quality_floor}
        return {
            "prompt": PROMPTS[number % len(PROMPTS)],
            "seed": seed + number,
            "num_inference_steps": self.steps,
            "diffusion_edge": {**wanted, **options},
        }


class Live:
    """A server, asked over HTTP."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def run(
        self, arm: Arm, due: Sequence[float], rate_per_s: float, wanted: Wanted, seed: int
    ) -> Ran:
        """Everything that is due, from a quiet server on; its links begin anew."""
        await self.quiet()
        await self.restart_links()
        before, load = await self.counters(), os.getloadavg()[0]
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        answers = await self._played(arm, due, wanted, seed)
        await self.quiet()
        after = await self.counters()
        return Ran(
            arm=arm.name,
            rate_per_s=rate_per_s,
            answers=tuple(answers),
            parts_run={name: after[name][0] - ran for name, (ran, _) in before.items()},
            overruns={name: after[name][1] - over for name, (_, over) in before.items()},
            load=load,
            at=at,
        )

    async def _played(
        self, arm: Arm, due: Sequence[float], wanted: Wanted, seed: int
    ) -> list[Answer]:
        found: dict[int, Answer] = {}

        async def send(number: int) -> bool:
            body = wanted.body(number, seed, arm.options)
            found[number] = await self._answer(body)
            return found[number].ok

        sent = await drive(send, due)
        return [
            replace(
                found[number],
                due_s=one.due_s,
                latency_s=one.latency_s,
                in_time=one.ok and one.latency_s <= wanted.deadline_s,
            )
            for number, one in enumerate(sent)
        ]

    async def _answer(self, body: Mapping[str, Any]) -> Answer:
        """When it was due and how long it took is for the caller to say."""
        try:
            response = await self._http.post("/v1/images/generations", json=body)
        except httpx.HTTPError as error:
            return Answer(0.0, 0.0, type(error).__name__)
        return answer(0.0, 0.0, 0.0, response)

    async def warm(self, steps: int) -> float:
        """A picture on each stage and over each link, one after another, since what a server does
        for the first time takes longer. The share of parts that overran: on a quiet server."""
        wanted = Wanted(steps, QUIET_S, 0.0)
        told = await self.plan(wanted, {"plan": f"{next(iter(await self._stages()))}:{steps}"})
        plans = [f"{name}:{steps}" for name in told["stages"]]
        plans += [
            f"{link['source']}:{steps // 2},{link['target']}:{steps - steps // 2}"
            for link in told["links"]
        ]
        for plan in plans:
            answered = await self._answer(wanted.body(0, 0, {"plan": plan}))
            if not answered.ok:
                raise EdgeError(f"the server made nothing by the plan {plan}: {answered.outcome}")
        counted = (await self.counters()).values()
        return sum(over for _, over in counted) / max(sum(parts for parts, _ in counted), 1)

    async def quiet(self) -> None:
        """Returns when no stage has anything to do. Raises EdgeError if that takes too long."""
        give_up = time.monotonic() + QUIET_S
        while not all(self._idle(each) for each in (await self._stages()).values()):
            if time.monotonic() > give_up:
                raise EdgeError(f"the server still has work {QUIET_S:g} s after the last answer")
            await asyncio.sleep(EVERY_S)
        await asyncio.sleep(SETTLE_S)

    @staticmethod
    def _idle(stage: Mapping[str, Any]) -> bool:
        return not stage["queued"] and not stage["held"]

    async def restart_links(self) -> None:
        """Every emulated link as configured, and from its beginning."""
        for between in await self._emulated_links():
            asked = {"between": between, "factor": 1.0, "restart": True}
            _told(await self._http.post("/v1/throttle", json=asked))

    async def _emulated_links(self) -> list[list[str]]:
        told = await self.plan(Wanted(1, 60.0, 0.0), {})
        return [link.split("-") for link in told["emulated"]["links"]]

    async def counters(self) -> dict[str, tuple[int, int]]:
        """By stage, its parts, and those of them that took longer than stated."""
        stages = await self._stages()
        return {name: (each["parts_run"], each["overruns"]) for name, each in stages.items()}

    async def plan(self, wanted: Wanted, options: Mapping[str, Any]) -> dict[str, Any]:
        """What /v1/plan says."""
        return _told(await self._http.post("/v1/plan", json=wanted.body(0, 0, options)))

    async def _stages(self) -> dict[str, Any]:
        """What all stages report, once none is silent. Raises EdgeError if that takes too long."""
        give_up = time.monotonic() + QUIET_S
        response = await self._http.get("/ready")
        while response.status_code == NOT_READY and time.monotonic() < give_up:
            await asyncio.sleep(EVERY_S)
            response = await self._http.get("/ready")
        stages: dict[str, Any] = _told(response)["stages"]
        return stages


def _told(response: httpx.Response) -> dict[str, Any]:
    if response.status_code != httpx.codes.OK:
        raise EdgeError(f"the server answered {response.status_code}: {response.text[:300]}")
    told: dict[str, Any] = response.json()
    return told


def idle_view(planned: Mapping[str, Any]) -> View:
    """From an answer of /v1/plan, with stages that hold nothing."""
    links = {
        (each["source"], each["target"]): Link(each["bytes_per_s"], each["delay_s"])
        for each in planned["links"]
    }
    return View(
        stages={name: _idle_status(told) for name, told in planned["stages"].items()},
        links=links,
        price_per_s=planned["prices_per_s"],
        packet_bytes=tuple(planned["packet_bytes"]),
        codecs=tuple(planned["packet_codecs"]),
        cells=planned["cells"],
    )


def _idle_status(told: Mapping[str, Any]) -> StageStatus:
    curves = {
        int(cells): {int(rows): seconds for rows, seconds in curve.items()}
        for cells, curve in told["step_s"].items()
    }
    kept = ("stage", "tier", "model", "capacity", "encode_s", "resident_bytes", "emulated")
    return StageStatus(
        **{name: told[name] for name in (*kept, "guiding", "batches", "most_rows")},
        queue_s=0.0,
        queued=0,
        step_s=curves,
        decode_s={int(cells): seconds for cells, seconds in told["decode_s"].items()},
    )
