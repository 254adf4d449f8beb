"""Texts go ahead: later stages of a plan are told of a request when its first stage gets it, so
that they can encode its texts before its latents come. What is lost costs no more than that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from diffusion_edge.plan import Plan

log = logging.getLogger(__name__)


class Tells(Protocol):
    """How stages are told; see `Worker.expect` and `Worker.forget`."""

    async def expect(self, stage: str, packets: Sequence[bytes]) -> None: ...

    async def forget(self, stage: str, request: str) -> None: ...


class Ahead:
    """way: None tells nobody. timeout_s: after which telling is given up."""

    def __init__(self, way: Tells | None, timeout_s: float) -> None:
        self._way = way
        self._timeout_s = timeout_s
        self._telling: set[asyncio.Task[None]] = set()

    @contextmanager
    def told(self, request: str, plan: Plan, packets: Sequence[bytes]) -> Iterator[None]:
        """packets: as the first stage gets them. Whatever the block raises, the stages then forget
        the request. Nothing is waited for."""
        if self._way is None:
            yield
            return
        stages = dict.fromkeys(span.stage for span in plan.spans[1:])
        telling = [self._start(stage, self._way.expect(stage, packets)) for stage in stages]
        try:
            yield
        except BaseException:
            for task in telling:
                task.cancel()
            for stage in stages:
                self._start(stage, self._way.forget(stage, request))
            raise

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
