"""What is compared: the stock pipeline in two manners, and our engine with parts switched off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, cast

import torch
from torch import Tensor

from diffusion_edge.bench.stock import StockPipeline
from diffusion_edge.bench.timing import BOUND, ROUNDING, check_equal
from diffusion_edge.bench.workload import Asked
from diffusion_edge.engine.worker import Worker
from diffusion_edge.errors import StageLost
from diffusion_edge.families.base import Family
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.packet import new_packet, write
from diffusion_edge.sites.local import LocalTransport
from diffusion_edge.types import Done, Picture, Plan

ONE_BY_ONE = "stock pipeline, one at a time"
BY_WAITING = "stock pipeline, batched by waiting"
EACH_CORE = "stock pipelines, one on each core"
IN_FLIGHT = "engine, in-flight"
BATCHING_OFF = "engine, batching off"
OVERLAP_OFF = "engine, overlap off"
REPRODUCIBLE = "engine, reproducible"


@dataclass(frozen=True)
class Arm:
    """One way to make the images of a workload.

    pictures: what is timed, from requests to 8-bit pictures. latents: the final latents
    (1, C, h, w) by request, for the check.
    """

    name: str
    pictures: Callable[[Sequence[Asked]], Sequence[Any]]
    latents: Callable[[Sequence[Asked]], Sequence[Tensor]]


@contextmanager
def all_arms(card: FamilyCard, family: Family, pipeline: StockPipeline) -> Iterator[list[Arm]]:
    """The arms by their names above, the stock pipeline one at a time first."""
    watched = Watched(family)
    threads = torch.get_num_threads()
    with asyncio.Runner() as runner, ExitStack() as closing:

        def ours(name: str, **options: Any) -> Arm:
            engine = Engine(runner, card, watched, **options)
            closing.callback(engine.close)
            return Arm(name, engine.pictures, engine.latents)

        yield [
            Arm(
                ONE_BY_ONE, pipeline.one_by_one, lambda asked: pipeline.one_by_one(asked, "latent")
            ),
            Arm(
                BY_WAITING, pipeline.by_waiting, lambda asked: pipeline.by_waiting(asked, "latent")
            ),
            *([each_core(card, family, threads, closing)] if threads > 1 else []),
            ours(IN_FLIGHT),
            ours(BATCHING_OFF, mode="off"),
            ours(OVERLAP_OFF, overlap=False),
            ours(REPRODUCIBLE, mode="reproducible"),
        ]


def each_core(card: FamilyCard, family: Family, threads: int, closing: ExitStack) -> Arm:
    """As many stock pipelines as torch has threads, one thread each, that share the requests."""
    free: SimpleQueue[StockPipeline] = SimpleQueue()
    for _ in range(threads):
        free.put(StockPipeline(card, family.stage, family.device))
    pool = closing.enter_context(
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    )

    def one(asked: Asked, output: str) -> Any:
        pipeline = free.get()
        try:
            return pipeline.one_by_one([asked], output)[0]
        finally:
            free.put(pipeline)

    return Arm(
        EACH_CORE,
        lambda asked: list(pool.map(partial(one, output="pil"), asked)),
        lambda asked: list(pool.map(partial(one, output="latent"), asked)),
    )


# ---------------------------------------------------------------------------- ours


class Watched:
    """A family that keeps the latents it decoded beside their pictures."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self.decoded: list[tuple[Picture, Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def decode(self, latent: Tensor) -> list[Picture]:
        pictures = self._family.decode(latent)
        self.decoded += zip(pictures, torch.split(latent, 1), strict=True)
        return pictures


class Engine:
    """A worker of one stage that gets all requests at once, as packets, over LocalTransport."""

    def __init__(
        self, runner: asyncio.Runner, card: FamilyCard, family: Watched, **options: Any
    ) -> None:
        self._runner, self._card, self._family = runner, card, family
        self._stage: str = family.stage
        self._worker = Worker(
            cast(Family, family),
            stage=self._stage,
            tier=card.stages[self._stage].tier,
            capacity=1024,
            threads=torch.get_num_threads(),
            **options,
        )
        self._transport = LocalTransport({self._stage: self._worker})
        runner.run(self._worker.warm_up(card.defaults.size, card.defaults.solver))

    def pictures(self, requests: Sequence[Asked]) -> list[Picture]:
        """In the requests' order."""
        self._family.decoded.clear()
        return self._runner.run(self._all(requests))

    def latents(self, requests: Sequence[Asked]) -> list[Tensor]:
        """Final latents (1, C, h, w) in the requests' order."""
        pictures = self.pictures(requests)
        decoded = {id(picture): latent for picture, latent in self._family.decoded}
        return [decoded[id(picture)] for picture in pictures]

    def close(self) -> None:
        self._worker.close()

    async def _all(self, requests: Sequence[Asked]) -> list[Picture]:
        return list(await asyncio.gather(*map(self._one, requests)))

    async def _one(self, asked: Asked) -> Picture:
        request = asked.request(self._card)
        plan = Plan.of(((self._stage, request.steps),))
        data = write(new_packet(request, plan, 0, self._family.latent_space))
        async with aclosing(self._transport.run(self._stage, data)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return event.picture
        raise StageLost(f"the stage {self._stage!r} ended without a picture", stage=self._stage)


# ---------------------------------------------------------------------------- equality


def relative(x: Tensor, reference: Tensor) -> float:
    """Relative L2 error."""
    return float(torch.linalg.vector_norm(x - reference) / torch.linalg.vector_norm(reference))


def errors_of(
    arms: Sequence[Arm], requests: Sequence[Asked], pipeline: StockPipeline
) -> dict[str, float]:
    """By arm, the worst error of a final latent against the first arm's, each request made by it
    alone. Raises UnequalArm where more than rounding makes the difference.

    Beyond BOUND an error still is rounding if it is at most ROUNDING times what one unit in the
    last place of the initial noise does to the stock pipeline: a stiff model makes much of little.
    """
    expected = arms[0].latents(requests)
    found = {arms[0].name: 0.0}
    for arm in arms[1:]:
        latents = arm.latents(requests)
        errors = [relative(x, y) for x, y in zip(latents, expected, strict=True)]
        for at, error in enumerate(errors):
            if not error <= BOUND:
                floor = relative(pipeline.one_ulp(requests[at]), expected[at])
                check_equal(
                    arm.name,
                    {f"request {at}, {requests[at]}": error},
                    max(BOUND, ROUNDING * floor),
                )
        found[arm.name] = max(errors)
    return found
