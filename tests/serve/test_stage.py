"""What stages ask of each other, through the handles of Serve. No Ray is started."""

from __future__ import annotations

from typing import Any

import pytest

from diffusion_edge.engine.link import EmulatedLink, steady
from diffusion_edge.engine.pace import RealClock
from diffusion_edge.engine.probe import probed
from diffusion_edge.errors import StageLost
from diffusion_edge.serve.stage import Stage
from diffusion_edge.sites.ray import RayTransport

serve = pytest.importorskip("ray.serve")


class Sender:
    """Of a worker what a probe needs: a link of 1 MB/s and a tenth of a second to the hall."""

    def __init__(self) -> None:
        self.clock = RealClock()
        self.link = EmulatedLink(steady(1e6), 0.1, self.clock)

    async def probe(self, target: str, nbytes: int, forward: Any) -> float | None:
        return await probed(target, nbytes, self.link, forward, self.clock)


class OnTime:
    """An event loop that is never late."""

    def worst_s(self) -> float:
        return 0.0


class Reader:
    """Of a worker what it is told ahead."""

    def __init__(self) -> None:
        self.told: list[bytes] = []

    def expect(self, data: bytes) -> None:
        self.told.append(data)


@serve.deployment
class Hall(Stage):
    def __init__(self) -> None:
        self._worker = Reader()  # type: ignore[assignment]  # a fake
        self._lag = OnTime()  # type: ignore[assignment]  # a fake

    async def told(self) -> list[bytes]:
        return self._worker.told  # type: ignore[attr-defined,no-any-return]  # of the fake


@serve.deployment
class Tower(Stage):
    def __init__(self, hall: Any) -> None:
        self._worker = Sender()  # type: ignore[assignment]  # a fake
        self._transport = RayTransport({"hall": hall})


@serve.deployment
class Ingress:
    def __init__(self, tower: Any, hall: Any) -> None:
        self.transport = RayTransport({"tower": tower, "hall": hall})
        self.hall = hall

    async def probe(self, target: str) -> float | None:
        return await self.transport.probe("tower", target, 50_000)

    async def tell(self, *packets: bytes) -> Any:
        await self.transport.expect("hall", packets)
        return await self.hall.told.remote()


def test_a_stage_is_told_of_packets_that_come_later() -> None:
    hall = Hall.bind()
    handle = serve.run(Ingress.bind(Tower.bind(hall), hall), _local_testing_mode=True)
    assert handle.tell.remote(b"one", b"two").result() == [b"one", b"two"]


def test_a_probe_goes_from_stage_to_stage_over_the_emulated_link() -> None:
    hall = Hall.bind()
    handle = serve.run(Ingress.bind(Tower.bind(hall), hall), _local_testing_mode=True)
    assert 0.15 <= handle.probe.remote("hall").result() < 4.0
    with pytest.raises(StageLost, match="no stage 'attic'; there are hall"):
        handle.probe.remote("attic").result()
