"""What the API offers, without HTTP and without Ray: decide on a plan, carry it out.

A deadline is what the router aims at. A request that cannot be in time is refused before any work,
or waits here until there is room for it beside those that can, as it asks. A picture that comes
late is given out, with a warning. When work is due and when it is given up (`routing.due`) goes
with the packets: stages order their work by the one and stop at the other.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Protocol

from diffusion_edge.api.ahead import Ahead, Tells, Told
from diffusion_edge.api.inflight import Image, InFlight, Replanned, keep_looking
from diffusion_edge.api.resolve import free_steps, image_request
from diffusion_edge.api.schema import ImagesBody, ThrottleBody
from diffusion_edge.config import Settings
from diffusion_edge.engine.hop import Guarded
from diffusion_edge.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    QueueFull,
    StageLost,
)
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.plan import Plan
from diffusion_edge.request import (
    Done,
    HopRecord,
    ImageRequest,
    Picture,
    SpanRecord,
    Times,
    Transport,
)
from diffusion_edge.routing import due
from diffusion_edge.routing.calibration import Calibration
from diffusion_edge.routing.decide import begun, decided, seen
from diffusion_edge.routing.late import AGAIN_S, WAITING
from diffusion_edge.routing.learning import NOTHING, learn, outcome
from diffusion_edge.routing.links.taken import Links
from diffusion_edge.routing.policies import rule, served
from diffusion_edge.routing.promises import Kept
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.replan import went
from diffusion_edge.routing.why import Why
from diffusion_edge.view import Choice, StageStatus, View


class Board(Protocol):
    """What is known of the stages now; only of those that reported lately."""

    @property
    def links(self) -> Links: ...

    def view(self, request: ImageRequest) -> View: ...

    def statuses(self) -> Mapping[str, StageStatus]: ...

    def promised(
        self, request: ImageRequest, choice: Choice, view: View
    ) -> AbstractContextManager[Kept]: ...


class Watcher(Protocol):
    """Keeps some results (`watch.Watcher`)."""

    def saw(self, result: GenerationResult) -> bool: ...

    def keep(self, result: GenerationResult) -> None: ...


# (request, plan, image, time left) -> the bytes that the first stage gets
PacketMaker = Callable[[ImageRequest, Plan, int, Times], bytes]

# (source, target, factor, restart): of one direction of an emulated link
Throttle = Callable[[str, str, float, bool], Awaitable[None]]


@dataclass(frozen=True)
class GeneratedImage:
    seed: int
    picture: Picture
    spans: tuple[SpanRecord, ...]
    hops: tuple[HopRecord, ...]


@dataclass(frozen=True)
class GenerationResult:
    """`seconds` from the decision to the last image; `created` is Unix time. choice: with the plan,
    cost and quality of what was run, and the seconds that were foretold. replans: plans that were
    chosen in flight, in order."""

    request: ImageRequest
    choice: Choice
    images: tuple[GeneratedImage, ...]
    warnings: tuple[str, ...]
    seconds: float
    created: int
    replans: tuple[Replanned, ...] = ()


@dataclass(frozen=True)
class Emulation:
    """What the config states instead of measuring: stages' seconds, links' rate and delay, and the
    family in whose bytes packets are counted, None for their own."""

    stages: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    packet_bytes: str | None = None


class Service:
    """Holds between requests what those that were served say of predictions, what policies have
    learned from them, and the order of those that wait."""

    def __init__(
        self,
        *,
        card: FamilyCard,
        settings: Settings,
        quality: QualityTable,
        board: Board,
        transport: Transport,
        throttle: Throttle | None = None,
        watcher: Watcher | None = None,
        tells: Tells | None = None,
        packet: PacketMaker | None = None,
        draw_seed: Callable[[], int] = lambda: secrets.randbelow(2**32),
    ) -> None:
        self.card = card
        self.settings = settings
        self.quality = quality
        self.board = board
        self._transport = Guarded(transport, settings.hop_timeout_s)
        self._ahead = Ahead(tells, settings.hop_timeout_s)
        self._throttle = throttle
        self._watcher = watcher
        self._packet = packet or packets_for(card)
        self._draw_seed = draw_seed
        self.calibration = Calibration()
        self._learned = NOTHING
        self._turn = asyncio.Lock()  # of late requests, in order of arrival
        self._waiting = 0
        models = {name: card.stages[stage.model] for name, stage in settings.stages.items()}
        self._guidance = {n: m.guidance for n, m in models.items() if m.guidance is not None}
        try:
            served(settings.policy)
        except InvalidRequest as error:
            raise ConfigError(f"policy: {error.message}", key="policy") from None

    def request(self, body: ImagesBody) -> ImageRequest:
        """The body with every default settled. Raises InvalidRequest in its kinds."""
        name = uuid.uuid4().hex
        asked = image_request(body, self.card, self.settings, name, self._draw_seed)
        counts = self.quality.counts(asked.size)
        return replace(asked, free_steps=free_steps(asked, body, self.card, counts))

    def plan(self, request: ImageRequest, view: View | None = None) -> Choice:
        """What would be done now. Raises NoPlan, QueueFull, CannotBeInTime and InvalidRequest."""
        view = view or self.view(request)
        return decided(request, view, self.quality, self.calibration, self._learned)

    def view(self, request: ImageRequest) -> View:
        """What a decision may know now: the board's view, and what was learned of forecasts."""
        known = replace(self.board.view(request), guidance=self._guidance)
        return seen(known, self.calibration)

    def why(self, request: ImageRequest, view: View) -> Why | None:
        """Why the policy chose what it did for a request in so many steps, and what else there is;
        None of policies that do not compare plans. Takes some tens of milliseconds."""
        return rule(request.policy).why(request, view, self.quality)

    async def generate(self, request: ImageRequest) -> GenerationResult:
        """Decides and carries out; image i has seed + i. Cancelling this cancels the stages' work.
        What was decided is on the board as long as it runs.

        Raises what `plan` raises, DeadlineExceeded, and what a stage raises: when one image
        fails, the others are cancelled.
        """
        came, waited_s, asked = time.monotonic(), 0.0, request
        view = self.view(request)
        choice = self.plan(request, view)
        steps = choice.plan.steps
        request, view = request.in_steps(steps), view.of_steps(steps)
        if choice.late:
            choice, view = await self._begun(request, choice, came)
            waited_s = time.monotonic() - came
        with self.board.promised(request, choice, view) as kept:
            times = due.times(request, choice, view).shifted(time.monotonic())
            told = choice.after(waited_s)
            learn = partial(self._learn, asked, view, told, came)
            flight = self._in_flight(request, told, view, kept, came)
            try:
                result = await self._carried_out(flight, told, times)
            except DeadlineExceeded:
                learn(inf)
                if not told.late:
                    spent_s = time.monotonic() - came
                    self.calibration = self.calibration.given_up(told, spent_s)
                raise
            finally:
                flight.over()
            learn(result.seconds)
        if self._watcher is not None and self._watcher.saw(result):
            await asyncio.to_thread(self._watcher.keep, result)
        return result

    def _learn(
        self, request: ImageRequest, view: View, choice: Choice, came: float, seconds: float
    ) -> None:
        self._learned = learn(self._learned, outcome(request, view, choice, came, seconds))

    async def _begun(self, request: ImageRequest, late: Choice, came: float) -> tuple[Choice, View]:
        """Waits until a request that cannot be in time can be begun. Raises what `plan` raises when
        a stage has been lost."""
        if self._waiting >= WAITING:
            raise QueueFull(
                f"{self._waiting} requests that cannot be in time wait already",
                retry_after_s=late.predicted_s,
            )
        self._waiting += 1
        try:
            async with self._turn:
                stages = set(self.board.statuses())
                while True:
                    view = self.view(request)
                    waited = time.monotonic() - came, self._waiting
                    choice = begun(request, view, self.quality, self.calibration, *waited)
                    if choice is not None:
                        return choice, view
                    if not stages <= set(view.stages):
                        self.plan(request, view)
                        stages = set(view.stages)
                    await asyncio.sleep(AGAIN_S)
        finally:
            self._waiting -= 1

    def _in_flight(
        self, request: ImageRequest, choice: Choice, view: View, kept: Kept, came: float
    ) -> InFlight:
        images = [Image(choice.plan) for _ in range(request.images)]
        return InFlight(request, view, kept, self.board.links, came, images)

    def _may_replan(self, flight: InFlight, choice: Choice) -> bool:
        """What is late in any case is begun where it is in nobody's way, and stays so."""
        request, replan = flight.request, self.settings.replan
        late = due.is_late(request, choice, flight.view)
        return replan.most > 0 and rule(request.policy).may_replan and not late

    async def _look_again(self, flight: InFlight, told: Told, times: Times) -> None:
        async def tell(image: int, plan: Plan, at: int, before: Plan) -> bool | None:
            left = times.shifted(-time.monotonic())
            packet = self._packet(flight.request, plan, image, left)
            return await self._ahead.replan(told, packet, plan, at, before)

        await keep_looking(flight, self.settings.replan, self.quality, self.view, tell)

    async def _carried_out(
        self, flight: InFlight, choice: Choice, times: Times
    ) -> GenerationResult:
        """times: on the monotonic clock."""
        request, came = flight.request, flight.came
        began, plan = time.monotonic(), choice.plan
        left = times.shifted(-began)
        packets = [self._packet(request, plan, i, left) for i in range(request.images)]
        try:
            with self._ahead.told(request.request_id, plan, packets) as told:
                async with asyncio.timeout(left.give_up), asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._image(plan, i, packet, began, flight))
                        for i, packet in enumerate(packets)
                    ]
                    if self._may_replan(flight, choice):
                        looks = group.create_task(self._look_again(flight, told, times))
                        await asyncio.wait(tasks)
                        looks.cancel()
        except TimeoutError:
            raise DeadlineExceeded(
                f"no picture after {time.monotonic() - came:.3g} s, with a deadline of "
                f"{request.deadline_s:g} s; the work was given up"
            ) from None
        except BaseExceptionGroup as failed:
            raise first_error(failed) from None
        seconds = time.monotonic() - came
        if not choice.late:  # which waited for others first
            known = self.calibration
            self.calibration = known.observe(choice, seconds, request.deadline_s)
        done = [task.result() for task in tasks]
        warnings = list(self.warnings(request))
        warnings += [warning for event in done for warning in event.warnings]
        if seconds > request.deadline_s:
            late_s = seconds - request.deadline_s
            warnings.append(
                f"the deadline of {request.deadline_s:g} s was missed by {late_s:.2f} s"
            )
        plans = [image.plan for image in flight.images]
        return GenerationResult(
            request=request,
            choice=went(choice, plans, request, flight.view, self.quality),
            replans=tuple(flight.replans),
            images=tuple(
                GeneratedImage(request.seed + i, event.picture, event.spans, event.hops)
                for i, event in enumerate(done)
            ),
            warnings=tuple(dict.fromkeys(warnings)),
            seconds=seconds,
            created=int(time.time()),
        )

    async def _image(
        self, plan: Plan, image: int, packet: bytes, began: float, flight: InFlight
    ) -> Done:
        """began: on the monotonic clock. What the hops took is learned."""
        first = plan.spans[0].stage
        async with aclosing(self._transport.run(first, packet)) as events:
            async for event in events:
                flight.saw(image, event)
                if isinstance(event, Done):
                    self.board.links.arrived(event, time.monotonic() - began)
                    return event
        raise StageLost(f"the stage {first!r} ended without a picture", stage=first)

    def warnings(self, request: ImageRequest) -> tuple[str, ...]:
        """What can be told before any work: a word makes at least one token."""
        limit = self.card.max_tokens
        texts = {"prompt": request.prompt, "negative prompt": request.negative_prompt}
        return tuple(
            f"the {name} is longer than the {limit} tokens that this model reads; its end is cut"
            for name, text in texts.items()
            if len(text.split()) > limit
        )

    @property
    def throttles(self) -> bool:
        """Whether there are links whose rate can be changed: emulated ones."""
        return self._throttle is not None and bool(self.emulation().links)

    async def throttle(self, asked: ThrottleBody) -> tuple[str, str]:
        """Changes the rate of an emulated link, in both directions; returns its ends.

        Raises InvalidRequest if there is no such link, and StageLost.
        """
        links = self.emulation().links
        found = [pair for pair in links if set(pair) == set(asked.between)]
        if self._throttle is None or not found:
            known = ", ".join(f"{a} and {b}" for a, b in links)
            first, second = (name[:100] for name in asked.between)
            raise InvalidRequest(
                f"there is no emulated link between {first!r} and {second!r}; there are those "
                f"between {known or 'none'}",
                param="between",
            )
        (a, b) = found[0]
        for source, target in ((a, b), (b, a)):
            await self._throttle(source, target, asked.factor, asked.restart)
        return found[0]

    def waiting_for(self) -> tuple[str, ...]:
        """Configured stages that do not report, or do not reach all that do."""
        known = self.board.statuses()
        return tuple(
            name
            for name in self.settings.stages
            if name not in known or not all(map(known[name].can_reach, known))
        )

    def emulation(self) -> Emulation:
        packets = self.settings.emulate
        return Emulation(
            stages=tuple(n for n, stage in self.settings.stages.items() if stage.emulate),
            links=tuple(link.between for link in self.settings.links if link.emulate),
            packet_bytes=Path(packets.packet_bytes).name if packets else None,
        )


def packets_for(card: FamilyCard) -> PacketMaker:
    """Makes the first packet of an image of this family."""
    from diffusion_edge.packet import new_packet, write  # torch, which tests of the API do without

    space = card.latent_space()

    def make(request: ImageRequest, plan: Plan, image: int, left: Times) -> bytes:
        return write(new_packet(request, plan, image, space, left))

    return make


def first_error(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first single error in a group."""
    error: BaseException = failed
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
