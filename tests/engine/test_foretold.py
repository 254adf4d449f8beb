"""Forecasts against a real stage on a virtual clock: what is foretold when the last request arrives
and at many moments after that, and when everybody was really done."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from statistics import median
from typing import Any

import pytest
from torch import Tensor

from diffusion_edge.batching import due
from diffusion_edge.curves import Curve
from diffusion_edge.emulation import Emulate
from diffusion_edge.engine.run import run_span
from diffusion_edge.engine.seconds import Recent, Seconds, Steps
from diffusion_edge.engine.worker import Worker
from diffusion_edge.families.base import Conditioning
from diffusion_edge.packet import Packet, write
from diffusion_edge.request import Accepted, Done, Picture, Times
from diffusion_edge.routing.forecast import ahead
from diffusion_edge.routing.promises import Promise, merged
from diffusion_edge.view import Held, Turn
from tests.engine.test_worker import CELLS, a_packet
from tests.fakes import FakeFamily, FakeTransport

ENCODE_S, DECODE_S = 0.03, 0.05
DUE_S = 5.0
"""Of what was told, after it comes."""
TURNS = 20
"""Of the loop, by which all has happened that waits for neither time nor threads."""
TEXTS_S = {n: 0.02 + 0.01 * n for n in range(1, 17)}
PICTURES_S = {n: 0.02 + 0.03 * n for n in range(1, 65)}
"""Of pictures of 16 pixels; one that is twice as large takes twice as long."""
BY_ROWS = {1: 0.08, 2: 0.10, 3: 0.13, 4: 0.16}
BY_ROWS_LARGE = {1: 0.15, 2: 0.19, 3: 0.25, 4: 0.31}


@dataclass(frozen=True)
class Notice:
    """Of a packet that is to come at a moment, as it leaves for the stage before."""

    packet: Packet
    comes_at: float


@dataclass
class Script:
    """A clock that moves only as the stage works, and requests that come while it does.

    arrivals: seconds and packets, or notices of them, in order. every_s: between two reports, which
    begin when the last one comes that was not told; 0 for no other. What each foretells is kept: by
    request, seconds of the clock. ahead: requests whose texts were encoded, in part, before them.
    """

    arrivals: list[tuple[float, Packet | Notice]]
    every_s: float = 0.0
    report_at: float = inf
    seconds: float = 0.0
    worker: Worker | None = None
    done_s: dict[str, float] = field(default_factory=dict)
    reports: list[dict[str, float]] = field(default_factory=list)
    told: dict[str, Promise] = field(default_factory=dict)
    ahead: set[str] = field(default_factory=set)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    moving: asyncio.Lock = field(default_factory=asyncio.Lock)

    def now(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        await self.pass_by(seconds)

    async def pass_by(self, seconds: float) -> None:
        """Whoever arrives meanwhile is admitted at that very moment, and waits where it will wait
        before the work goes on: else it would be chance whether it is in the next forward pass."""
        async with self.moving:
            end = self.seconds + seconds
            while self.worker and self.arrivals and self.arrivals[0][0] <= end:
                self.seconds, what = self.arrivals.pop(0)
                await self.happens(what)
                for _ in range(TURNS):
                    await asyncio.sleep(0)
            while self.report_at < end:
                self.seconds, self.report_at = self.report_at, self.report_at + self.every_s
                self.foretell()
            self.seconds = end

    async def happens(self, what: Packet | Notice) -> None:
        coming: list[Packet] = []
        if isinstance(what, Notice):
            self.tell(what)
        elif self.told.pop(what.request_id, None) is None:
            coming.append(what)
        if self.report_at == inf and all(
            isinstance(later, Packet) and later.request_id in self.told
            for _, later in self.arrivals
        ):
            self.foretell(*coming)
            self.report_at = self.seconds + self.every_s if self.every_s else inf
        if isinstance(what, Packet):
            await self.admit(what)

    def tell(self, notice: Notice) -> None:
        assert self.worker is not None
        packet, later = notice.packet, notice.packet.plan.spans[1]
        status = self.worker.status()
        at_first = Promise("hall", "", 0, 0, 0, 1, 1, False, 0.0, 0.0, 0.0)
        self.told[packet.request_id] = Promise(
            stage="tower",
            request=packet.request_id,
            image=0,
            stop=later.stop,
            steps=later.steps,
            rows=status.rows(packet.guidance > 1),
            cells=packet.width * packet.height // 16,
            decodes=True,
            at_s=self.seconds,
            arrives_s=notice.comes_at - self.seconds,
            due_s=notice.comes_at + DUE_S - self.seconds,
            doubled=packet.guidance > 1,
            before=at_first,
        )
        self.worker.expect(write(packet))

    async def admit(self, packet: Packet) -> None:
        admitted = asyncio.Event()
        self.tasks.append(asyncio.create_task(self.serve(packet, admitted)))
        await admitted.wait()

    async def serve(self, packet: Packet, admitted: asyncio.Event) -> None:
        assert self.worker is not None
        came_s, onward = self.seconds, FakeTransport(Accepted("hall"), Done(PICTURE, (), ()))
        async for event in self.worker.run(write(packet), onward):
            admitted.set()
            if isinstance(event, Done):
                span = event.spans[0]
                if span.ahead_s:
                    self.ahead.add(packet.request_id)
                took_s = span.queue_s + span.encode_s + span.run_s + span.decode_s
                self.done_s[packet.request_id] = came_s + took_s

    def foretell(self, *coming: Packet) -> None:
        assert self.worker is not None
        status = merged(self.worker.status(), list(self.told.values()), self.seconds)
        new = [asked(self.worker, packet) for packet in coming]
        ends_s = ahead(status, new)
        images = zip((*status.held, *new), ends_s, strict=True)
        self.reports.append({image.request: self.seconds + end_s for image, end_s in images})

    @property
    def late_s(self) -> list[float]:
        """By how much each is foretold to be done later than it was, by report and image."""
        return [end_s - self.done_s[name] for told in self.reports for name, end_s in told.items()]

    async def play(self, worker: Worker) -> None:
        self.worker = worker
        while self.arrivals:  # the stage is idle
            await self.pass_by(self.arrivals[0][0] - self.seconds)
            while worker._ahead._making or not all(task.done() for task in self.tasks):
                await asyncio.sleep(0)
        await asyncio.gather(*self.tasks)


PICTURE = Picture(1, 1, b"\0\0\0")


def asked(worker: Worker, packet: Packet) -> Held:
    cells, steps = packet.width * packet.height // 16, packet.plan.spans[0].steps
    status, guided = worker.status(), packet.guidance > 1
    alone_s = steps * status.seconds_per_step(guided, cells)
    return Held(
        request=packet.request_id,
        image=0,
        steps=steps,
        rows=status.rows(guided),
        cells=cells,
        due_s=due(0.0, alone_s, packet.left.due, worker._mode),
        encodes=True,
        decodes=len(packet.plan.spans) == 1,
        doubled=guided,
    )


class Measured(FakeFamily):
    """Its work takes seconds of the script."""

    def __init__(self, script: Script) -> None:
        super().__init__("edge")
        self.script = script
        self.loop = asyncio.get_running_loop()

    def take(self, seconds: float) -> None:
        asyncio.run_coroutine_threadsafe(self.script.pass_by(seconds), self.loop).result(30)

    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        self.take(TEXTS_S[len(prompts)])
        return super().encode_text(prompts)

    def predict(self, latent: Tensor, t: Tensor, g: Tensor, c: Conditioning) -> Tensor:
        by_rows = BY_ROWS if latent[0, 0].numel() == CELLS else BY_ROWS_LARGE
        self.take(by_rows.get(len(latent), 0.5))
        return super().predict(latent, t, g, c)

    def decode(self, latent: Tensor) -> list[Picture]:
        self.take(PICTURES_S[len(latent)] * latent[0, 0].numel() / CELLS)
        return super().decode(latent)


def some_arrivals(seed: int, count: int) -> list[tuple[float, Packet]]:
    chance, at_s, found = random.Random(seed), 0.0, []
    for number in range(count):
        at_s += chance.expovariate(4.0)
        steps = chance.randint(1, 8)
        packet = a_packet(
            f"tower:{steps}" + (",hall:2" if chance.random() < 0.4 else ""),
            request_id=f"r{number}",
            solver="ddim",
            guidance=chance.choice((1.0, 1.0, 2.0)),
            width=chance.choice((16, 16, 32)),
        )
        found.append((at_s, packet))
    return found


def learned(by_count: Curve) -> dict[int, Recent]:
    return {count: Recent((took_s,)) for count, took_s in by_count.items()}


async def played(
    arrivals: Sequence[tuple[float, Packet | Notice]], every_s: float = 0.0, **options: Any
) -> Script:
    script = Script(list(arrivals), every_s)
    family = FakeFamily("edge") if "emulate" in options else Measured(script)
    worker = Worker(family, stage="tower", tier="edge", capacity=100, clock=script, **options)
    await worker.warm_up(16, "ddim")
    if "emulate" not in options:
        worker._parts.known = Seconds(
            steps={CELLS: Steps(BY_ROWS), 2 * CELLS: Steps(BY_ROWS_LARGE)},
            encode=learned(TEXTS_S),
            decode={CELLS: learned(PICTURES_S)},
        )
    script.seconds = 0.0
    try:
        await script.play(worker)
    finally:
        worker.close()
    return script


ONE_BY_ONE = {"emulate": Emulate(step_s=0.1, encode_s=ENCODE_S, decode_s=DECODE_S)}
IN_BATCHES = {"emulate": Emulate(step_s=BY_ROWS, encode_s=ENCODE_S, decode_s=DECODE_S)}
ways = pytest.mark.parametrize(
    "options",
    [{"rows": 4}, ONE_BY_ONE, IN_BATCHES, {"mode": "off"}, {"mode": "reproducible", "rows": 4}],
    ids=["batches", "stated one by one", "stated batches", "off", "reproducible"],
)


@ways
async def test_what_is_foretold_comes_true(options: dict[str, Any]) -> None:
    """Whatever runs when the stage reports, nothing is off by more than rounding, neither in the
    median nor at most."""
    late_s: list[float] = []
    for seed in range(2):
        script = await played(some_arrivals(seed, 8), every_s=0.0571, **options)
        late_s += script.late_s
    assert len(late_s) > 100
    assert max(map(abs, late_s)) < 1e-9


async def test_what_runs_is_what_makes_it_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a pass has just begun at every report, and lines wait in one fixed order."""
    told = Worker.status
    monkeypatch.setattr(Worker, "status", lambda worker: replace(told(worker), turn=Turn()))
    script = await played(some_arrivals(0, 8), every_s=0.0371, rows=4)
    assert median(script.late_s) > 0.03
    assert max(script.late_s) > 0.2


def some_told(seed: int, count: int) -> list[tuple[float, Packet | Notice]]:
    """Half of them are told some time before they come."""
    chance = random.Random(seed)
    found: list[tuple[float, Packet | Notice]] = []
    for at_s, packet in some_arrivals(seed, count):
        if chance.random() < 0.5:
            found.append((at_s, packet))
            continue
        comes_at = 2.0 + 2 * at_s + chance.random()
        steps, guidance = chance.randint(1, 8), packet.guidance
        first = replace(a_packet(f"hall:1,tower:{steps}"), solver="ddim", guidance=guidance)
        first = replace(first, request_id=packet.request_id, width=packet.width)
        later = run_span(FakeFamily("edge"), first, first.plan.spans[0])
        found.append((at_s, Notice(first, comes_at)))
        found.append((comes_at, replace(later, left=Times(due=DUE_S))))
    return sorted(found, key=lambda one: one[0])


@ways
async def test_texts_that_come_ahead_are_foretold(options: dict[str, Any]) -> None:
    """Those who are told are part of the forecast from then on."""
    late_s: list[float] = []
    ahead: set[tuple[int, str]] = set()
    for seed in range(3):
        script = await played(some_told(seed, 8), every_s=0.0571, **options)
        late_s += script.late_s
        ahead |= {(seed, name) for name in script.ahead}
    assert len(late_s) > 100
    assert len(ahead) > 3
    assert max(map(abs, late_s)) < 1e-9


@ways
async def test_what_is_foretold_of_an_idle_stage_is_exact(options: dict[str, Any]) -> None:
    for large in (False, True):
        packet = a_packet("tower:7", width=32 if large else 16, request_id="only")
        script = await played([(1.5, packet)], **options)
        assert script.late_s == pytest.approx([0.0], abs=1e-9)


@ways
async def test_many_at_once_are_foretold_exactly(options: dict[str, Any]) -> None:
    together = [(1.0, packet) for _, packet in some_arrivals(3, 9)]
    script = await played(together, **options)
    assert script.late_s == pytest.approx([0.0] * 9, abs=1e-9)


async def test_who_ends_in_one_pass_is_decoded_in_its_order() -> None:
    """Not in that of arrival: who is due first is first in the pass, and first to be decoded."""
    packets = [
        a_packet("tower:4", request_id=f"r{k}", guidance=1.0, left=Times(due=9.0 - k))
        for k in range(4)
    ]
    script = await played([(1.0, packet) for packet in packets], every_s=0.0571, **IN_BATCHES)
    assert len(script.late_s) > 20
    assert max(map(abs, script.late_s)) < 1e-9
