"""What stages are told beside packets. Texts go ahead: later stages of a plan are told of a request
when its first stage gets it, so that they can encode its texts before its latents come; what gets
lost costs no more. And a stage that holds an image is told when its plan is another one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from diffusion_edge.plan import Plan

log = logging.getLogger(__name__)


class Tells(Protocol):
    """How stages are told; see `Worker.expect`, `Worker.forget` and `Worker.replan`."""

    async def expect(self, stage: str, packets: Sequence[bytes]) -> None: ...

    async def forget(self, stage: str, request: str) -> None: ...

    async def replan(self, stage: str, packet: bytes) -> bool: ...


@dataclass
class Told:
    """Who was told of a request."""

    request: str
    stages: list[str]
    telling: list[asyncio.Task[None]]


class Ahead:
    """way: None tells nobody. timeout_s: after which telling is given up."""

    def __init__(self, way: Tells | None, timeout_s: float) -> None:
        self._way = way
        self._timeout_s = timeout_s
        self._telling: set[asyncio.Task[None]] = set()

    @contextmanager
    def told(self, request: str, plan: Plan, packets: Sequence[bytes]) -> Iterator[Told]:
        """packets: as the first stage gets them. Whatever the block raises, the stages then forget
        the request. Nothing is waited for."""
        later = plan.spans[1:] if self._way else ()
        stages = dict.fromkeys(span.stage for span in later)
        told = Told(request, list(stages), [self._expects(stage, packets) for stage in stages])
        try:
            yield told
        except BaseException:
            for task in told.telling:
                task.cancel()
            self._forget(told.stages, request)
            raise

    async def replan(
        self, told: Told, packet: bytes, plan: Plan, at: int, before: Plan
    ) -> bool | None:
        """Whether the stage of a plan's at-th span goes by it from its next step on; None if it
        does not answer. packet: as the first stage would have got it. Later stages are told then,
        and those that were told before forget the request."""
        if self._way is None:
            return False
        try:
            async with asyncio.timeout(self._timeout_s):
                taken = await self._way.replan(plan.spans[at].stage, packet)
        except Exception as error:  # whatever a transport raises
            log.warning("no stage was told of plan %s: %s", plan, type(error).__name__)
            return None
        if taken:
            later = [span.stage for span in plan.spans[at + 1 :]]
            told.telling += [self._expects(stage, [packet]) for stage in dict.fromkeys(later)]
            dropped = {span.stage for span in before.spans[at + 1 :]} - set(later)
            self._forget(dropped, told.request)
            told.stages = [*(s for s in told.stages if s not in dropped), *later]
        return taken

    def _expects(self, stage: str, packets: Sequence[bytes]) -> asyncio.Task[None]:
        assert self._way is not None
        return self._start(stage, self._way.expect(stage, packets))

    def _forget(self, stages: Iterable[str], request: str) -> None:
        for stage in dict.fromkeys(stages):
            if self._way is not None:
                self._start(stage, self._way.forget(stage, request))

    def _start(self, stage: str, call: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._tell(stage, call))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)
        return task

    async def _tell(self, stage: str, call: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await call
        except Exception as error:  # whatever a transport raises
            log.debug("the stage %s was not told: %s", stage, type(error).__name__)
