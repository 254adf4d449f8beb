"""Stages in this process: tests, and `generate` on one machine without Ray."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from diffusion_edge.engine.worker import Worker
from diffusion_edge.errors import StageLost
from diffusion_edge.request import Event


class LocalTransport:
    """Reaches workers by name; `workers` may grow after the transport is made."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self._workers = workers

    async def expect(self, stage: str, packets: Sequence[bytes]) -> None:
        """See `Worker.expect`."""
        for packet in packets:
            self._workers[stage].expect(packet)

    async def forget(self, stage: str, request: str) -> None:
        """See `Worker.forget`."""
        self._workers[stage].forget(request)

    async def replan(self, stage: str, packet: bytes) -> bool:
        """See `Worker.replan`."""
        return self._workers[stage].replan(packet)

    async def throttle(self, source: str, target: str, factor: float, restart: bool) -> None:
        """Of the emulated link from `source` to `target`; see `Worker.throttle`."""
        self._workers[source].throttle(target, factor, restart=restart)

    async def probe(self, source: str, target: str, nbytes: int) -> float | None:
        """Of the link from `source` to `target`; see `Worker.probe`."""
        return await self._workers[source].probe(target, nbytes, self)

    async def greet(self, stage: str, data: bytes) -> AsyncGenerator[float, None]:
        """Never late: both ends are one event loop, which the sender watches."""
        if stage not in self._workers:
            raise StageLost(f"there is no stage {stage!r} here", stage=stage)
        yield 0.0

    async def run(self, stage: str, packet: bytes) -> AsyncGenerator[Event, None]:
        if stage not in self._workers:
            known = ", ".join(self._workers)
            raise StageLost(f"there is no stage {stage!r} here; there are {known}", stage=stage)
        async with aclosing(self._workers[stage].run(packet, self)) as events:
            async for event in events:
                yield event
