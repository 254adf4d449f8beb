"""What the API tells of emulated links, over real packets and workers: bytes that stand for others,
and a link that is throttled while requests go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from diffusion_edge.api.board import Board
from diffusion_edge.api.carriage import carriage
from diffusion_edge.api.http import create_app
from diffusion_edge.api.service import Service
from diffusion_edge.config import Settings, load_config
from diffusion_edge.emulation import EmulatePackets, emulated_links
from diffusion_edge.engine.worker import Worker
from diffusion_edge.families.card import charged_shape, load_card
from diffusion_edge.families.load import load_family
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.sites.local import LocalTransport
from diffusion_edge.view import StageStatus
from tests.fakes import FakeClock
from tests.serve.live import EMULATED

pytestmark = pytest.mark.usefixtures("brief_warm_up")
PROMPT = {"prompt": "a red circle on a white background", "seed": 5}


def configured(family: Path, packet_bytes: str | None = None) -> Settings:
    packets = EmulatePackets(packet_bytes=packet_bytes) if packet_bytes else None
    changes = {"family": str(family), "emulate": packets}
    return load_config(EMULATED).settings.model_copy(update=changes)


async def status(worker: Worker) -> StageStatus:
    return worker.status()


@asynccontextmanager
async def served(config: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """Stages that take what they take, over emulated links on a clock that only these move."""
    card, clock = load_card(Path(config.family)), FakeClock()
    charged = charged_shape(card, config)
    workers = {
        name: Worker(
            load_family(card, stage.model),
            stage=name,
            tier=stage.tier,
            links=emulated_links(config.links, name),
            charged=charged,
            clock=clock,
        )
        for name, stage in config.stages.items()
    }
    for worker in workers.values():
        await worker.warm_up(16, "ddim")
    board = Board(
        {name: partial(status, worker) for name, worker in workers.items()},
        config.link_map(),
        config.prices_per_s,
        partial(carriage, card, None, 0.01, charged=charged),
        now=lambda: 0.0,
    )
    for name in workers:
        await board.ask_once(name)
    sites = LocalTransport(workers)
    made = Service(
        card=card,
        settings=config,
        quality=QualityTable.unknown(card.name, steps=card.defaults.steps),
        board=board,
        transport=sites,
        throttle=sites.throttle,
    )
    transport = httpx.ASGITransport(create_app(made))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield http
    finally:
        for worker in workers.values():
            worker.close()


async def told(http: httpx.AsyncClient, path: str, **asked: Any) -> dict[str, Any]:
    response = await http.post(path, json=asked)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def generated(http: httpx.AsyncClient, **asked: Any) -> dict[str, Any]:
    ours: dict[str, Any] = (await told(http, "/v1/images/generations", **PROMPT, **asked))[
        "diffusion_edge"
    ]
    return ours


@pytest.mark.parametrize("solver", ["ddim", "lms"])
@pytest.mark.parametrize("codec", ["exact", "int8"])
async def test_links_are_charged_with_the_bytes_of_the_family_that_is_stated(
    tiny_family: Path, solver: str, codec: str
) -> None:
    """What was predicted is what was slept for, and both are marked; the packet is what it was."""
    config = configured(tiny_family, "sdxl")
    ours = {"plan": "hall:5,tower:5", "codec": codec}
    asked = {"size": "32x32", "solver": solver, "diffusion_edge": ours}
    async with served(config) as http:
        planned = await told(http, "/v1/plan", **PROMPT, **asked)
        done = await generated(http, **asked)
    tensors, cell_bytes = {"ddim": 1, "lms": 4}[solver], {"exact": 4, "int8": 1}[codec]
    sdxl = tensors * cell_bytes * 4 * 256 * 256  # 32 pixels are twice the default, as 2048 are
    (hop,) = done["images"][0]["hops"]
    link = config.link_map()["hall", "tower"]
    assert planned["packet_bytes"][5] == pytest.approx(sdxl, abs=2048)
    assert hop["emulated_bytes"] == pytest.approx(planned["packet_bytes"][5], abs=512)
    assert hop["nbytes"] < 8192
    assert hop["emulated_s"] == pytest.approx(link.transfer_s(hop["emulated_bytes"]))
    assert planned["emulated"]["packet_bytes"] == done["emulated"]["packet_bytes"] == "sdxl"


async def test_links_are_charged_with_a_packets_own_bytes_unless_told_otherwise(
    tiny_family: Path,
) -> None:
    config = configured(tiny_family)
    async with served(config) as http:
        done = await generated(http, diffusion_edge={"plan": "hall:5,tower:5"})
    (hop,) = done["images"][0]["hops"]
    assert hop["emulated_bytes"] is None
    own_s = config.link_map()["hall", "tower"].transfer_s(hop["nbytes"])
    assert hop["emulated_s"] == pytest.approx(own_s)
    assert done["emulated"]["packet_bytes"] is None


async def test_a_link_that_is_throttled_takes_longer_from_then_on(tiny_family: Path) -> None:
    config = configured(tiny_family)
    plan = {"plan": "hall:3,tower:3,hall:2,phone:2"}

    async def rates(http: httpx.AsyncClient) -> list[float]:
        """Bytes a second over each hop's link, its delay aside."""
        hops = (await generated(http, diffusion_edge=plan))["images"][0]["hops"]
        links = config.link_map()
        return [
            hop["nbytes"] / (hop["emulated_s"] - links[hop["source"], hop["target"]].delay_s)
            for hop in hops
        ]

    async with served(config) as http:
        wire, phone = 12.5e6, 2.5e6
        assert await rates(http) == pytest.approx([wire, wire, phone])
        await told(http, "/v1/throttle", between=["tower", "hall"], factor=0.01)
        assert await rates(http) == pytest.approx([wire / 100, wire / 100, phone])
        await told(http, "/v1/throttle", between=["tower", "hall"], factor=1)
        assert await rates(http) == pytest.approx([wire, wire, phone])
