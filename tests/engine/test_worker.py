"""A stage at work: order, bounds, cancellation, deadlines, hand-offs, emulation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_edge.emulation import Emulate
from diffusion_edge.engine.run import begin, decode_all, run_last_span, run_span
from diffusion_edge.engine.worker import Worker
from diffusion_edge.errors import (
    DamagedPacket,
    DeadlineExceeded,
    NotFinite,
    NotOffered,
    QueueFull,
    WrongLatentSpace,
    WrongPosition,
)
from diffusion_edge.families.base import Conditioning
from diffusion_edge.packet import Packet, read, write
from diffusion_edge.plan import Plan
from diffusion_edge.request import (
    Accepted,
    Done,
    Event,
    Picture,
    Progress,
    SpanRecord,
    Times,
    Transport,
)
from diffusion_edge.sites.local import LocalTransport
from tests.fakes import FakeClock, FakeFamily, FakeTransport

NOWHERE = FakeTransport()
CELLS = 4 * 4
"""Of the latent of a picture of 16 pixels."""


class Gate:
    """Lets the worker's thread through one step at a time; `reached` counts arrivals."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)
        self.steps = 0

    def __call__(self) -> None:
        self._arrived.release()
        assert self._permits.acquire(timeout=30)
        self.steps += 1

    def open(self, steps: int = 1_000) -> None:
        self._permits.release(steps)

    async def reached(self) -> None:
        """Waits until the thread stands at the gate."""
        assert await asyncio.to_thread(self._arrived.acquire, True, 30)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@asynccontextmanager
async def a_worker(
    stage: str = "tower", on_predict: Any = None, **options: Any
) -> AsyncIterator[Worker]:
    family = FakeFamily(f"model of {stage}")
    worker = Worker(family, stage=stage, tier="edge", **options)
    await worker.warm_up(16, "ddim")
    if on_predict:
        family.on_predict = on_predict
    try:
        yield worker
    finally:
        worker.close()


def a_packet(plan: str = "tower:4", **changes: Any) -> Packet:
    parsed = Plan.parse(plan)
    packet = Packet(
        request_id="r",
        prompt="a red circle",
        negative_prompt="",
        guidance=1.0,
        width=16,
        height=16,
        solver="dpmpp-2m",
        steps=parsed.steps,
        seed=3,
        position=0,
        plan=parsed,
        latent_space=FakeFamily.latent_space,
    )
    return replace(packet, **changes)


async def all_of(worker: Worker, packet: Packet, forward: Transport = NOWHERE) -> list[Event]:
    return [event async for event in worker.run(write(packet), forward)]


def done(events: list[Event]) -> Done:
    assert isinstance(events[-1], Done)
    return events[-1]


def half_way(**changes: Any) -> bytes:
    """A packet that another stage has begun."""
    packet = a_packet("phone:2,tower:2", **changes)
    return write(run_span(FakeFamily("device"), packet, packet.plan.spans[0]))


async def handed(worker: Worker, data: bytes) -> Done:
    return done([event async for event in worker.run(data, NOWHERE)])


async def test_one_stage_makes_a_picture() -> None:
    async with a_worker() as worker:
        events = await all_of(worker, a_packet())
    assert events[:2] == [Accepted("tower"), Progress("tower", 4)]
    result = done(events)
    assert result.picture == run_last_span(FakeFamily("edge"), a_packet())[1]
    assert [(s.stage, s.start, s.stop) for s in result.spans] == [("tower", 0, 4)]
    assert result.hops == ()
    assert result.spans[0].emulated_s == 0


async def test_a_plan_over_two_stages_is_exact_and_recorded() -> None:
    plan = "tower:3,hall:5"
    async with a_worker("tower") as tower, a_worker("hall") as hall:
        transport = LocalTransport({"tower": tower, "hall": hall})
        events = [e async for e in transport.run("tower", write(a_packet(plan)))]
    assert events[:-1] == [
        Accepted("tower"),
        Progress("tower", 3),
        Accepted("hall"),
        Progress("hall", 8),
    ]
    packet = a_packet(plan)
    onward = run_span(FakeFamily("edge"), packet, packet.plan.spans[0])
    result = done(events)
    assert result.picture == run_last_span(FakeFamily("cloud"), onward)[1]
    assert [s.stage for s in result.spans] == ["tower", "hall"]
    (hop,) = result.hops
    assert (hop.source, hop.target, hop.nbytes) == ("tower", "hall", len(write(onward)))
    assert result.spans[0].decode_s < result.spans[1].decode_s


async def test_a_stage_may_hand_to_itself() -> None:
    async with a_worker() as worker:
        split = await all_of(worker, a_packet("tower:2,tower:4"), LocalTransport({"tower": worker}))
        whole = await all_of(worker, a_packet("tower:6"))
    assert done(split).picture == done(whole).picture


async def test_words_that_no_stage_knows_are_told_once() -> None:
    async with a_worker("tower") as tower, a_worker("hall") as hall:
        transport = LocalTransport({"tower": tower, "hall": hall})
        packet = a_packet("tower:2,hall:2", prompt="unknown")
        events = [e async for e in transport.run("tower", write(packet))]
    assert done(events).warnings == ("the word 'unknown' is not known to this family",)


async def test_first_come_first_served(gate: Gate) -> None:
    order: list[str] = []

    async def one(worker: Worker, name: str) -> None:
        await all_of(worker, a_packet("tower:2", request_id=name))
        order.append(name)

    async with a_worker(on_predict=gate) as worker:
        tasks = [asyncio.create_task(one(worker, name)) for name in "abc"]
        await gate.reached()
        assert worker.status().queued == 3
        gate.open()
        await asyncio.gather(*tasks)
    assert order == ["a", "b", "c"]


async def test_the_parts_of_a_span_add_up_to_the_time_it_took() -> None:
    """Of all who are on the stage at once: what is not work of their own is waiting."""
    clock = FakeClock()

    class Slow(FakeFamily):
        def encode_text(self, prompts: Sequence[str]) -> Conditioning:
            clock.advance(2.0)
            return super().encode_text(prompts)

        def decode(self, latent: Tensor) -> list[Picture]:
            clock.advance(5.0)
            ended.append(clock.now() - began)
            return super().decode(latent)

    began, ended = clock.now(), list[float]()
    family = Slow("edge", on_predict=lambda: clock.advance(1.0))
    worker = Worker(family, stage="tower", tier="edge", clock=clock, mode="off")
    await worker.warm_up(16, "ddim")
    began = clock.now()
    ended.clear()

    async def one(seed: int) -> SpanRecord:
        (span,) = done(await all_of(worker, a_packet("tower:3", seed=seed))).spans
        return span

    try:
        spans = await asyncio.gather(*map(one, range(3)))
    finally:
        worker.close()
    assert [(span.encode_s, span.decode_s) for span in spans] == [(2.0, 5.0)] * 3
    assert sum(span.run_s for span in spans) >= 3 * 3.0
    assert max(ended) == 3 * (2.0 + 3.0 + 5.0)
    whole = [span.queue_s + span.encode_s + span.run_s + span.decode_s for span in spans]
    assert sorted(whole) == ended


async def test_who_waits_for_the_first_step_is_not_running(gate: Gate) -> None:
    """Premises: texts and pictures take no time, a step takes a second, and nobody shares one. The
    first one's picture waits for one step of the second, with which it takes turns."""
    clock = FakeClock()

    def a_second() -> None:
        gate()
        clock.advance(1.0)

    async def one(steps: int) -> SpanRecord:
        (span,) = done(await all_of(worker, a_packet(f"tower:{steps}", seed=steps))).spans
        return span

    async with a_worker(clock=clock, mode="off", on_predict=a_second) as worker:
        first = asyncio.create_task(one(4))
        await gate.reached()
        second = asyncio.create_task(one(2))
        while worker.status().queued < 2:
            await asyncio.sleep(0)
        gate.open()
        spans = await first, await second
    assert [(span.queue_s, span.run_s) for span in spans] == [(1.0, 4.0), (4.0, 2.0)]


async def test_several_at_once_of_other_sizes_guidance_and_stages_are_what_each_is_alone() -> None:
    asked = [
        a_packet("tower:2,hall:2", seed=1),
        a_packet("tower:1,hall:4", seed=2, width=32, guidance=3.0, negative_prompt="no"),
        a_packet("hall:3,tower:1", seed=3, prompt="a blue square", solver="ddim"),
        a_packet("tower:1,hall:1,tower:2", seed=0, height=48, guidance=0.0),
        a_packet("hall:2@0,tower:2@6", seed=4, guidance=3.0),
    ]
    async with a_worker("tower") as tower, a_worker("hall") as hall:
        sites = LocalTransport({"tower": tower, "hall": hall})

        async def one(packet: Packet) -> Done:
            first = packet.plan.spans[0].stage
            return done([event async for event in sites.run(first, write(packet))])

        together = await asyncio.gather(*map(one, asked))
    for packet, result in zip(asked, together, strict=True):
        sent: list[int] = []
        rest = packet
        for span in packet.plan.spans[:-1]:
            rest = run_span(FakeFamily(span.stage), rest, span)
            sent.append(len(write(rest)))
        assert result.picture == run_last_span(FakeFamily("any"), rest)[1]
        assert (result.picture.width, result.picture.height) == (
            packet.width // 4,
            packet.height // 4,
        )
        assert [hop.nbytes for hop in result.hops] == sent
        ran = [(span.stage, span.start, span.stop) for span in result.spans]
        assert ran == [(span.stage, span.start, span.stop) for span in packet.plan.spans]


async def test_a_full_queue_says_when_to_come_back(gate: Gate) -> None:
    async with a_worker(capacity=2, on_predict=gate) as worker:
        tasks = [asyncio.create_task(all_of(worker, a_packet())) for _ in range(2)]
        await gate.reached()
        with pytest.raises(QueueFull, match="2 images") as caught:
            await all_of(worker, a_packet())
        assert caught.value.retry_after_s == pytest.approx(worker.status().queue_s)
        gate.open()
        await asyncio.gather(*tasks)
        assert worker.status().queued == 0
        await all_of(worker, a_packet())


async def test_the_loop_stays_free_and_the_queue_is_told_honestly(gate: Gate) -> None:
    stated = Emulate(step_s=1.0, encode_s=0.25, decode_s=0.5)
    async with a_worker(emulate=stated, clock=FakeClock(), on_predict=gate) as worker:
        assert worker.status().queue_s == 0
        running = asyncio.create_task(all_of(worker, a_packet("tower:4")))
        await gate.reached()
        assert worker.status().queue_s == pytest.approx(4 * 1.0 + 0.5)
        gate.open(1)
        await gate.reached()
        assert worker.status().queue_s == pytest.approx(3 * 1.0 + 0.5)
        waiting = asyncio.create_task(all_of(worker, a_packet("tower:2,hall:2")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        status = worker.status()
        assert status.queue_s == pytest.approx(3 * 1.0 + 0.5 + 0.25 + 2 * 1.0)
        assert (status.queued, status.emulated) == (2, True)
        assert status.step_s == {CELLS: {1: 1.0}}
        waiting.cancel()
        gate.open()
        await running
        assert worker.status().steps_run == 4


async def test_closing_the_iterator_stops_within_one_step(gate: Gate) -> None:
    async with a_worker(on_predict=gate) as worker:
        events = worker.run(write(a_packet("tower:100")), NOWHERE)
        assert await anext(events) == Accepted("tower")
        reading = asyncio.create_task(anext(events))
        await gate.reached()
        gate.open(2)
        await gate.reached()
        await gate.reached()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await events.aclose()
        assert worker.status().queued == 0
        gate.open()
        await all_of(worker, a_packet("tower:4"))
    assert gate.steps <= 2 + 1 + 4


async def test_what_waits_can_be_cancelled(gate: Gate) -> None:
    async with a_worker(on_predict=gate) as worker:
        first = asyncio.create_task(all_of(worker, a_packet()))
        await gate.reached()
        waiting = worker.run(write(a_packet()), NOWHERE)
        await anext(waiting)
        assert worker.status().queued == 2
        await waiting.aclose()
        assert worker.status().queued == 1
        gate.open()
        await first


async def test_a_deadline_acts_at_the_step_boundary() -> None:
    clock = FakeClock()
    family_steps: list[float] = []

    def slow() -> None:
        family_steps.append(clock.now())
        clock.advance(1.0)

    async with a_worker(clock=clock, on_predict=slow) as worker:
        packet = a_packet("tower:10", left=Times(give_up=2.5))
        with pytest.raises(DeadlineExceeded, match="'tower' at step 3 of 10"):
            await all_of(worker, packet)
        assert worker.status().queued == 0
    assert len(family_steps) == 3


async def test_a_deadline_acts_while_waiting(gate: Gate) -> None:
    clock = FakeClock()
    async with a_worker(clock=clock, on_predict=gate) as worker:
        first = asyncio.create_task(all_of(worker, a_packet()))
        await gate.reached()
        with pytest.raises(DeadlineExceeded, match="at step 0"):
            await all_of(worker, a_packet(left=Times(give_up=0.01)))
        assert worker.status().queued == 1
        gate.open()
        await first


async def test_who_is_due_first_steps_first_though_both_are_given_up_late() -> None:
    order: list[str] = []

    async def one(worker: Worker, name: str, due: float | None) -> None:
        left = Times(due, give_up=1000.0)
        await all_of(worker, a_packet("tower:10", request_id=name, left=left))
        order.append(name)

    async with a_worker(emulate=Emulate(step_s=1.0), clock=FakeClock()) as worker:
        asked = [("calm", None), ("later", 8.0), ("late already", -2.0), ("soon", 5.0)]
        await asyncio.gather(*(one(worker, name, due) for name, due in asked))
    assert order == ["late already", "soon", "later", "calm"]


async def test_times_count_from_when_each_packet_came(gate: Gate) -> None:
    """The one that has less time left came later, and is due later all the same."""
    clock, order = FakeClock(), list[str]()

    async def one(worker: Worker, name: str, due: float) -> None:
        await all_of(worker, a_packet("tower:2", request_id=name, left=Times(due, None)))
        order.append(name)

    async with a_worker(emulate=Emulate(step_s=100.0), clock=clock, on_predict=gate) as worker:
        tasks = [asyncio.create_task(one(worker, "running", 1.0))]
        await gate.reached()
        for name, due in [("sooner", 130.0), ("later", 120.0)]:
            tasks.append(asyncio.create_task(one(worker, name, due)))
            await asyncio.sleep(0)
            clock.advance(50.0)
        assert worker.status().queued == 3
        gate.open()
        await asyncio.gather(*tasks)
    assert order == ["running", "sooner", "later"]


@pytest.mark.parametrize("due", [2.0, 0.0, -5.0])
async def test_a_picture_that_is_late_is_made_all_the_same(due: float) -> None:
    clock = FakeClock()
    async with a_worker(clock=clock, on_predict=lambda: clock.advance(1.0)) as worker:
        packet = a_packet("tower:4", left=Times(due, give_up=100.0))
        assert (
            done(await all_of(worker, packet)).picture
            == run_last_span(FakeFamily("edge"), a_packet("tower:4"))[1]
        )


@pytest.mark.parametrize("give_up", [0.0, -1.0])
async def test_a_time_of_zero_is_a_time(give_up: float) -> None:
    async with a_worker(clock=FakeClock()) as worker:
        with pytest.raises(DeadlineExceeded, match="given up on the stage 'tower' at step 0 of 4"):
            await all_of(worker, a_packet(left=Times(give_up=give_up)))


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
async def test_stages_need_not_agree_on_the_time(ahead_s: float) -> None:
    here, there = FakeClock(), FakeClock()
    there.advance(ahead_s)
    async with a_worker("tower", clock=here) as tower, a_worker("hall", clock=there) as hall:
        sites = LocalTransport({"hall": hall})
        packet = a_packet("tower:2,hall:2", left=Times(5.0, 10.0))
        assert isinstance(done(await all_of(tower, packet, sites)), Done)


class Diverging(FakeFamily):
    """Its output is NaN where guidance is 5."""

    def predict(
        self, latent: Tensor, timestep: Tensor, guidance: Tensor, conditioning: Conditioning
    ) -> Tensor:
        output = super().predict(latent, timestep, guidance, conditioning)
        return torch.where(guidance.view(-1, 1, 1, 1) == 5.0, torch.nan, output)


@pytest.mark.parametrize(("plan", "until"), [("attic:4", 4), ("attic:3,hall:1", 3)])
async def test_a_latent_that_is_not_finite_is_an_error_and_touches_no_other(
    plan: str, until: int
) -> None:
    family, forward = Diverging("edge"), FakeTransport()
    worker = Worker(family, stage="attic", tier="edge")
    await worker.warm_up(16, "ddim")
    bad = a_packet(plan, guidance=5.0)
    good = [a_packet("attic:4", guidance=3.0, seed=seed) for seed in range(2)]
    try:
        first, failed, second = await asyncio.gather(
            all_of(worker, good[0]),
            all_of(worker, bad, forward),
            all_of(worker, good[1]),
            return_exceptions=True,
        )
    finally:
        worker.close()
    assert isinstance(failed, NotFinite)
    assert "the stage 'attic' made NaN or infinite values" in failed.message
    assert f"in its steps from 0 to {until}" in failed.message
    assert forward.sent == []
    for packet, events in zip(good, (first, second), strict=True):
        assert isinstance(events, list)
        assert done(events).picture == run_last_span(FakeFamily("edge"), packet)[1]


def test_nothing_is_decoded_that_is_not_finite() -> None:
    trajectory = begin(FakeFamily("edge"), a_packet())
    black = replace(trajectory, latent=trajectory.latent * torch.inf, position=4)
    with pytest.raises(NotFinite, match="the stage 'tower' made NaN"):
        decode_all(FakeFamily("edge"), [trajectory, black])


async def test_bad_packets_are_refused_before_they_queue() -> None:
    async with a_worker() as worker:
        for data, error in [
            (b"not a packet", DamagedPacket),
            (write(a_packet("hall:4")), WrongPosition),
            (write(a_packet(latent_space="00" * 16)), WrongLatentSpace),
        ]:
            with pytest.raises(error):
                await anext(worker.run(data, NOWHERE))
        assert worker.status().queued == 0


async def test_emulation_holds_the_total_and_counts_overruns() -> None:
    clock = FakeClock()
    took = iter([0.01, 0.05, 0.0, 0.0])
    stated = Emulate(step_s=0.03, encode_s=0.02, decode_s=0.04)
    async with a_worker(
        emulate=stated, clock=clock, on_predict=lambda: clock.advance(next(took))
    ) as worker:
        began = clock.now()
        result = done(await all_of(worker, a_packet("tower:4")))
        assert clock.now() - began == pytest.approx(0.02 + 4 * 0.03 + 0.04)
        (span,) = result.spans
        assert span.emulated_s == pytest.approx(0.02 + 4 * 0.03 + 0.04 - 0.06)
        assert span.overruns == 1
        status = worker.status()
        assert (status.overruns, status.steps_run, status.parts_run) == (1, 4, 6)


async def test_a_model_that_is_not_guided_by_a_second_pass_says_so() -> None:
    async with a_worker() as doubled:
        assert doubled.status().guiding == "doubled"
        events = await all_of(doubled, a_packet(guidance=3.0, negative_prompt="blur"))
        assert done(events).warnings == ()
    family = FakeFamily("edge")
    family.guiding = "embedded"
    worker = Worker(family, stage="tower", tier="edge")
    await worker.warm_up(16, "ddim")
    try:
        assert worker.status().guiding == "embedded"
        told = done(await all_of(worker, a_packet(guidance=3.0, negative_prompt="blur"))).warnings
        assert told == ("this model takes no negative prompt; it was not used",)
        assert done(await all_of(worker, a_packet(guidance=3.0))).warnings == ()
    finally:
        worker.close()


async def test_hundreds_of_cancels_leave_nothing() -> None:
    async with a_worker(capacity=400) as worker:
        for _ in range(5):
            runs = [worker.run(write(a_packet("tower:3")), NOWHERE) for _ in range(60)]
            for run in runs:
                await anext(run)
            await asyncio.gather(*(run.aclose() for run in runs))
        assert worker.status().queued == 0
        assert isinstance((await all_of(worker, a_packet()))[-1], Done)


def test_read_back() -> None:
    packet = a_packet()
    assert read(write(packet), FakeFamily.latent_space) == packet


async def test_what_the_family_does_not_make_never_enters_the_queue() -> None:
    async with a_worker() as worker:
        for changes in ({"width": 2**14, "height": 2**14}, {"solver": "flow-euler"}):
            with pytest.raises(NotOffered):
                await all_of(worker, a_packet(**changes))
        assert worker.status().queued == 0
        assert done(await all_of(worker, a_packet()))
