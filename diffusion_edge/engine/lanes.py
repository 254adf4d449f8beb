"""The threads that a stage steps in: a forward pass over all of them, or cut into lanes, a part of
its rows on each.

On a CPU several small passes side by side often take less time than one that all cores share;
which it is for how many rows of how many cells is measured at warm-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from diffusion_edge.engine import run as core
from diffusion_edge.engine.run import Predict, Trajectory
from diffusion_edge.families.base import Conditioning, Family

Result = TypeVar("Result")


class Lanes:
    """threads: cores that the stage may use."""

    def __init__(self, name: str, threads: int) -> None:
        self.threads = threads
        self._lanes = [ThreadPoolExecutor(1, f"{name}-{lane}") for lane in range(threads)]

    def run(self, work: Callable[[], Result]) -> Awaitable[Result]:
        """One call, in the first thread, which all cores may help."""
        return asyncio.wrap_future(self._in(0, self.threads, work))

    def step(
        self, family: Family, trajectories: Sequence[Trajectory], lanes: int
    ) -> Awaitable[list[Trajectory]]:
        """One step of each, its forward pass cut into `lanes` parts."""
        predict = partial(self._predict, family.predict, lanes) if lanes > 1 else family.predict
        work = partial(core.step, family, trajectories, predict)
        return asyncio.wrap_future(self._in(0, self.threads // lanes, work))

    def close(self) -> None:
        """Ends the threads; what waits for the first one is dropped."""
        first, *others = self._lanes
        first.shutdown(wait=False, cancel_futures=True)
        for lane in others:  # a part that was dropped here would be waited for without end
            lane.shutdown(wait=False)

    def _predict(
        self,
        predict: Predict,
        lanes: int,
        latent: Tensor,
        timestep: Tensor,
        guidance: Tensor,
        conditioning: Conditioning,
    ) -> Tensor:
        """As `predict`, the first part in this thread, which is the first lane's."""

        def part(rows: slice) -> Tensor:
            with torch.inference_mode():
                return predict(latent[rows], timestep[rows], guidance[rows], conditioning[rows])

        first, *others = cut(len(latent), lanes)
        threads = self.threads // lanes
        elsewhere = [self._in(n, threads, partial(part, rows)) for n, rows in enumerate(others, 1)]
        try:
            here = part(first)
        finally:
            wait(elsewhere)  # no lane is left running when this returns
        return torch.cat([here, *(future.result() for future in elsewhere)])

    def _in(self, lane: int, threads: int, work: Callable[[], Result]) -> Future[Result]:
        def narrowed() -> Result:
            use_threads(threads)
            return work()

        return self._lanes[lane].submit(narrowed)


def use_threads(count: int) -> None:
    """Of torch, in the thread that calls."""
    # A thread takes up the process' number at its first question; asked later, it would be one
    # that another lane has set since.
    torch.get_num_threads()
    torch.set_num_threads(count)


def leave_cores_to_lanes() -> None:
    """To be called in the thread that loads models, before it does.

    Once OpenMP has more threads in a process than there are cores it no longer spins between
    parallel parts, and small ones take twice as long; so none but the first lane has any.
    """
    torch.set_num_threads(1)


def cut(rows: int, count: int) -> list[slice]:
    """`count` parts in order, their sizes differing by at most one."""
    bounds = [rows * part // count for part in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]
