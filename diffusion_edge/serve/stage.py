"""The deployment of one stage: a worker, and the way to the other stages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from ray import serve

from diffusion_edge.config import Settings
from diffusion_edge.emulation import emulated_links, followed
from diffusion_edge.families.card import charged_shape, load_card
from diffusion_edge.places import family_folder, trace_file
from diffusion_edge.request import Event
from diffusion_edge.sites.lease import Leases
from diffusion_edge.sites.ray import RayTransport
from diffusion_edge.traces import Trace, read_rates
from diffusion_edge.view import StageStatus


class Stage:
    """One replica. It is live only when its model is loaded and measured."""

    async def __init__(self, name: str, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        # Here and not above: the process that deploys has no need of torch.
        from diffusion_edge.engine.lag import Lag
        from diffusion_edge.engine.lanes import leave_cores_to_lanes
        from diffusion_edge.engine.pace import RealClock
        from diffusion_edge.engine.worker import Worker
        from diffusion_edge.execution.choose import chosen
        from diffusion_edge.execution.parts import Use
        from diffusion_edge.families.load import load_family
        from diffusion_edge.families.pipeline import Loading

        config = settings.stages[name]
        card = load_card(family_folder(settings.family))
        leave_cores_to_lanes()
        exact = config.precision == "exact"
        loading = Loading(
            config.dtype, config.device, config.offload, config.kernels, config.attention
        )
        if exact:
            loading = replace(loading, dtype="float32", kernels="off", attention="sdpa")
        loaded = load_family(card, config.model, loading)
        sizes = [size for size in card.sizes.squares if size != card.defaults.size]
        use = Use((card.defaults.size, *sizes), card.defaults.solver, config.threads)
        self._worker = Worker(
            chosen(loaded, "eager" if exact else config.execution, use),
            stage=name,
            tier=config.tier,
            model=config.model,
            capacity=config.capacity,
            threads=config.threads,
            emulate=config.emulate,
            mode=config.batching,
            rows=config.batch_rows,
            links=emulated_links(settings.links, name),
            traces={to: _rates(*file) for to, file in followed(settings.links, name).items()},
            charged=charged_shape(card, settings),
            hop_timeout_s=settings.hop_timeout_s,
        )
        await self._worker.warm_up(card.defaults.size, card.defaults.solver, sizes)
        self._leases = Leases(name)
        app = serve.get_replica_context().app_name
        others = [stage for stage in settings.stages if stage != name]
        self._transport = RayTransport(
            {stage: serve.get_deployment_handle(stage, app) for stage in others}
        )
        self._transport.open()
        self._lag = Lag(RealClock())
        self._watching = asyncio.create_task(self._lag.watch())

    async def run(self, packet: bytes, lease: str) -> AsyncGenerator[Event, None]:
        """Ends when the caller has not renewed the lease for some seconds."""
        work = self._worker.run(packet, self._transport)
        async with aclosing(self._leases.held(lease, work)) as events:
            async for event in events:
                yield event

    async def renew(self, leases: Sequence[str]) -> None:
        self._leases.renew(leases)

    async def expect(self, packets: Sequence[bytes]) -> None:
        """See `Worker.expect`."""
        for packet in packets:
            self._worker.expect(packet)

    async def forget(self, request: str) -> None:
        """See `Worker.forget`."""
        self._worker.forget(request)

    async def replan(self, packet: bytes) -> bool:
        """See `Worker.replan`."""
        return self._worker.replan(packet)

    async def status(self) -> StageStatus:
        return replace(self._worker.status(), reaches=self._transport.reached)

    async def throttle(self, target: str, factor: float, restart: bool) -> None:
        """Of the emulated link from here to `target`; see `Worker.throttle`."""
        self._worker.throttle(target, factor, restart=restart)

    async def probe(self, target: str, nbytes: int) -> float | None:
        """Of the way from here to `target`; see `Worker.probe`."""
        return await self._worker.probe(target, nbytes, self._transport)

    async def greet(self, data: bytes) -> AsyncGenerator[float, None]:
        """Answers once, the way `run` does: by how many seconds this process was late."""
        yield self._lag.worst_s()


def _rates(file: str, back: bool) -> Trace:
    """Of a link; of the way back, from the middle of the recording."""
    rates = read_rates(trace_file(file))
    return rates.back() if back else rates
