"""Stand-ins that run the whole flow in milliseconds: a denoiser, a clock, a transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffusion_edge.families.base import Conditioning, to_pictures
from diffusion_edge.offer import Offer
from diffusion_edge.plan import Guiding
from diffusion_edge.request import Event, Picture
from diffusion_edge.schedule import Schedule, bounds, fitting, resolve

Result = TypeVar("Result")

NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
}


class FakeFamily:
    """A denoiser without weights that answers to prompt and timestep.

    on_predict is called in the worker's thread before every forward pass.
    """

    name = "fake"
    device = torch.device("cpu")
    execution = "eager"
    attention = "sdpa"
    guiding: Guiding = "doubled"
    latent_space = "fa" * 16

    def __init__(self, stage: str, on_predict: Callable[[], object] = lambda: None) -> None:
        self.stage = stage
        self.on_predict = on_predict

    @property
    def offer(self) -> Offer:
        learned = bounds(NOISE)
        return Offer(
            latent_space=self.latent_space,
            allows=lambda width, height: max(width, height) <= 4096,
            latent_shape=self.latent_shape,
            solvers=fitting(NOISE),
            prediction="epsilon",
            timestep=learned.timestep,
            sigma=learned.sigma,
        )

    def schedule(self, solver: str, steps: int, width: int, height: int) -> Schedule:
        return resolve(NOISE, solver, steps)

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        return (3, height // 4, width // 4)

    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        values = torch.tensor([[sum(prompt.encode()) % 17 / 17.0] for prompt in prompts])
        return Conditioning({"value": values})

    def predict(
        self, latent: Tensor, timestep: Tensor, guidance: Tensor, conditioning: Conditioning
    ) -> Tensor:
        self.on_predict()
        column = (-1, 1, 1, 1)
        offset = conditioning.tensors["value"].view(column) + timestep.view(column) / 1000
        return torch.tanh(latent + offset)

    def decode(self, latent: Tensor) -> list[Picture]:
        return to_pictures(latent)

    def unknown_words(self, prompt: str) -> list[str]:
        return [prompt] if prompt == "unknown" else []


class FakeClock:
    """Time that passes only when somebody sleeps or says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)
        await asyncio.sleep(0)


class VirtualClock:
    """Time that passes when all who run have come to wait. Sleeps overlap, as real ones do."""

    def __init__(self, overshoot_s: float = 0.0) -> None:
        self.seconds = 1000.0
        self._overshoot_s = overshoot_s
        self._sleeping: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = count()

    def now(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        wakes = asyncio.get_running_loop().create_future()
        due = self.seconds + seconds + (self._overshoot_s if seconds else 0.0)
        heappush(self._sleeping, (due, next(self._count), wakes))
        await wakes

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work`, and as much time as it takes."""
        task = asyncio.create_task(work)
        while not task.done():
            for _ in range(50):
                await asyncio.sleep(0)
            if self._sleeping:  # else a thread is at work
                self._wake_next()
        return task.result()

    def _wake_next(self) -> None:
        due, _, wakes = heappop(self._sleeping)
        if not wakes.done():
            self.seconds = max(self.seconds, due)
            wakes.set_result(None)


class FakeTransport:
    """Plays given events or raises a given error; records what was sent and whether it closed."""

    def __init__(self, *events: Event | Exception, forever: bool = False) -> None:
        self._events = events
        self._forever = forever
        self.sent: list[tuple[str, bytes]] = []
        self.closed = asyncio.Event()

    async def run(self, stage: str, packet: bytes) -> AsyncIterator[Event]:
        self.sent.append((stage, packet))
        try:
            for event in self._events:
                if isinstance(event, Exception):
                    raise event
                yield event
            if self._forever:
                await asyncio.Event().wait()
        finally:
            self.closed.set()
