"""What errors of a Serve handle mean, and how a call through it ends. No Ray is started."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from diffusion_edge.errors import DeadlineExceeded, EdgeError, QueueFull, StageLost
from diffusion_edge.request import Accepted, Event
from diffusion_edge.sites import lease
from diffusion_edge.sites import ray as module
from diffusion_edge.sites.ray import RayTransport, typed


class FakeHandle:
    """Plays events or raises an error, as a streaming handle does."""

    def __init__(self, *events: Event | Exception) -> None:
        self._events = events
        self.cancelled = False

    def options(self, **_: Any) -> FakeHandle:
        return self

    def remote(self, *packet: bytes) -> FakeHandle:
        return self

    def cancel(self) -> None:
        self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[Event]:
        for event in self._events:
            if isinstance(event, Exception):
                raise event
            yield event


def raised_in_a_replica(cause: Exception) -> RayTaskError:
    error: RayTaskError = RayTaskError("run", "a traceback", cause)
    return error.as_instanceof_cause()


async def all_of(handle: FakeHandle) -> list[Event]:
    return [event async for event in RayTransport({"cloud": handle}).run("cloud", b"")]


async def test_events_pass_and_a_finished_call_is_not_cancelled() -> None:
    handle = FakeHandle(Accepted("cloud"))
    assert await all_of(handle) == [Accepted("cloud")]
    assert not handle.cancelled


async def test_closing_cancels_the_call() -> None:
    handle = FakeHandle(Accepted("cloud"), Accepted("cloud"))
    events = RayTransport({"cloud": handle}).run("cloud", b"")
    await anext(events)
    await events.aclose()
    assert handle.cancelled


async def test_every_call_has_a_lease_that_is_renewed_while_it_lasts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.0)

    class Stage(FakeHandle):
        """Works until two words of its caller have come."""

        def __init__(self, method: str = "") -> None:
            super().__init__()
            self.method = method

        def options(self, *, method_name: str, **_: Any) -> FakeHandle:
            return Stage(method_name)

        def remote(self, *given: Any) -> FakeHandle:
            if self.method == "renew":
                words.put_nowait(given[0])
            else:
                leases.append(given[1])
            return self

        def __await__(self) -> Generator[Any, None, None]:
            return asyncio.sleep(0).__await__()

        async def __aiter__(self) -> AsyncIterator[Event]:
            assert [await words.get(), await words.get()] == [tuple(leases)] * 2
            yield Accepted("cloud")

    words: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()
    leases: list[str] = []
    transport = RayTransport({"cloud": Stage()})
    async with asyncio.timeout(10):
        for _ in range(2):
            assert [e async for e in transport.run("cloud", b"")] == [Accepted("cloud")]
            leases.clear()


async def test_our_errors_arrive_as_they_were_raised() -> None:
    full = QueueFull("the stage 'cloud' is full", retry_after_s=3.0)
    with pytest.raises(QueueFull) as caught:
        await all_of(FakeHandle(Accepted("cloud"), raised_in_a_replica(full)))
    assert type(caught.value) is QueueFull
    assert caught.value.retry_after_s == 3.0


@pytest.mark.parametrize(
    "error",
    [ActorDiedError(), ActorUnavailableError("gone", b"0" * 16)],
    ids=lambda e: type(e).__name__,
)
async def test_a_dead_replica_is_a_lost_stage(error: Exception) -> None:
    with pytest.raises(StageLost, match="'cloud' was lost") as caught:
        await all_of(FakeHandle(error))
    assert caught.value.stage == "cloud"


async def test_an_unknown_stage_is_named() -> None:
    with pytest.raises(StageLost, match="no stage 'attic'; there are cloud"):
        await anext(RayTransport({"cloud": FakeHandle()}).run("attic", b""))


class Replicated(FakeHandle):
    """Of a stage with replicas, by what each answers or raises; keeps what they are told."""

    def __init__(self, *replicas: Exception | None) -> None:
        super().__init__()
        self.replicas = replicas
        self.told: list[tuple[Any, ...]] = []

    def broadcast(self, method_name: str, *given: Any) -> Replicated:
        self.told += [(method_name, *given)] * len(self.replicas)
        return self

    async def results_async(self) -> list[None]:
        for answer in self.replicas:
            if answer is not None:
                raise answer
        return [None] * len(self.replicas)


async def test_every_replica_of_the_sending_stage_is_told_of_a_link() -> None:
    edge, cloud = Replicated(None, None, None), Replicated(None)
    await RayTransport({"edge": edge, "cloud": cloud}).throttle("edge", "cloud", 0.5, False)
    assert edge.told == [("throttle", "cloud", 0.5, False)] * 3
    assert cloud.told == []


@pytest.mark.parametrize(
    ("replicas", "said"), [((None, ActorDiedError()), "'edge' was lost"), ((), "no replica")]
)
async def test_a_link_whose_sender_does_not_answer_is_not_throttled(
    replicas: tuple[Exception | None, ...], said: str
) -> None:
    transport = RayTransport({"edge": Replicated(*replicas)})
    with pytest.raises(StageLost, match=said):
        await transport.throttle("edge", "cloud", 0.5, False)


async def test_a_stage_is_told_what_to_expect_and_all_its_replicas_to_forget() -> None:
    class Stage(Replicated):
        def options(self, *, method_name: str, **_: Any) -> FakeHandle:
            return Expecting() if method_name == "expect" else self

    class Expecting(FakeHandle):
        def remote(self, *given: Any) -> FakeHandle:
            expected.append(given)
            return self

        def __await__(self) -> Generator[Any, None, None]:
            yield from asyncio.sleep(0).__await__()
            if len(expected) > 1:
                raise ActorDiedError

    expected: list[tuple[Any, ...]] = []
    cloud = Stage(None, None)
    transport = RayTransport({"cloud": cloud})
    await transport.expect("cloud", [b"one", b"two"])
    assert expected == [([b"one", b"two"],)]
    await transport.forget("cloud", "r")
    assert cloud.told == [("forget", "r")] * 2
    with pytest.raises(StageLost, match="'cloud' was lost"):
        await transport.expect("cloud", [b"one"])
    with pytest.raises(StageLost, match="'cloud' was lost"):
        await RayTransport({"cloud": Stage(ActorDiedError())}).forget("cloud", "r")


@pytest.mark.parametrize("taken", [(False, True), (False, False)])
async def test_every_replica_is_told_of_another_plan_and_one_may_take_it(
    taken: tuple[bool, ...],
) -> None:
    class Stage(Replicated):
        async def results_async(self) -> list[Any]:
            await super().results_async()
            return list(taken)

    edge = Stage(None, None)
    assert await RayTransport({"edge": edge}).replan("edge", b"a packet") == any(taken)
    assert edge.told == [("replan", b"a packet")] * 2
    with pytest.raises(StageLost, match="'edge' was lost"):
        await RayTransport({"edge": Stage(ActorDiedError())}).replan("edge", b"a packet")


async def test_a_probe_is_asked_of_the_stage_that_sends_it() -> None:
    class Stage(FakeHandle):
        def options(self, *, method_name: str, **_: Any) -> FakeHandle:
            return Asked() if method_name == "probe" else self

    class Asked(FakeHandle):
        def remote(self, *given: Any) -> FakeHandle:
            asked.append(given)
            return self

        def __await__(self) -> Generator[Any, None, float]:
            yield from asyncio.sleep(0).__await__()
            if len(asked) > 1:
                raise ActorDiedError
            return 0.25

    asked: list[tuple[Any, ...]] = []
    transport = RayTransport({"edge": Stage(), "cloud": FakeHandle()})
    assert await transport.probe("edge", "cloud", 2048) == 0.25
    assert asked == [("cloud", 2048)]
    with pytest.raises(StageLost, match="'edge' was lost"):
        await transport.probe("edge", "cloud", 2048)


async def test_what_a_stage_is_sent_in_vain_goes_the_way_of_a_packet() -> None:
    """Over the same kind of stream, and cancelled like one."""
    given: list[bytes] = []

    class Stage(FakeHandle):
        def remote(self, *data: bytes) -> FakeHandle:
            given.extend(data)
            return self

        async def __aiter__(self) -> AsyncIterator[float]:  # type: ignore[override]  # no events
            if len(given) > 1:
                raise ActorDiedError
            yield 0.5

    class Silent(FakeHandle):
        async def __aiter__(self) -> AsyncIterator[Event]:
            await asyncio.Event().wait()
            yield Accepted("edge")

    silent = Silent()
    transport = RayTransport({"cloud": Stage(), "edge": silent})
    assert [answer async for answer in transport.greet("cloud", b"abc")] == [0.5]
    assert given == [b"abc"]
    with pytest.raises(StageLost, match="'cloud' was lost"):
        await anext(transport.greet("cloud", b"abc"))
    waiting = asyncio.ensure_future(anext(transport.greet("edge", b"")))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert silent.cancelled


async def test_a_stage_is_reached_once_it_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GREET_AGAIN_S", 0.0)

    class Late(FakeHandle):
        async def __aiter__(self) -> AsyncIterator[Event]:
            if not tried.is_set():
                tried.set()
                raise ActorUnavailableError("starting", b"0" * 16)
            await up.wait()
            yield Accepted("cloud")

    tried, up = asyncio.Event(), asyncio.Event()
    transport = RayTransport({"cloud": Late(), "edge": FakeHandle(Accepted("edge"))})
    assert transport.reached == ()
    transport.open()
    await tried.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    assert transport.reached == ("edge",)
    up.set()
    await asyncio.gather(*transport._opening)
    assert transport.reached == ("cloud", "edge")


def test_what_errors_mean() -> None:
    full = BackPressureError(num_queued_requests=1, max_queued_requests=1)
    assert isinstance(typed(full, "c"), QueueFull)
    assert isinstance(typed(DeploymentUnavailableError("c"), "c"), StageLost)
    late = typed(raised_in_a_replica(DeadlineExceeded("late")), "c")
    assert isinstance(late, DeadlineExceeded)
    bug = typed(raised_in_a_replica(ZeroDivisionError("secret")), "c")
    assert type(bug) is EdgeError
    assert bug.message == "the stage 'c' failed: ZeroDivisionError"
