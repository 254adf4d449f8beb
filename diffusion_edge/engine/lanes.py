"""The threads that a stage steps in: a batch in one forward pass over all of them, or cut into
lanes, a part of the samples on each.

On a CPU several small passes side by side often take less time than one that all cores share;
which it is for how many rows is measured at warm-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import TypeVar

import torch

from diffusion_edge.engine import run as core
from diffusion_edge.engine.run import Trajectory
from diffusion_edge.families.base import Family

Result = TypeVar("Result")


class Lanes:
    """threads: cores that the stage may use."""

    def __init__(self, name: str, threads: int) -> None:
        self.threads = threads
        self._lanes = [ThreadPoolExecutor(1, f"{name}-{lane}") for lane in range(threads)]

    def run(self, work: Callable[[], Result]) -> Awaitable[Result]:
        """One call, in the first thread, which all cores may help."""
        return self._in(0, self.threads, work)

    async def step(
        self, family: Family, trajectories: Sequence[Trajectory], lanes: int
    ) -> list[Trajectory]:
        """One step of each, cut into `lanes` parts or as many as there are trajectories."""
        count = min(lanes, len(trajectories))
        done = await asyncio.gather(
            *(
                self._in(lane, self.threads // count, partial(core.step, family, part))
                for lane, part in enumerate(cut(trajectories, count))
            ),
            return_exceptions=True,  # no lane is left running when this returns
        )
        after: list[Trajectory] = []
        for part in done:
            if isinstance(part, BaseException):
                raise part
            after += part
        return after

    def close(self) -> None:
        """Ends the threads; what waits in them is dropped."""
        for lane in self._lanes:
            lane.shutdown(wait=False, cancel_futures=True)

    def _in(self, lane: int, threads: int, work: Callable[[], Result]) -> Awaitable[Result]:
        def narrowed() -> Result:
            # A thread takes up the process' number at its first question; asked later, it would
            # be one that another lane has set since.
            torch.get_num_threads()
            torch.set_num_threads(threads)
            return work()

        return asyncio.get_running_loop().run_in_executor(self._lanes[lane], narrowed)


def leave_cores_to_lanes() -> None:
    """To be called in the thread that loads models, before it does.

    Once OpenMP has more threads in a process than there are cores it no longer spins between
    parallel parts, and small ones take twice as long; so none but the first lane has any.
    """
    torch.set_num_threads(1)


def cut(trajectories: Sequence[Trajectory], count: int) -> list[Sequence[Trajectory]]:
    """`count` parts in order, their sizes differing by at most one."""
    bounds = [len(trajectories) * part // count for part in range(count + 1)]
    return [trajectories[a:b] for a, b in pairwise(bounds)]
