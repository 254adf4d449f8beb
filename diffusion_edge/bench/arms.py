"""What is compared: the stock pipeline in two manners, and our engine with parts switched off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, cast

import torch
from torch import Tensor

from diffusion_edge.bench.stock import StockPipeline
from diffusion_edge.bench.workload import Asked
from diffusion_edge.engine.lanes import leave_cores_to_lanes
from diffusion_edge.engine.worker import Worker
from diffusion_edge.errors import StageLost
from diffusion_edge.families.base import Family
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.families.load import load_family
from diffusion_edge.families.pipeline import Loading
from diffusion_edge.packet import new_packet, write
from diffusion_edge.plan import Plan
from diffusion_edge.request import Done, Picture
from diffusion_edge.sites.local import LocalTransport

ONE_BY_ONE = "stock pipeline, one at a time"
BY_WAITING = "stock pipeline, batched by waiting"
EACH_CORE = "stock pipelines, one on each core"
IN_FLIGHT = "engine, in-flight"
BATCHING_OFF = "engine, batching off"
TOGETHER_OFF = "engine, texts and pictures one by one"
LANES_OFF = "engine, passes not cut over cores"
REPRODUCIBLE = "engine, reproducible"

_ENGINES: Mapping[str, Mapping[str, Any]] = {
    IN_FLIGHT: {},
    BATCHING_OFF: {"mode": "off"},
    TOGETHER_OFF: {"together": False},
    LANES_OFF: {"cut": False},
    REPRODUCIBLE: {"mode": "reproducible"},
}
"""Options of `Worker`."""


@dataclass(frozen=True)
class Maker:
    """One way to make the images of a workload.

    pictures: what is timed, from requests to 8-bit pictures. latents: the final latents
    (1, C, h, w) by request, for the check.
    """

    pictures: Callable[[Sequence[Asked]], Sequence[Any]]
    latents: Callable[[Sequence[Asked]], Sequence[Tensor]]


def names(threads: int) -> list[str]:
    """Of the arms, the stock pipeline one at a time first."""
    stock = [ONE_BY_ONE, BY_WAITING, *([EACH_CORE] if threads > 1 else [])]
    return [*stock, *_ENGINES]


@contextmanager
def maker(name: str, card: FamilyCard, stage: str, threads: int) -> Iterator[Maker]:
    """The arm of that name, in this process and with so many cores to use."""
    with ExitStack() as closing:
        if name in _ENGINES:
            yield _engine(card, stage, threads, _ENGINES[name], closing)
        elif name == EACH_CORE:
            yield _each_core(card, stage, threads, closing)
        else:
            torch.set_num_threads(threads)
            pipeline = StockPipeline(card, stage, Loading().torch_device())
            make = pipeline.by_waiting if name == BY_WAITING else pipeline.one_by_one
            yield Maker(make, partial(make, output="latent"))


def _each_core(card: FamilyCard, stage: str, threads: int, closing: ExitStack) -> Maker:
    """A stock pipeline on each core, one thread each, that share the requests."""
    torch.set_num_threads(1)
    free: SimpleQueue[StockPipeline] = SimpleQueue()
    for _ in range(threads):
        free.put(StockPipeline(card, stage, Loading().torch_device()))
    pool = closing.enter_context(
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    )

    def one(asked: Asked, output: str) -> Any:
        pipeline = free.get()
        try:
            return pipeline.one_by_one([asked], output)[0]
        finally:
            free.put(pipeline)

    return Maker(
        lambda asked: list(pool.map(partial(one, output="pil"), asked)),
        lambda asked: list(pool.map(partial(one, output="latent"), asked)),
    )


def _engine(
    card: FamilyCard, stage: str, threads: int, options: Mapping[str, Any], closing: ExitStack
) -> Maker:
    leave_cores_to_lanes()
    family = Watched(load_family(card, stage, Loading(dtype="float32")))
    runner = closing.enter_context(asyncio.Runner())
    engine = Engine(runner, card, family, threads, **options)
    closing.callback(engine.close)
    return Maker(engine.pictures, engine.latents)


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
        self,
        runner: asyncio.Runner,
        card: FamilyCard,
        family: Watched,
        threads: int,
        **options: Any,
    ) -> None:
        self._runner, self._card, self._family = runner, card, family
        self._stage: str = family.stage
        self._worker = Worker(
            cast(Family, family),
            stage=self._stage,
            tier=card.stages[self._stage].tier,
            capacity=1024,
            threads=threads,
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
