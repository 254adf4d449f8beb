"""A service over a board and a transport that are plain objects; no torch, no Ray.

Stages are called otherwise than their models and tiers, and no two stages, links, steps or sides of
a picture are alike, so that none passes for another one.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from diffusion_edge.api.ahead import Tells
from diffusion_edge.api.service import Board, Service, Throttle
from diffusion_edge.config import Settings
from diffusion_edge.curves import cells_of
from diffusion_edge.errors import EdgeError
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.plan import Codec, Plan
from diffusion_edge.request import (
    Accepted,
    Done,
    Event,
    HopRecord,
    ImageRequest,
    Picture,
    SpanRecord,
    Times,
)
from diffusion_edge.routing.codecs import codecs_by_step
from diffusion_edge.routing.links.taken import Links
from diffusion_edge.routing.promises import Kept, Promises
from diffusion_edge.view import Carried, Choice, Held, StageStatus, View
from tests.routing.views import CELLS, MODEL, symmetric

CARD = FamilyCard.model_validate(
    {
        "name": "shapes",
        "title": "Shapes",
        "architecture": "pixart",
        "licence": "Apache-2.0",
        "stages": {name: {"folder": name, "tier": name} for name in ("device", "edge", "cloud")},
        "sizes": [64, 96],
        "latent_channels": 4,
        "factor": 8,
        "max_tokens": 32,
        "defaults": {"size": 64, "steps": 20, "guidance": 4.0, "solver": "ddim"},
        "root": Path(__file__).parents[2] / "stage_models" / "shapes",
    }
)

RULE = {"multiple_of": 16, "least": 64, "most": 512, "pixels": 65_536}
BY_RULE = FamilyCard.model_validate(CARD.model_dump() | {"sizes": RULE})
"""The same family for rectangles."""


LINKS = {("phone", "tower"): 3e6, ("tower", "hall"): 1e7, ("phone", "hall"): 2e6}
"""Bytes per second."""


def settings(**changes: Any) -> Settings:
    stages = {
        name: {"tier": MODEL[name], "model": MODEL[name], "emulate": {"step_s": step_s}}
        for name, step_s in (("phone", 0.4), ("tower", 0.2), ("hall", 0.05))
    }
    data: dict[str, Any] = {
        "family": "stage_models/shapes",
        "prices_per_s": {"device": 0.0, "edge": 1.0, "cloud": 4.0},
        "stages": stages,
        "links": [
            {"between": list(pair), "bytes_per_s": rate, "emulate": True}
            for pair, rate in LINKS.items()
        ],
    }
    return Settings.model_validate(data | changes)


PACKET_BYTES = {"exact": 2048, "bf16": 1024, "int8": 512}
"""At step 0. Every step adds a byte."""


def packet_bytes(codecs: Sequence[Codec]) -> tuple[int, ...]:
    """By step, where `codecs` has the codec of each."""
    return tuple(PACKET_BYTES[codec] + step for step, codec in enumerate(codecs))


@dataclass
class FakeBoard:
    """Every configured stage is alive and idle; `dead` and `full` name exceptions, and the hall is
    busy for `busy_s`. A stage is the slower at texts and pictures the earlier the config names it.
    """

    settings: Settings
    dead: set[str] = field(default_factory=set)
    full: set[str] = field(default_factory=set)
    reaches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    busy_s: float = 0.0

    def __post_init__(self) -> None:
        self.links = Links(self.settings.first_guesses(), time.monotonic)

    def statuses(self) -> Mapping[str, StageStatus]:
        return {
            name: StageStatus(
                stage=name,
                tier=stage.tier,
                model=stage.model,
                queue_s=2.5 if name in self.full else 0.0,
                queued=stage.capacity if name in self.full else 0,
                capacity=stage.capacity,
                step_s={CELLS: stage.emulate.curve if stage.emulate else {1: 0.05}},
                encode_s=0.01 / place,
                decode_s={CELLS: 0.03 / place},
                resident_bytes=place,
                emulated=stage.emulate is not None,
                reaches=self.reaches.get(name),
                held=self._held() if name == "hall" and self.busy_s else (),
            )
            for place, (name, stage) in enumerate(self.settings.stages.items(), 1)
            if name not in self.dead
        }

    def _held(self) -> tuple[Held, ...]:
        steps = round(self.busy_s / 0.05)
        return (Held("before", 0, steps, 1, CELLS, -1.0, encodes=False, decodes=False),)

    def view(self, request: ImageRequest) -> View:
        codecs = codecs_by_step(request, None, 0.01)
        links, prices = self.settings.link_map(), self.settings.prices_per_s
        cells = cells_of(CARD.latent_shape(request.width, request.height))
        carried = {
            steps: Carried(packet_bytes(by_step), by_step)
            for steps in request.free_steps
            for by_step in [codecs_by_step(request.in_steps(steps), None, 0.01)]
        }
        seen = View(self.statuses(), links, prices, packet_bytes(codecs), codecs, cells)
        return replace(seen, carried=carried)

    def promised(
        self, request: ImageRequest, choice: Choice, view: View
    ) -> AbstractContextManager[Kept]:
        """Keeps none."""
        return nullcontext(Kept(Promises(), ()))


def fake_packet(request: ImageRequest, plan: Plan, image: int, left: Times) -> bytes:
    fields = {"plan": str(plan), "seed": request.seed + image, "image": image, **asdict(left)}
    size = {"width": request.width, "height": request.height}
    return json.dumps(fields | size).encode()


def fake_picture(seed: int, width: int, height: int) -> Picture:
    """Every seed has its own colour."""
    colour = bytes((seed * 7 % 256, seed * 31 % 256, seed * 101 % 256))
    return Picture(width, height, colour * (width * height))


@dataclass
class FakeTransport:
    """Answers each packet with one picture after `gate` opens; `fails` maps an image to an error.

    `started` and `closed` count runs that began and that ended early; the events follow them.
    """

    fails: dict[int, BaseException] = field(default_factory=dict)
    gate: asyncio.Event | None = None
    packets: list[dict[str, Any]] = field(default_factory=list)
    closed: int = 0
    all_started: asyncio.Event = field(default_factory=asyncio.Event)
    all_closed: asyncio.Event = field(default_factory=asyncio.Event)
    expected: int = 1
    warnings: tuple[str, ...] = ()

    async def run(self, stage: str, packet: bytes) -> AsyncGenerator[Event, None]:
        asked = json.loads(packet)
        self.packets.append(asked | {"stage": stage})
        yield Accepted(stage)
        try:
            if len(self.packets) >= self.expected:
                self.all_started.set()
            if asked["image"] in self.fails:
                raise self.fails[asked["image"]]
            if self.gate is not None:
                await self.gate.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.closed += 1
            if self.closed >= self.expected:
                self.all_closed.set()
            raise
        plan = Plan.parse(asked["plan"])
        picture = fake_picture(asked["seed"], asked["width"], asked["height"])
        run_s = 0.1 * (1 + asked["image"])
        spans = tuple(
            SpanRecord(s.stage, MODEL[s.stage], s.start, s.stop, 0.0, run_s, 0.01, 0.0, 0.05)
            for s in plan.spans
        )
        hops = tuple(
            HopRecord(a.stage, b.stage, 2048 + b.start, 0.02, "exact", 0.01)
            for a, b in pairwise(plan.spans)
        )
        yield Done(picture, spans, hops, self.warnings)


def service(
    transport: FakeTransport | None = None,
    board: Board | None = None,
    config: Settings | None = None,
    card: FamilyCard = CARD,
    throttle: Throttle | None = None,
    tells: Tells | None = None,
    **changes: Any,
) -> Service:
    config = config or settings(**changes)
    return Service(
        card=card,
        settings=config,
        quality=symmetric(),
        board=board or FakeBoard(config),
        transport=transport or FakeTransport(),
        throttle=throttle,
        tells=tells,
        packet=fake_packet,
        draw_seed=lambda: 1234,
    )


def failing(error: EdgeError, image: int = 0, **kw: Any) -> FakeTransport:
    return FakeTransport(fails={image: error}, **kw)


def request(**changes: Any) -> ImageRequest:
    asked = ImageRequest(
        prompt="a red circle",
        family="shapes",
        steps=20,
        seed=5,
        solver="ddim",
        guidance=4.0,
        width=96,
        height=64,
        images=2,
        policy="cloud-only",
        request_id="test",
    )
    return replace(asked, **changes)
