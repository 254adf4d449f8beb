"""Probes over real workers and emulated links, and what the API tells of them. One process."""

from __future__ import annotations

from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from diffusion_edge.api.board import Board
from diffusion_edge.api.carriage import carriage
from diffusion_edge.api.http import create_app
from diffusion_edge.api.prober import Prober
from diffusion_edge.api.service import Service
from diffusion_edge.config import Settings
from diffusion_edge.emulation import emulated_links
from diffusion_edge.engine.worker import Worker
from diffusion_edge.families.card import load_card
from diffusion_edge.routing.links.probes import QUIET_S
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.sites.local import LocalTransport
from diffusion_edge.traces import Trace, transfer_s
from diffusion_edge.view import StageStatus
from tests.api.fakes import settings
from tests.fakes import FakeFamily, VirtualClock

WAVES = Trace(np.array([0.0, 7.0, 13.0]), np.array([4e5, 2e5, 3e6]), 29.0)
TRACED = ("phone", "hall")


async def status(worker: Worker) -> StageStatus:
    return worker.status()


class Served:
    """Three stages on a clock that only links move; the link between two of them follows WAVES."""

    def __init__(self, family: Path) -> None:
        self.clock, self.config = VirtualClock(), settings(family=str(family))
        self.card = load_card(family)
        self.workers = {name: self.worker(name, self.config) for name in self.config.stages}
        self.sites = LocalTransport(self.workers)
        self.board = Board(
            {name: partial(status, worker) for name, worker in self.workers.items()},
            self.config.first_guesses(),
            self.config.prices_per_s,
            partial(carriage, self.card, None, 0.01),
            now=self.clock.now,
        )
        self.prober = Prober(self.board.links, self.board.open_pairs, self.probe)
        self.probes: list[tuple[str, str, int, float]] = []

    def worker(self, name: str, config: Settings) -> Worker:
        (other,) = set(TRACED) - {name} if name in TRACED else (None,)
        return Worker(
            FakeFamily(name),
            stage=name,
            tier=config.stages[name].tier,
            model=config.stages[name].model,
            links=emulated_links(config.links, name),
            traces={other: WAVES} if other else None,
            clock=self.clock,
        )

    async def probe(self, source: str, target: str, nbytes: int) -> float | None:
        seconds = await self.sites.probe(source, target, nbytes)
        assert seconds is not None
        self.probes.append((source, target, nbytes, seconds))
        return seconds

    async def asked_again(self) -> None:
        for name in self.workers:
            await self.board.ask_once(name)

    async def links(self) -> dict[tuple[str, str], dict[str, Any]]:
        """As /v1/plan tells them."""
        service = Service(
            card=self.card,
            settings=self.config,
            quality=QualityTable.unknown(self.card.name),
            board=self.board,
            transport=self.sites,
        )
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            answer = await http.post("/v1/plan", json={"prompt": "a red circle"})
        assert answer.status_code == 200, answer.text
        return {(link["source"], link["target"]): link for link in answer.json()["links"]}


async def test_quiet_links_are_measured_as_they_are_acted_out(tiny_family: Path) -> None:
    """Each by what its rate was at that moment; a stage that is closed sends and gets none."""
    served = Served(tiny_family)
    for worker in served.workers.values():
        await worker.warm_up(16, "ddim")
    began = served.clock.now()

    async def story() -> None:
        await served.clock.sleep(QUIET_S)
        await served.asked_again()
        assert {link["known"] for link in (await served.links()).values()} == {"stated"}
        for source in list(served.workers) * 2:
            start_s = served.clock.now() - began
            await served.prober.look(source)
            (_, target, nbytes, seconds) = served.probes[-1]
            if {source, target} == set(TRACED):
                assert seconds == pytest.approx(transfer_s(WAVES, start_s, nbytes))
            else:
                assert seconds == pytest.approx(
                    served.config.link_map()[source, target].transfer_s(nbytes)
                )
            await served.asked_again()

    try:
        await served.clock.run(story())
        links = await served.links()
        assert set(links) == set(permutations(served.workers, 2))
        for link in links.values():
            assert (link["known"], link["hops"], link["probes"]) == ("measured", 1, 1)
            assert link["emulated"] is True
            assert 0 <= link["age_s"] < 1
        assert links["phone", "hall"]["bytes_per_s"] != pytest.approx(2e6, rel=0.1)
    finally:
        for worker in served.workers.values():
            worker.close()
