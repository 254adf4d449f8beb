"""Later stages are told of a request ahead, and forget it with it; nobody waits for that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest

from diffusion_edge.errors import StageLost
from diffusion_edge.plan import Plan
from tests.api.fakes import FakeTransport, failing, request, service

PLANNED = request(plan=Plan.parse("phone:5,tower:5,hall:10"), policy="fixed", deadline_s=60.0)


class Way:
    """What stages were told. error: raised instead; forever: hangs instead."""

    def __init__(self, error: Exception | None = None, forever: bool = False) -> None:
        self.expected: list[tuple[str, list[int]]] = []
        self.forgotten: list[tuple[str, str]] = []
        self._error = error
        self._forever = forever

    async def expect(self, stage: str, packets: Sequence[bytes]) -> None:
        if self._error:
            raise self._error
        if self._forever:
            await asyncio.Event().wait()
        self.expected.append((stage, [json.loads(packet)["image"] for packet in packets]))

    async def forget(self, stage: str, name: str) -> None:
        self.forgotten.append((stage, name))


async def quiet() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_every_stage_but_the_first_is_told_of_all_images() -> None:
    way = Way()
    await service(tells=way).generate(PLANNED)
    await quiet()
    assert way.expected == [("tower", [0, 1]), ("hall", [0, 1])]
    assert way.forgotten == []


async def test_nobody_is_told_of_a_plan_on_one_stage() -> None:
    way = Way()
    await service(tells=way).generate(request(policy="cloud-only"))
    await quiet()
    assert way.expected == []


async def test_what_fails_is_forgotten() -> None:
    way = Way()
    with pytest.raises(StageLost):
        await service(failing(StageLost("gone", stage="tower")), tells=way).generate(PLANNED)
    await quiet()
    assert way.forgotten == [("tower", "test"), ("hall", "test")]


async def test_what_is_cancelled_is_forgotten() -> None:
    way = Way()
    task = asyncio.create_task(
        service(FakeTransport(gate=asyncio.Event()), tells=way).generate(PLANNED)
    )
    await quiet()
    assert len(way.expected) == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await quiet()
    assert way.forgotten == [("tower", "test"), ("hall", "test")]


@pytest.mark.parametrize(
    "way", [Way(error=StageLost("gone")), Way(forever=True)], ids=("lost", "hangs")
)
async def test_a_stage_that_cannot_be_told_changes_nothing(way: Way) -> None:
    result = await service(tells=way).generate(PLANNED)
    assert len(result.images) == 2
