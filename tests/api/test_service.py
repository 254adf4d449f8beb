import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import pytest

from diffusion_edge.api.answers import plan
from diffusion_edge.api.service import GenerationResult, Service
from diffusion_edge.errors import (
    CannotBeInTime,
    ConfigError,
    DeadlineExceeded,
    NoPlan,
    QueueFull,
    StageLost,
)
from diffusion_edge.plan import Plan
from diffusion_edge.request import Accepted, Event, ImageRequest
from diffusion_edge.routing.calibration import LEAST, Calibration
from diffusion_edge.routing.due import times
from diffusion_edge.routing.late import AGAIN_S
from diffusion_edge.routing.promises import Kept, Promises
from diffusion_edge.view import Choice, Held, StageStatus, View
from tests.api.fakes import (
    FakeBoard,
    FakeTransport,
    failing,
    fake_picture,
    request,
    service,
    settings,
)
from tests.routing.views import CELLS


async def test_every_image_has_its_own_seed_and_packet() -> None:
    transport = FakeTransport(warnings=("the word 'blob' is not known to this family",))
    result = await service(transport).generate(request(images=3))
    assert [image.seed for image in result.images] == [5, 6, 7]
    assert [image.picture for image in result.images] == [
        fake_picture(s, 96, 64) for s in (5, 6, 7)
    ]
    assert {packet["stage"] for packet in transport.packets} == {"hall"}
    assert result.warnings == ("the word 'blob' is not known to this family",)
    assert result.choice.reason.startswith("policy cloud-only")


async def test_the_first_span_s_stage_gets_the_packet() -> None:
    transport = FakeTransport()
    plan = Plan.parse("tower:5,hall:15")
    result = await service(transport).generate(request(policy="fixed", plan=plan))
    assert transport.packets[0]["stage"] == "tower"
    assert [[hop.nbytes for hop in image.hops] for image in result.images] == [[2053]] * 2


async def test_one_failure_cancels_the_other_images() -> None:
    gate = asyncio.Event()
    lost = StageLost("the stage 'hall' died", stage="hall")
    transport = failing(lost, image=1, gate=gate, expected=2)
    with pytest.raises(StageLost, match="died"):
        await service(transport).generate(request(images=3))
    assert transport.closed == 2


async def test_one_request_s_failure_or_leaving_does_not_touch_another_one() -> None:
    gate = asyncio.Event()
    transport = failing(StageLost("died", stage="hall"), image=1, gate=gate, expected=4)
    made = service(transport)
    stays = asyncio.create_task(made.generate(request(seed=50, images=1)))
    leaves = asyncio.create_task(made.generate(request(seed=60, images=1)))
    fails = asyncio.create_task(made.generate(request(seed=70, images=2)))
    await transport.all_started.wait()
    leaves.cancel()
    with pytest.raises(StageLost, match="died"):
        await fails
    with pytest.raises(asyncio.CancelledError):
        await leaves
    assert (transport.closed, stays.done()) == (2, False)
    gate.set()
    (image,) = (await stays).images
    assert (image.seed, image.picture) == (50, fake_picture(50, 96, 64))


async def test_cancelling_closes_what_is_under_way() -> None:
    transport = FakeTransport(gate=asyncio.Event(), expected=3)
    task = asyncio.create_task(service(transport).generate(request(images=3)))
    await transport.all_started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert transport.closed == 3


async def test_work_is_given_up_at_the_deadline_or_twice_the_prediction() -> None:
    hall = {"tier": "cloud", "model": "cloud", "emulate": {"step_s": 0.001}}
    transport = FakeTransport(gate=asyncio.Event())
    made = service(transport, stages={"hall": hall}, links=[])
    with pytest.raises(DeadlineExceeded, match="given up"):
        await made.generate(request(deadline_s=0.01))
    assert transport.closed == 2


async def test_a_late_picture_is_given_out_with_a_warning() -> None:
    result = await service().generate(request(deadline_s=1e-6))
    assert any("deadline of 1e-06 s was missed" in warning for warning in result.warnings)
    assert "predicted to miss the deadline" in result.choice.reason


@pytest.mark.parametrize("deadline_s", [0.0, 1.0, 1.7, 300.0])
async def test_the_packet_knows_when_it_is_due_and_when_it_is_given_up(deadline_s: float) -> None:
    """At its deadline, or at a few times the seconds it takes alone."""
    transport = FakeTransport()
    made, asked = service(transport), request(deadline_s=deadline_s, images=2)
    told = times(asked, made.plan(asked), made.board.view(asked))
    await made.generate(asked)
    for packet in transport.packets:
        assert told.due - 10 < packet["due"] <= told.due
        assert packet["give_up"] - packet["due"] == pytest.approx(told.give_up - told.due)


async def test_late_requests_wait_for_each_other_in_order_and_leave_no_trace() -> None:
    """Premises: nothing is in time; the stages begin two at once each, and the gate holds all."""
    gate = asyncio.Event()
    transport = FakeTransport(gate=gate, expected=2)
    stages = {"hall": {"tier": "cloud", "model": "cloud", "emulate": {"step_s": 0.05}}}
    made = service(transport, Filling(settings(stages=stages, links=[])), stages=stages, links=[])
    asked = request(policy="elastic", deadline_s=0.001, images=1, width=64)
    tasks = [asyncio.create_task(made.generate(replace(asked, seed=10 * k))) for k in range(4)]
    await transport.all_started.wait()
    await asyncio.sleep(3 * AGAIN_S)
    assert [packet["seed"] for packet in transport.packets] == [0, 10]
    tasks[2].cancel()
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[2], asyncio.CancelledError)
    assert [packet["seed"] for packet in transport.packets] == [0, 10, 30]
    last = results[3]
    assert isinstance(last, GenerationResult)
    assert last.choice.late
    assert last.choice.predicted_s > 3 * AGAIN_S + 1.0
    assert last.seconds > 3 * AGAIN_S


class Filling(FakeBoard):
    """Stages hold what was promised to them and has not ended."""

    def statuses(self) -> Mapping[str, StageStatus]:
        found = super().statuses()
        images = tuple(Held("r", k, 20, 1, CELLS, 9.0, True, True) for k in range(self.running))
        return {name: replace(status, held=images) for name, status in found.items()}

    running = 0

    @contextmanager
    def promised(self, request: ImageRequest, choice: Choice, view: View) -> Iterator[Kept]:
        self.running += 1
        yield Kept(Promises(), ())
        self.running -= 1


async def test_what_cannot_be_in_time_is_refused_before_any_work_if_it_asks_so() -> None:
    transport = FakeTransport()
    made = service(transport)
    for name in ("elastic", "earliest", "cloud-only"):
        asked = request(policy=name, deadline_s=0.5, late="refuse")
        with pytest.raises(CannotBeInTime, match=r"misses the deadline( of 0\.5 s)? by"):
            await made.generate(asked)
        with pytest.raises(CannotBeInTime):
            made.plan(asked)
    assert transport.packets == []


async def test_a_larger_picture_is_predicted_to_take_longer_and_given_up_later() -> None:
    transport = FakeTransport()
    made = service(transport)
    small, large = request(deadline_s=0.1), request(deadline_s=0.1, width=96, height=192)
    assert made.plan(large).predicted_s > 2 * made.plan(small).predicted_s
    for asked in (small, large):
        await made.generate(asked)
    first, _, second, _ = (packet["give_up"] for packet in transport.packets)
    assert 4 < second - first < 20


async def test_a_policy_that_learns_has_learned_from_what_was_served() -> None:
    """Premises: the picture is in time and costs nothing, so the same plan may earn more then."""
    made = service(FakeTransport())
    asked = request(policy="linucb", quality_floor=0.0, images=1)
    first = made.plan(asked)
    assert made.plan(asked).plan == first.plan
    assert (await made.generate(asked)).choice.plan.spans == first.plan.spans
    assert made.plan(asked).plan.spans == first.plan.spans
    assert (first.reason, made.plan(asked).reason) == (
        "device, which may earn 0.51; its quality is not measured",
        "device, which may earn 0.86; its quality is not measured",
    )


async def test_requests_that_were_served_say_what_nine_in_ten_stay_below() -> None:
    """The transport is far faster than the stages are said to be."""
    made = service(FakeTransport())
    for _ in range(LEAST):
        assert (await made.generate(request())).choice.predicted_90_s is None
    choice = made.plan(request())
    assert choice.predicted_90_s is not None
    assert 0 < choice.predicted_90_s < 0.9 * choice.predicted_s
    assert (await made.generate(request())).choice.predicted_90_s == choice.predicted_90_s
    assert (made.calibration.served, made.calibration.told) == (LEAST + 1, 1)


async def test_whether_it_is_in_time_goes_by_what_was_learned() -> None:
    """Premises: the forecast is in time; requests took four times theirs."""
    made = service()
    asked = request(policy="elastic", deadline_s=1.5 * made.plan(request()).predicted_s)
    assert not made.plan(asked).late
    known = Calibration()
    for _ in range(LEAST):
        choice = made.plan(asked)
        known = known.observe(choice, 4.0 * choice.predicted_s, asked.deadline_s)
    made.calibration = known
    choice, view = made.plan(asked), made.view(asked)
    assert (choice.late, view.slip) == (True, pytest.approx(4.0))
    assert choice.safe_s == pytest.approx(4.0 * choice.predicted_s)
    assert "the earliest misses the deadline by" in choice.reason
    told = plan(asked, choice, view, made.why(asked, view), made)
    assert told["late_by_s"] == pytest.approx(choice.safe_s - asked.deadline_s)
    with pytest.raises(CannotBeInTime):
        made.plan(replace(asked, late="refuse"))
    by_name = replace(asked, policy="cloud-only")
    assert "predicted to miss the deadline" in made.plan(by_name).reason
    with pytest.raises(CannotBeInTime):
        made.plan(replace(by_name, late="refuse"))


def test_what_waited_says_so_in_all_that_was_foretold() -> None:
    told = Choice(Plan.parse("hall:20"), 1.0, 0.0, 1.0, "", predicted_50_s=1.5, predicted_90_s=2.0)
    after = told.after(3.0)
    assert (after.predicted_s, after.predicted_50_s, after.predicted_90_s) == (4.0, 4.5, 5.0)
    bare = replace(told, predicted_50_s=None, predicted_90_s=None).after(3.0)
    assert (bare.late_s(3.0), bare.predicted_90_s) == (1.0, None)
    slow = replace(told, slow_s=1.2, safe_s=1.5).after(3.0)
    assert (slow.counted_s, slow.late_s(4.0)) == (4.2, 0.5)


async def test_who_leaves_or_gets_no_picture_teaches_nothing() -> None:
    lost = StageLost("the stage 'hall' died", stage="hall")
    failed = service(failing(lost, image=1))
    with pytest.raises(StageLost):
        await failed.generate(request())
    transport = FakeTransport(gate=asyncio.Event(), expected=2)
    left = service(transport)
    task = asyncio.create_task(left.generate(request()))
    await transport.all_started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (failed.calibration, left.calibration) == (Calibration(), Calibration())


async def test_dead_stages_and_full_queues_are_told_apart() -> None:
    config = settings()
    with pytest.raises(NoPlan, match="no stage on tier 'cloud' is alive"):
        service(board=FakeBoard(config, dead={"hall"})).plan(request())
    full = FakeBoard(config, full={"hall", "tower", "phone"})
    with pytest.raises(QueueFull):
        service(board=full).plan(request(policy="elastic"))


class Silent:
    """Accepts and then ends, or never answers at all."""

    def __init__(self, never: bool) -> None:
        self.never = never

    async def run(self, stage: str, packet: bytes):  # noqa: ANN201
        if self.never:
            await asyncio.Event().wait()
        event: Event = Accepted(stage)
        yield event


@pytest.mark.parametrize(
    ("never", "told"), [(True, "did not accept"), (False, "ended without a picture")]
)
async def test_a_stage_that_gives_nothing_is_lost(never: bool, told: str) -> None:
    made = service(Silent(never), hop_timeout_s=0.02)  # type: ignore[arg-type]
    with pytest.raises(StageLost, match=told) as caught:
        await made.generate(request())
    assert caught.value.stage == "hall"


def test_an_unknown_policy_in_the_config_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match="unknown policy 'clever'; known: elastic"):
        service(policy="clever")


def test_what_is_emulated_is_known() -> None:
    made: Service = service()
    assert made.emulation().stages == ("phone", "tower", "hall")
    assert ("tower", "hall") in made.emulation().links
    assert made.waiting_for() == ()
    assert service(board=FakeBoard(settings(), dead={"tower"})).waiting_for() == ("tower",)


def test_a_stage_that_does_not_reach_another_one_is_waited_for() -> None:
    board = FakeBoard(settings(), reaches={"tower": ("phone",)})
    assert service(board=board).waiting_for() == ("tower",)


async def test_a_prompt_that_the_model_does_not_read_to_its_end() -> None:
    long = request(prompt="red " * 33)
    assert "longer than the 32 tokens" in (await service().generate(long)).warnings[0]
    assert service().warnings(request()) == ()


def test_a_negative_prompt_that_is_not_read_to_its_end_is_told_as_such() -> None:
    (told,) = service().warnings(request(negative_prompt="blur " * 33))
    assert told.startswith("the negative prompt is longer than the 32 tokens")
    both = service().warnings(request(prompt="red " * 33, negative_prompt="blur " * 33))
    assert len(both) == 2
    assert service().warnings(request(prompt="red " * 32, negative_prompt="blur " * 32)) == ()
