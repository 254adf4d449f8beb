"""Every arm in a process of its own, so that none is slowed by the threads of another.

OpenMP spins between its parallel parts only while a process has no more of its threads than there
are cores; beside the threads of an engine a stock pipeline of a small model took nearly twice as
long.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
from torch import Tensor

from diffusion_edge.bench import arms
from diffusion_edge.bench.stock import StockPipeline
from diffusion_edge.bench.timing import check_equal
from diffusion_edge.bench.workload import Asked
from diffusion_edge.errors import EdgeError
from diffusion_edge.execution.check import relative
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.families.quiet import quiet_libraries
from diffusion_edge.rounding import BOUND, allowed

STOP_S = 10.0


class Arm:
    """An arm's process, from outside."""

    def __init__(self, name: str, card: FamilyCard, stage: str, threads: int) -> None:
        self.name = name
        spawning = multiprocessing.get_context("spawn")
        self._pipe, other = spawning.Pipe()
        self._process = spawning.Process(
            target=_host, args=(other, name, card, stage, threads), daemon=True
        )
        self._process.start()
        other.close()

    def await_ready(self) -> None:
        self._answer()

    def seconds(self, requests: Sequence[Asked]) -> float:
        """From the requests to 8-bit pictures, measured where they are made."""
        return float(self._ask("seconds", requests))

    def latents(self, requests: Sequence[Asked]) -> list[Tensor]:
        """Final latents (1, C, h, w) in the requests' order."""
        return [torch.from_numpy(array) for array in self._ask("latents", requests)]

    def close(self) -> None:
        self._pipe.close()
        self._process.join(STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, what: Literal["seconds", "latents"], requests: Sequence[Asked]) -> Any:
        return self._answer((what, list(requests)))

    def _answer(self, question: Any = None) -> Any:
        """To a question, or what it says first."""
        try:
            if question is not None:
                self._pipe.send(question)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise EdgeError(f"the process of the arm {self.name!r} ended") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextmanager
def all_arms(card: FamilyCard, stage: str, threads: int) -> Iterator[list[Arm]]:
    """All arms, loaded and warm, in the order of `arms.names`."""
    started: list[Arm] = []
    try:
        for name in arms.names(threads):
            started.append(Arm(name, card, stage, threads))
            started[-1].await_ready()  # one after the other: an engine measures itself
        yield started
    finally:
        for arm in started:
            arm.close()


def _host(pipe: Connection, name: str, card: FamilyCard, stage: str, threads: int) -> None:
    """The arm's process: answers until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark ends it
    quiet_libraries()
    try:
        with arms.maker(name, card, stage, threads) as maker:
            pipe.send(None)
            while True:
                what, requests = pipe.recv()
                if what == "seconds":
                    began = time.perf_counter()
                    maker.pictures(requests)
                    pipe.send(time.perf_counter() - began)
                else:
                    pipe.send([latent.numpy(force=True) for latent in maker.latents(requests)])
    except EOFError:
        pass
    except Exception as error:
        pipe.send(error)


# ---------------------------------------------------------------------------- equality


def errors_of(
    compared: Sequence[Arm], requests: Sequence[Asked], pipeline: StockPipeline
) -> dict[str, float]:
    """By arm, the worst error of a final latent against the first arm's, each request made by it
    alone. Raises UnequalArm where more than rounding makes the difference.

    Beyond BOUND an error is held against what one unit in the last place of the initial noise does
    to the stock pipeline (`rounding`).
    """
    expected = compared[0].latents(requests)
    found = {compared[0].name: 0.0}
    for arm in compared[1:]:
        latents = arm.latents(requests)
        errors = [relative(x, y) for x, y in zip(latents, expected, strict=True)]
        for at, error in enumerate(errors):
            if not error <= BOUND:
                floor = relative(pipeline.one_ulp(requests[at]), expected[at])
                check_equal(
                    arm.name,
                    {f"request {at}, {requests[at]}": error},
                    allowed(floor),
                )
        found[arm.name] = max(errors)
    return found
