"""Texts that come ahead of their latents: when they are encoded, and what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_edge.emulation import Emulate
from diffusion_edge.engine import ahead
from diffusion_edge.engine.run import run_last_span, run_span
from diffusion_edge.engine.worker import Worker
from diffusion_edge.errors import StageLost, WrongChecksum
from diffusion_edge.families.base import Conditioning
from diffusion_edge.packet import Packet, read, write
from diffusion_edge.request import Accepted, Done, Picture, Times
from diffusion_edge.view import Told
from tests.engine.test_worker import NOWHERE, a_packet, all_of, done
from tests.fakes import FakeFamily, FakeTransport, VirtualClock
from tests.theorem import CONTROL, relative

STATED = Emulate(step_s=0.5, encode_s=0.2, decode_s=0.3)
LATER = a_packet("hall:2,tower:4", prompt="later")


class Reader(FakeFamily):
    """Keeps what is encoded, call by call; the first few calls fail."""

    def __init__(self, failing: int = 0) -> None:
        super().__init__("edge")
        self.calls: list[list[str]] = []
        self.failing = failing

    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        self.calls.append(list(prompts))
        if len(self.calls) <= self.failing:
            raise RuntimeError("no text today")
        return super().encode_text(prompts)


@asynccontextmanager
async def a_tower(failing: int = 0, **options: Any) -> AsyncIterator[tuple[Worker, Reader]]:
    """Stated seconds unless `emulate` says otherwise. All is computed at once, in the loop, so that
    no thread is slower than a virtual clock."""
    family = Reader()
    worker = Worker(family, stage="tower", tier="edge", **({"emulate": STATED} | options))
    await worker.warm_up(16, "ddim")
    worker._parts.lanes._in = at_once  # type: ignore[method-assign]  # no thread
    family.calls.clear()
    family.failing = failing
    try:
        yield worker, family
    finally:
        worker.close()


def comes(packet: Packet) -> Packet:
    """As it is handed to the second stage."""
    return run_span(FakeFamily("edge"), packet, packet.plan.spans[0])


async def handed(worker: Worker, packet: Packet) -> Done:
    return done(await all_of(worker, comes(packet), NOWHERE))


async def onward(worker: Worker, packet: Packet) -> Tensor:
    """The latent as it leaves the second stage."""
    third = FakeTransport(Accepted("hall"), Done(Picture(1, 1, bytes(3)), (), ()))
    await all_of(worker, comes(packet), third)
    latent = read(third.sent[0][1], FakeFamily.latent_space).latent
    assert latent is not None
    return latent


def at_once(lane: int, threads: int, work: Callable[[], Any]) -> Future[Any]:
    future: Future[Any] = Future()
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)
    return future


async def settle() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


async def test_an_idle_stage_encodes_what_it_is_told_and_the_latent_need_not_wait() -> None:
    clock = VirtualClock()
    async with a_tower(clock=clock) as (worker, family):

        async def played() -> Done:
            worker.expect(write(LATER))
            assert worker.status().ahead == (Told("r", 0, 2, encodes=True),)
            await clock.sleep(1.0)
            assert worker.status().ahead == (Told("r", 0, 2, encodes=False),)
            return await handed(worker, LATER)

        began = clock.now()
        (span,) = (await clock.run(played())).spans
        assert clock.now() - began == pytest.approx(1.0 + 4 * 0.5 + 0.3)
        assert (span.queue_s, span.encode_s, span.ahead_s) == pytest.approx((0.0, 0.0, 0.2))
        assert family.calls == [["later"]]
        assert worker.status().ahead == ()


async def test_a_latent_that_comes_meanwhile_waits_for_the_rest_of_the_call() -> None:
    clock = VirtualClock()
    async with a_tower(clock=clock) as (worker, family):

        async def played() -> Done:
            worker.expect(write(LATER))
            await clock.sleep(0.15)
            return await handed(worker, LATER)

        began = clock.now()
        (span,) = (await clock.run(played())).spans
        assert clock.now() - began == pytest.approx(0.2 + 4 * 0.5 + 0.3)
        assert (span.encode_s, span.ahead_s) == pytest.approx((0.05, 0.15))
        assert span.queue_s == pytest.approx(0.0)
        assert family.calls == [["later"]]


async def test_who_is_there_comes_first() -> None:
    """Until its last picture is decoded; then those told are encoded in order."""
    clock = VirtualClock()
    async with a_tower(clock=clock) as (worker, family):

        async def played() -> None:
            there = asyncio.create_task(all_of(worker, a_packet("tower:2", prompt="there")))
            await asyncio.sleep(0)
            for number in range(2):
                named = replace(LATER, request_id=f"r{number}", prompt=f"later {number}")
                worker.expect(write(named))
            await there
            assert clock.now() - began == pytest.approx(0.2 + 2 * 0.5 + 0.3)
            assert family.calls == [["there"], ["later 0"]]
            await clock.sleep(0.5)

        began = clock.now()
        await clock.run(played())
        assert family.calls == [["there"], ["later 0"], ["later 1"]]


async def test_who_comes_is_served_before_more_is_encoded_ahead() -> None:
    clock = VirtualClock()
    async with a_tower(clock=clock) as (worker, family):

        async def played() -> None:
            for number in range(3):
                named = replace(LATER, request_id=f"r{number}", prompt=f"later {number}")
                worker.expect(write(named))
            await clock.sleep(0.1)
            await all_of(worker, a_packet("tower:2", prompt="there"))
            await clock.sleep(1.0)

        await clock.run(played())
        assert family.calls == [["later 0"], ["there"], ["later 1"], ["later 2"]]


async def test_what_was_not_told_or_not_encoded_is_encoded_then() -> None:
    clock = VirtualClock()
    async with a_tower(clock=clock) as (worker, family):
        (span,) = (await clock.run(handed(worker, LATER))).spans
        assert (span.encode_s, span.ahead_s) == pytest.approx((0.2, 0.0))

        async def busy() -> Done:
            there = asyncio.create_task(all_of(worker, a_packet("tower:2", prompt="there")))
            await asyncio.sleep(0)
            worker.expect(write(LATER))
            result = await handed(worker, LATER)
            await there
            return result

        (span,) = (await clock.run(busy())).spans
        assert (span.encode_s, span.ahead_s) == pytest.approx((0.2, 0.0))
        assert family.calls == [["later"], ["there"], ["later"]]


async def test_a_text_that_another_request_names_its_own_is_not_taken() -> None:
    async with a_tower(emulate=None) as (worker, family):
        worker.expect(write(LATER))
        await settle()
        other = replace(LATER, prompt="another", seed=9)
        result = await handed(worker, other)
        assert family.calls == [["later"], ["another"]]
        assert result.picture == run_last_span(FakeFamily("edge"), comes(other))[1]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(
    "options",
    [{}, {"mode": "reproducible"}, {"mode": "off"}, {"emulate": Emulate(step_s=0.0)}],
    ids=str,
)
async def test_a_picture_does_not_depend_on_when_its_text_was_encoded(
    options: dict[str, Any], guidance: float
) -> None:
    """Nor on whose texts are told beside it, where company shall not matter."""
    packet = a_packet("hall:2,tower:4,hall:1", prompt="later", solver="ddim")
    packet = replace(packet, guidance=guidance, negative_prompt="not so")
    async with a_tower(**({"emulate": None} | options)) as (worker, family):
        then = await onward(worker, packet)
        worker.expect(write(packet))
        worker.expect(write(replace(packet, request_id="other", prompt="another")))
        await settle()
        assert [told.encodes for told in worker.status().ahead] == [False, False]
        told = await onward(worker, packet)
        control = await onward(worker, replace(packet, prompt="one more"))
    assert sum("later" in call for call in family.calls) == 2
    assert torch.equal(told, then)
    assert relative(control, then) > CONTROL


async def test_texts_told_together_are_encoded_in_one_call_where_texts_are() -> None:
    for options, calls in (({}, 2), ({"mode": "reproducible"}, 3)):
        async with a_tower(emulate=None, **options) as (worker, family):
            for number in range(3):
                worker.expect(write(replace(LATER, request_id=f"r{number}")))
            await settle()
            assert len(family.calls) == calls  # the first one is begun at once
            assert sum(map(len, family.calls)) == 3


async def test_what_fails_ahead_is_tried_again_when_the_latent_comes() -> None:
    async with a_tower(failing=1, emulate=None) as (worker, family):
        worker.expect(write(LATER))
        await settle()
        assert worker.status().ahead == ()
        assert isinstance(await handed(worker, LATER), Done)
        assert family.calls == [["later"]] * 2


async def test_who_is_forgotten_is_not_encoded_and_not_kept() -> None:
    clock = VirtualClock()
    async with a_tower(clock=clock) as (worker, family):

        async def played() -> None:
            for name in ("first", "second", "third"):
                worker.expect(write(replace(LATER, request_id=name, prompt=name)))
            await clock.sleep(0.1)
            worker.forget("first")
            worker.forget("second")
            assert [told.request for told in worker.status().ahead] == ["third"]
            await clock.sleep(1.0)

        await clock.run(played())
        assert family.calls == [["first"], ["third"]]
        assert len(worker.status().ahead) == 1


async def test_every_span_here_but_the_first_of_the_plan_is_expected() -> None:
    async with a_tower(emulate=None) as (worker, _):
        worker.expect(write(a_packet("tower:1,hall:1,tower:2,hall:1,tower:1")))
        assert [told.start for told in worker.status().ahead] == [2, 5]
        worker.forget("r")
        worker.expect(write(a_packet("tower:2,hall:2")))
        assert worker.status().ahead == ()


async def test_a_notice_is_as_untrusted_as_a_packet() -> None:
    async with a_tower(emulate=None) as (worker, _):
        data = bytearray(write(LATER))
        data[-1] ^= 1
        with pytest.raises(WrongChecksum):
            worker.expect(bytes(data))
    with pytest.raises(StageLost):
        worker.expect(write(LATER))


async def test_what_is_expected_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "MOST", 3)
    async with a_tower(emulate=None) as (worker, _):
        for number in range(5):
            worker.expect(write(replace(LATER, request_id=f"r{number}")))
        told = worker.status().ahead
    assert [one.request for one in told] == ["r0", "r1", "r2"]


async def test_bytes_of_what_is_encoded_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "MOST_BYTES", 8)  # two of these texts
    async with a_tower(emulate=None, together=False) as (worker, family):
        for number in range(4):
            worker.expect(write(replace(LATER, request_id=f"r{number}")))
        await settle()
        assert len(family.calls) == 2
        worker.forget("r0")
        worker.expect(write(replace(LATER, request_id="r4")))
        await settle()
        assert len(family.calls) == 3


@pytest.mark.parametrize(
    ("left", "kept_s"), [(Times(give_up=5.0), 5.0), (Times(), ahead.LEASE_S)], ids=["told", "not"]
)
async def test_a_notice_ends_with_its_work(left: Times, kept_s: float) -> None:
    clock = VirtualClock()
    async with a_tower(clock=clock) as (worker, _):

        async def kept(seconds: float) -> int:
            worker.expect(write(replace(LATER, left=left)))
            await clock.sleep(seconds)
            return len(worker.status().ahead)

        assert await clock.run(kept(kept_s - 1.0)) == 1
        worker.forget("r")
        assert await clock.run(kept(kept_s + 1.0)) == 0
