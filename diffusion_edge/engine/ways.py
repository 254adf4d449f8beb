"""The ways from a stage to those after it: packets leave, and their events come back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace

from diffusion_edge.engine.hop import Guarded
from diffusion_edge.engine.job import Outcome
from diffusion_edge.engine.link import EmulatedLink, steady
from diffusion_edge.engine.pace import Clock
from diffusion_edge.engine.probe import Greets, probed
from diffusion_edge.errors import InvalidRequest, StageLost
from diffusion_edge.families.base import Family
from diffusion_edge.families.card import LatentShape
from diffusion_edge.packet import Packet, tensor_bytes, write
from diffusion_edge.request import Done, Event, HopRecord, Times, Transport
from diffusion_edge.traces import Trace
from diffusion_edge.view import Link

Here = Callable[[bytes, Transport], AsyncGenerator[Event, None]]
"""The events of a packet whose next span is on this stage, too."""


class Ways:
    """From `stage` to any other; the parameters are those of `Worker`."""

    def __init__(
        self,
        family: Family,
        stage: str,
        clock: Clock,
        *,
        links: Mapping[str, Link],
        traces: Mapping[str, Trace],
        charged: LatentShape | None,
        hop_timeout_s: float,
    ) -> None:
        self._family = family
        self._stage = stage
        self._clock = clock
        self._charged = charged
        self._hop_timeout_s = hop_timeout_s
        self._links = {
            target: EmulatedLink(
                traces.get(target) or steady(link.bytes_per_s), link.delay_s, clock
            )
            for target, link in links.items()
        }

    async def hand_on(
        self, done: Outcome, times: Times, forward: Transport, here: Here
    ) -> AsyncGenerator[Event, None]:
        """Sends the packet to the next stage and passes its events on, ours before its in Done.
        times: by the clock."""
        assert done.onward is not None
        target = done.onward.plan.spans[0].stage
        clock, left = self._clock, self._clock.now()
        data = write(replace(done.onward, left=times.shifted(-left)))
        hop = HopRecord(self._stage, target, len(data), 0.0, done.onward.codec)
        link, seen = self._links.get(target), False
        if link is not None:
            hop = replace(hop, emulated_bytes=self._charged_bytes(done.onward, len(data)))
            waited_s = await link.carry(hop.link_bytes)
            hop = replace(hop, queue_s=waited_s, emulated_s=clock.now() - left)
        async with aclosing(self._onward(target, data, forward, here)) as events:
            async for event in events:
                if not seen:
                    hop, seen = replace(hop, seconds=clock.now() - left), True
                if isinstance(event, Done):
                    event = replace(
                        event,
                        spans=(done.record, *event.spans),
                        hops=(hop, *event.hops),
                        warnings=tuple(dict.fromkeys((*done.warnings, *event.warnings))),
                    )
                yield event
                if isinstance(event, Done):
                    return
        raise StageLost(f"the stage {target!r} ended without a result", stage=target)

    def _charged_bytes(self, packet: Packet, nbytes: int) -> int | None:
        """Of a packet of `nbytes`, if its tensors were those of the family that is charged."""
        if self._charged is None:
            return None
        history, codec = len(packet.history), packet.codec
        own = self._family.latent_shape(packet.width, packet.height)
        other = self._charged(packet.width, packet.height)
        more = tensor_bytes(other, history, codec) - tensor_bytes(own, history, codec)
        return nbytes + more

    def _onward(
        self, target: str, data: bytes, forward: Transport, here: Here
    ) -> AsyncGenerator[Event, None]:
        """The events of the next stage. A packet for this one stays in the replica: in Ray 2.60
        some 9 % of the calls that an actor streams from itself hang."""
        if target == self._stage:
            return here(data, forward)
        return Guarded(forward, self._hop_timeout_s).run(target, data)

    def throttle(self, target: str, factor: float, *, restart: bool = False) -> None:
        """As `Worker.throttle`."""
        if target not in self._links:
            raise InvalidRequest(f"the stage {self._stage!r} has no emulated link to {target!r}")
        self._links[target].throttle(factor, restart=restart)

    async def probe(self, target: str, nbytes: int, forward: Greets) -> float | None:
        """As `Worker.probe`."""
        return await probed(target, nbytes, self._links.get(target), forward, self._clock)
