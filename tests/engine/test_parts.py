"""The parts of spans: what is made in one call, and the seconds that are known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_edge.emulation import Emulate
from diffusion_edge.engine.parts import alike
from diffusion_edge.engine.run import begin, run_last_span
from diffusion_edge.engine.worker import Worker
from diffusion_edge.families.base import Conditioning
from diffusion_edge.packet import Packet
from diffusion_edge.request import Done, Picture
from tests.engine.test_worker import CELLS, a_packet, a_worker, all_of, done
from tests.fakes import FakeClock, FakeFamily


async def test_warm_up_measures_rows_and_memory() -> None:
    async with a_worker() as worker:
        status = worker.status()
    assert set(status.step_s) == set(status.decode_s) == {CELLS}
    assert {1, 2, 4} <= set(status.step_s[CELLS])
    assert min(status.step_s[CELLS].values()) > 0
    assert status.encode_s > 0
    assert status.decode_s[CELLS] > 0
    assert not status.emulated


async def test_step_seconds_follow_what_steps_really_take() -> None:
    clock = FakeClock()
    async with a_worker(clock=clock, on_predict=lambda: clock.advance(2.0)) as worker:
        assert worker.status().step_s[CELLS][1] == 0
        await all_of(worker, a_packet("tower:1"))
        assert worker.status().step_s[CELLS][1] == 0  # it may have been a stall
        await all_of(worker, a_packet("tower:10"))
        assert worker.status().step_s[CELLS][1] == pytest.approx(2.0)
        assert worker.status().step_s[CELLS][2] == 0


async def test_a_stage_that_is_not_warm_says_so() -> None:
    worker = Worker(FakeFamily("edge"), stage="tower", tier="edge")
    with pytest.raises(RuntimeError, match="not warmed up"):
        worker.status()
    worker.close()


class Around(FakeFamily):
    """Keeps what is encoded and what is decoded, call by call."""

    def __init__(self) -> None:
        super().__init__("edge")
        self.texts: list[list[str]] = []
        self.pictures: list[tuple[int, ...]] = []

    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        self.texts.append(list(prompts))
        return super().encode_text(prompts)

    def decode(self, latent: Tensor) -> list[Picture]:
        self.pictures.append(tuple(latent.shape))
        return super().decode(latent)


async def around(packets: Sequence[Packet], **options: Any) -> tuple[Around, list[Done]]:
    family = Around()
    worker = Worker(family, stage="tower", tier="edge", **options)
    await worker.warm_up(16, "ddim")
    family.texts.clear()
    family.pictures.clear()
    try:
        return family, [
            done(events)
            for events in await asyncio.gather(*(all_of(worker, packet) for packet in packets))
        ]
    finally:
        worker.close()


SEVERAL = (
    a_packet("tower:3", prompt="one", guidance=2.0, negative_prompt="no", seed=1),
    a_packet("tower:3", prompt="unknown", seed=2),
    a_packet("tower:3", prompt="three", guidance=4.0, seed=3, width=32),
)


async def test_texts_that_wait_together_are_encoded_in_one_call() -> None:
    family, results = await around(SEVERAL)
    assert family.texts == [["one", "no", "unknown", "three", ""]]
    for packet, result in zip(SEVERAL, results, strict=True):
        assert result.picture == run_last_span(FakeFamily("edge"), packet)[1]
    told = ("the word 'unknown' is not known to this family",)
    assert [result.warnings for result in results] == [(), told, ()]


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "off"},
        {"mode": "reproducible"},
        {"together": False},
        {"emulate": Emulate(step_s=0.0)},
    ],
    ids=str,
)
async def test_they_are_not_where_company_shall_not_matter(options: dict[str, Any]) -> None:
    family, results = await around(SEVERAL, **options)
    assert sorted(family.texts) == [["one", "no"], ["three", ""], ["unknown"]]
    assert sorted(shape[0] for shape in family.pictures) == [1, 1, 1]
    for packet, result in zip(SEVERAL, results, strict=True):
        assert result.picture == run_last_span(FakeFamily("edge"), packet)[1]


async def test_pictures_of_one_size_that_wait_together_are_decoded_in_one_call() -> None:
    packets = [a_packet("tower:3", seed=seed) for seed in range(3)]
    family, results = await around(
        packets, clock=FakeClock()
    )  # rows do not depend on what else runs
    assert family.pictures == [(3, 3, 4, 4)]
    for packet, result in zip(packets, results, strict=True):
        assert result.picture == run_last_span(FakeFamily("edge"), packet)[1]


@pytest.mark.parametrize(
    ("edges", "together"),
    [
        ((8,), 1),
        ((8, 8, 8), 3),
        ((8, 8, 16, 8), 2),
        ((8,) * 20, 16),
        ((16,) * 20, 4),
        ((64, 64), 1),
    ],
)
def test_how_many_pictures_go_into_one_call(edges: Sequence[int], together: int) -> None:
    trajectory = begin(FakeFamily("edge"), a_packet())
    waiting = [replace(trajectory, latent=torch.zeros(1, 3, edge, edge)) for edge in edges]
    assert alike(waiting) == together
