"""Stages as Ray Serve deployments: packets travel through streaming handles."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException, RequestCancelledError

from diffusion_edge.errors import EdgeError, QueueFull, StageLost
from diffusion_edge.request import Event
from diffusion_edge.sites.lease import Renewing

log = logging.getLogger(__name__)

GREET_AGAIN_S = 0.5


class RayTransport:
    """Reaches stages by name through their deployment handles.

    Closing the iterator cancels the call, which cancels the work in the replica. So does the end
    of this process, within some seconds; see `sites.lease`. Errors of ours arrive as they were
    raised; a replica that died or cannot be reached is StageLost.
    """

    def __init__(self, handles: Mapping[str, Any]) -> None:
        self._runs = {
            stage: handle.options(stream=True, method_name="run")
            for stage, handle in handles.items()
        }
        self._greets = {
            stage: handle.options(stream=True, method_name="greet")
            for stage, handle in handles.items()
        }
        self._all = dict(handles)
        self._expects = {
            stage: handle.options(method_name="expect") for stage, handle in handles.items()
        }
        self._probes = {
            stage: handle.options(method_name="probe") for stage, handle in handles.items()
        }
        renew = {
            stage: partial(_renew, handle.options(method_name="renew"))
            for stage, handle in handles.items()
        }
        self._renewing = Renewing(renew)
        self._reached: set[str] = set()
        self._opening: list[asyncio.Task[None]] = []

    @property
    def reached(self) -> tuple[str, ...]:
        """The stages that have answered since `open`."""
        return tuple(sorted(self._reached))

    def open(self) -> None:
        """Greets every stage until it answers, in the background.

        The first call through a handle loads and connects what later ones use; on a cold machine
        that took longer than a hand-off may.
        """
        self._opening = [asyncio.create_task(self._greet(stage)) for stage in self._greets]

    async def _greet(self, stage: str) -> None:
        while stage not in self._reached:
            try:
                async for _ in self._greets[stage].remote(b""):
                    self._reached.add(stage)
            except (RayError, RayServeException) as error:
                log.warning("the stage %s does not answer: %s", stage, type(error).__name__)
                await asyncio.sleep(GREET_AGAIN_S)

    async def run(self, stage: str, packet: bytes) -> AsyncGenerator[Event, None]:
        self._check(stage)
        with self._renewing.hold(stage) as lease:
            response = self._runs[stage].remote(packet, lease)
            finished = False
            try:
                async for event in response:
                    yield event
                finished = True
            except (RayError, RayServeException) as error:
                finished = True
                raise typed(error, stage) from None
            finally:
                if not finished:
                    response.cancel()

    def _check(self, stage: str) -> None:
        if stage not in self._runs:
            known = ", ".join(self._runs)
            raise StageLost(f"there is no stage {stage!r}; there are {known}", stage=stage)

    async def greet(self, stage: str, data: bytes) -> AsyncGenerator[float, None]:
        """Yields once, when the stage has the bytes, which go the way of a packet: seconds by which
        its event loop was late."""
        self._check(stage)
        response = self._greets[stage].remote(data)
        answered = False
        try:
            async for late_s in response:
                answered = True
                yield late_s
        except (RayError, RayServeException) as error:
            answered = True
            raise typed(error, stage) from None
        finally:
            if not answered:
                response.cancel()

    async def expect(self, stage: str, packets: Sequence[bytes]) -> None:
        """See `Worker.expect`. Of several replicas one is told; where another one gets the latents,
        it encodes their texts then."""
        try:
            await self._expects[stage].remote(packets)
        except (RayError, RayServeException) as error:
            raise typed(error, stage) from None

    async def forget(self, stage: str, request: str) -> None:
        """In every replica; see `Worker.forget`."""
        try:
            await self._all[stage].broadcast("forget", request).results_async()
        except (RayError, RayServeException) as error:
            raise typed(error, stage) from None

    async def replan(self, stage: str, packet: bytes) -> bool:
        """In whichever replica has the image; see `Worker.replan`."""
        try:
            return any(await self._all[stage].broadcast("replan", packet).results_async())
        except (RayError, RayServeException) as error:
            raise typed(error, stage) from None

    async def probe(self, source: str, target: str, nbytes: int) -> float | None:
        """Of the link from `source` to `target`; see `Worker.probe`."""
        try:
            seconds: float | None = await self._probes[source].remote(target, nbytes)
        except (RayError, RayServeException) as error:
            raise typed(error, source) from None
        return seconds

    async def throttle(self, source: str, target: str, factor: float, restart: bool) -> None:
        """Of the emulated link from `source` to `target`, in every replica of `source`, each of
        which has a link of its own; see `Worker.throttle`."""
        try:
            call = self._all[source].broadcast("throttle", target, factor, restart)
            told = await call.results_async()
        except (RayError, RayServeException) as error:
            raise typed(error, source) from None
        if not told:
            raise StageLost(f"the stage {source!r} has no replica that answers", stage=source)


async def _renew(handle: Any, leases: Sequence[str]) -> None:
    await handle.remote(leases)


def typed(error: Exception, stage: str) -> Exception:
    """What an error of a call to a stage means to us."""
    meant: Exception = StageLost(
        f"the stage {stage!r} was lost ({type(error).__name__}); it is being started again",
        stage=stage,
    )
    if isinstance(error, RequestCancelledError):
        meant = error
    elif isinstance(error, BackPressureError):
        meant = QueueFull(f"the stage {stage!r} takes no more requests")
    elif isinstance(error, RayTaskError) and isinstance(error.cause, EdgeError):
        meant = error.cause
    elif isinstance(error, RayTaskError):
        log.error("the stage %s failed: %s", stage, error)
        meant = EdgeError(f"the stage {stage!r} failed: {type(error.cause).__name__}")
    return meant
