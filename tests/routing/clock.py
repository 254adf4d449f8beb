"""Stages on a virtual clock, with the rules that the engine runs and the real board and policies.

A `World` plays requests that arrive at given moments: the board asks the stages as often as live,
a policy decides from its view, and images go through the stages of their plans, over links that
carry one packet after another. What cannot be in time waits, as in the service, and what requests
took is learned.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from diffusion_edge import batching
from diffusion_edge.api.board import EVERY_S, Board
from diffusion_edge.config import load_config
from diffusion_edge.errors import EdgeError
from diffusion_edge.plan import Plan, Tier
from diffusion_edge.request import Done, ImageRequest, Picture, Progress, Times
from diffusion_edge.routing import due
from diffusion_edge.routing.board import Carriage
from diffusion_edge.routing.calibration import Calibration
from diffusion_edge.routing.elastic import begun
from diffusion_edge.routing.forecast import Run
from diffusion_edge.routing.holding import Image, Stage, mode_of
from diffusion_edge.routing.policies import policy
from diffusion_edge.routing.promises import Kept
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.view import Choice, Held, Link, StageStatus, Told, View

from . import views

Decide = Callable[[ImageRequest, View], Choice]
PASS = 0
PICTURE = Picture(1, 1, b"\0\0\0")


@dataclass(eq=False)
class Job:
    """An image on its way through its plan. times: on the world's clock."""

    request: ImageRequest
    image: int
    plan: Plan
    times: Times
    span: int = 0
    ended: bool = False

    @property
    def stage(self) -> str:
        return self.plan.spans[self.span].stage

    @property
    def last(self) -> bool:
        return self.span == len(self.plan.spans) - 1


@dataclass
class Fate:
    """What became of a request. done_s: seconds from its arrival, inf if it has no pictures."""

    request: ImageRequest
    at_s: float
    choice: Choice | None = None
    refused: EdgeError | None = None
    done_s: float = inf
    given_up: bool = False

    @property
    def in_time(self) -> bool:
        return self.done_s <= self.request.deadline_s + 1e-9


class SimStage:
    """A stage, whose current round is played ahead: `before` it began, `after` it has ended."""

    def __init__(self, idle: StageStatus, pace: float = 1.0) -> None:
        """pace: what it takes over what it reports."""
        self.idle = idle
        self._stage = Stage(slower(idle, pace))
        self.before = Run(self._stage, [])
        self.after: Run | None = None
        self._jobs: list[Job | None] = []
        self._open: set[int] = set()
        self._dropped: list[int] = []
        self._told: dict[tuple[Job, int], int] = {}

    @property
    def next_s(self) -> float:
        return inf if self.after is None else self.after.now

    def take(self, job: Job, view_rows: int, cells: int, now: float) -> None:
        image = self._image(job, job.span, view_rows, cells, now)
        told = self._told.pop((job, job.span), None)
        if told is not None:
            self._open.add(told)
            self._on(now)
            self.before.come(told, [image])
            self._play()
            return
        self._open.add(len(self._jobs))
        self._jobs.append(job)
        self._come(image, now)

    def tell(self, job: Job, span: int, view_rows: int, cells: int, now: float) -> None:
        """The text comes, and the image later."""
        image = self._image(job, span, view_rows, cells, inf)
        self._told[job, span] = len(self._jobs)
        self._jobs.append(job)
        self._on(now)
        self.before.tell([image._replace(told_s=now)])
        self._play()

    def _image(self, job: Job, span: int, rows: int, cells: int, arrives_s: float) -> Image:
        steps, last = job.plan.spans[span].steps, span == len(job.plan.spans) - 1
        number, kind = self._stage.kind(cells, rows, doubled=True)
        due_s = batching.due(arrives_s, steps * kind.pass_s[1], job.times.due, mode_of(self.idle))
        return Image(kind, number, steps, due_s, True, last, arrives_s)

    def _come(self, image: Image, now: float) -> None:
        self._on(now)
        self.before.add([image])
        self._play()

    def _on(self, now: float) -> None:
        if self.after is None:
            self.before.now = now

    def _play(self) -> None:
        self.after = None
        if self.before.turn or self.before.coming or self.before.ahead:
            self.after = self.before.copy()
            self.after.round()

    def drop(self, job: Job, now: float) -> None:
        """At the next boundary."""
        for told in [key for key in self._told if key[0] is job]:
            del self._told[told]
        here = [i for i in self._open if self._jobs[i] is job]
        if not here:  # on its way
            return
        self._dropped += here
        first = self.before.images[0]
        self._jobs.append(None)
        self._come(first._replace(steps=0, encodes=False, decodes=False, arrives_s=now), now)

    def ended(self) -> list[Job]:
        """The current round is over: who left by it."""
        assert self.after is not None
        self.before = self.after
        gone = [i for i in self._open if self.before.done_s[i] < inf]
        self._open -= set(gone)
        for i in self._dropped:
            if i in self._open:
                self._open.remove(i)
                _remove(self.before, i)
        self._dropped = []
        told = set(self._told.values())
        self.before.ahead = [i for i in self.before.ahead if i in told]
        self._play()
        return [job for i in gone if (job := self._jobs[i]) is not None and not job.ended]

    def report(self, now: float) -> StageStatus:
        run, left = self.before, self.before.left
        if run.turn and run.turn[0] == PASS:
            batch = run.batch()
            took_s = run.images[batch[0]].kind.pass_s[len(batch)]
            passes = int((now - run.now) / took_s + 1e-9)
            left = [n - passes * (i in batch) for i, n in enumerate(left)]
        waiting = (*run.texts, *run.outside, *(i for _, i in run.coming if i >= 0))
        texts = {i for i in waiting if run.images[i].encodes}
        held = tuple(
            Held(
                request=job.request.request_id,
                image=job.image,
                steps=left[i],
                rows=1,
                cells=run.images[i].kind.cells,
                due_s=run.images[i].due_s - now,
                encodes=i in texts,
                decodes=run.images[i].decodes,
                doubled=True,
            )
            for i in sorted(self._open)
            if (job := self._jobs[i]) is not None
        )
        queue_s = sum(
            h.steps * run.images[0].kind.pass_s[-1] / run.images[0].kind.places for h in held
        )
        ahead = tuple(
            Told(
                job.request.request_id,
                job.image,
                job.plan.spans[span].start,
                run.images[i].encodes,
            )
            for (job, span), i in self._told.items()
        )
        return replace(self.idle, held=held, queued=len(held), queue_s=queue_s, ahead=ahead)


def slower(status: StageStatus, factor: float) -> StageStatus:
    return replace(
        status,
        step_s={
            cells: {rows: factor * seconds for rows, seconds in curve.items()}
            for cells, curve in status.step_s.items()
        },
        encode_s=factor * status.encode_s,
        decode_s={cells: factor * seconds for cells, seconds in status.decode_s.items()},
    )


def _remove(run: Run, i: int) -> None:
    run.stepping = [one for one in run.stepping if one[2] != i]
    run.texts = [k for k in run.texts if k != i]
    run.pictures = [k for k in run.pictures if k != i]
    run.coming = [one for one in run.coming if one[1] != i]
    if i in run.outside:
        run.outside.remove(i)
        run.inside += 1
    run.turn = [line for line in run.turn if (run.stepping, run.texts, run.pictures)[line]]
    run._leave(i)


@dataclass(frozen=True)
class Live:
    """What `make serve` states. packet_bytes: of SDXL's packet at 1024 pixels."""

    idle: tuple[StageStatus, ...]
    links: Mapping[tuple[str, str], Link]
    price_per_s: Mapping[Tier, float]
    quality: QualityTable
    packet_bytes: int = 264_000
    deadline_s: float = 8.0  # twice what cloud:20 takes alone

    def request(self, number: int, **changes: Any) -> ImageRequest:
        return views.request(
            **(
                {"request_id": f"r{number}", "deadline_s": self.deadline_s, "quality_floor": 0.95}
                | changes
            )
        )

    def burst(self, images: int, **changes: Any) -> list[Arrival]:
        return [(1.0, self.request(k, **changes)) for k in range(images)]

    def poisson(self, rate: float, images: int, seed: int, **changes: Any) -> list[Arrival]:
        draw, at_s, found = random.Random(seed), 1.0, []
        for k in range(images):
            at_s += draw.expovariate(rate)
            found.append((at_s, self.request(k, **changes)))
        return found

    def play(
        self,
        name: str,
        arrivals: Sequence[Arrival],
        slip: Callable[[Calibration], float] = lambda known: known.slip,
        pace: float = 1.0,
    ) -> list[Fate]:
        """slip: of views, by what was learned. pace: of all stages."""
        quality, decide = self.quality, policy(name)
        world = World(
            idle=self.idle,
            links=self.links,
            price_per_s=self.price_per_s,
            packet_bytes=self.packet_bytes,
            decide=lambda request, view: decide(request, view, quality),
            begun=lambda request, view: begun(request, view, quality),
            slip=slip,
            pace=pace,
        )
        return asyncio.run(world.play(arrivals))


Arrival = tuple[float, ImageRequest]


def live(config: str = "serve_configs/local.yaml") -> Live:
    """Idle stages of the config, and a quality table that no measurement changes."""
    settings = load_config(config).settings
    idle = tuple(
        StageStatus(
            stage=name,
            tier=stage.tier,
            model=stage.model,
            queue_s=0.0,
            queued=0,
            capacity=stage.capacity,
            step_s={views.CELLS: stage.emulate.curve},
            encode_s=stage.emulate.encode_s,
            decode_s={views.CELLS: stage.emulate.decode_s},
            resident_bytes=0,
            emulated=True,
            batches=len(stage.emulate.curve) > 1,
            reads_ahead=True,
        )
        for name, stage in settings.stages.items()
        if stage.emulate is not None
    )
    quality = QualityTable.read(Path(__file__).with_name("shapes_quality.json"))
    return Live(idle, settings.link_map(), settings.prices_per_s, quality)


@dataclass
class World:
    """idle: the stages with nothing to do. begun: what a late request that waits is begun by. slip,
    pace: as in `Live.play`."""

    idle: Sequence[StageStatus]
    links: Mapping[tuple[str, str], Link]
    price_per_s: Mapping[Tier, float]
    packet_bytes: int
    decide: Decide
    begun: Callable[[ImageRequest, View], Choice | None]
    slip: Callable[[Calibration], float]
    pace: float

    async def play(self, arrivals: Sequence[Arrival]) -> list[Fate]:
        self.now = 0.0
        self.fates: list[Fate] = []
        self.calibration = Calibration()
        self._stages = {status.stage: SimStage(status, self.pace) for status in self.idle}
        (self._cells,) = self.idle[0].step_s
        self._board = Board(
            {name: self._asker(stage) for name, stage in self._stages.items()},
            self.links,
            self.price_per_s,
            self._carriage,
            now=lambda: self.now,
            measure_links=False,
        )
        self._order = itertools.count()
        self._free_s: dict[tuple[str, str], float] = {}
        self._heap: list[tuple[float, int, int, object]] = []
        self._of: dict[Job, _Running] = {}
        self._waiting: list[Fate] = []
        self._looking = False
        for at_s, request in arrivals:
            self._at(at_s, 2, request)
        for poll in {int(at_s / EVERY_S) for at_s, _ in arrivals}:
            self._at(poll * EVERY_S, 1, None)
        while True:
            stage = min(self._stages.values(), key=lambda one: one.next_s)
            at_s = self._heap[0][0] if self._heap else inf
            if min(at_s, stage.next_s) == inf:
                return self.fates
            if stage.next_s <= at_s:
                self.now = stage.next_s
                for job in stage.ended():
                    self._onward(job)
            else:
                self.now, _, _, what = heapq.heappop(self._heap)
                await self._happens(what)

    def _at(self, at_s: float, rank: int, what: object) -> None:
        heapq.heappush(self._heap, (at_s, rank, next(self._order), what))

    def _asker(self, stage: SimStage) -> Callable[[], Awaitable[StageStatus]]:
        async def ask() -> StageStatus:
            return stage.report(self.now)

        return ask

    def _carriage(self, request: ImageRequest) -> Carriage:
        every = request.steps + 1
        return Carriage(("exact",) * every, (self.packet_bytes,) * every, self._cells)

    async def _happens(self, what: object) -> None:
        if isinstance(what, ImageRequest):
            self._come(what)
        elif isinstance(what, Job):
            self._arrive(what)
        elif isinstance(what, _Running):
            self._give_up(what)
        else:
            for name in self._stages:
                await self._board.ask_once(name)
            if what is LOOK:
                self._look()

    def _come(self, request: ImageRequest) -> None:
        fate = Fate(request, self.now)
        self.fates.append(fate)
        view = self._view(request)
        try:
            fate.choice = self.decide(request, view)
        except EdgeError as error:
            fate.refused = error
            return
        if fate.choice.late:
            self._waiting.append(fate)
            self._look_again()
        else:
            self._send(fate, fate.choice, view)

    def _view(self, request: ImageRequest) -> View:
        return replace(self._board.view(request), slip=self.slip(self.calibration))

    def _look_again(self) -> None:
        if self._waiting and not self._looking:
            self._looking = True
            self._at(self.now + EVERY_S, 1, LOOK)

    def _look(self) -> None:
        """Begins those that wait, in order of arrival."""
        self._looking = False
        while self._waiting:
            fate = self._waiting[0]
            view = self._view(fate.request)
            choice = self.begun(fate.request, view)
            if choice is None:
                break
            self._send(self._waiting.pop(0), choice, view)
        self._look_again()

    def _send(self, fate: Fate, choice: Choice, view: View) -> None:
        request, fate.choice = fate.request, self.calibration.of(choice)
        times = due.times(request, choice, view).shifted(self.now)
        stack = ExitStack()
        kept = stack.enter_context(self._board.promised(request, choice, view))
        jobs = [Job(request, i, choice.plan, times) for i in range(request.images)]
        running = _Running(fate, kept, stack, jobs)
        for job in jobs:
            self._of[job] = running
            for span, later in enumerate(choice.plan.spans[1:], 1):
                stage = self._stages[later.stage]
                if stage.idle.reads_ahead:
                    stage.tell(job, span, 1, self._cells, self.now)
            self._arrive(job)
        if times.give_up is not None:
            self._at(times.give_up, 0, running)

    def _arrive(self, job: Job) -> None:
        if not job.ended:
            self._stages[job.stage].take(job, 1, self._cells, self.now)

    def _onward(self, job: Job) -> None:
        running, span = self._of[job], job.plan.spans[job.span]
        running.kept.saw(job.image, Progress(span.stage, span.stop))
        if job.last:
            job.ended = True
            running.kept.saw(job.image, Done(PICTURE, (), ()))
            if all(one.ended for one in running.jobs) and not running.fate.given_up:
                self._done(running)
            return
        job.span += 1
        pair = span.stage, job.stage
        link = self.links[pair]
        free_s = max(self._free_s.get(pair, 0.0), self.now) + self.packet_bytes / link.bytes_per_s
        self._free_s[pair] = free_s
        self._at(free_s + link.delay_s, 0, job)

    def _done(self, running: _Running) -> None:
        fate = running.fate
        fate.done_s = self.now - fate.at_s
        running.stack.close()
        assert fate.choice is not None
        if not fate.choice.late:
            known, deadline_s = self.calibration, fate.request.deadline_s
            self.calibration = known.observe(fate.choice, fate.done_s, deadline_s)

    def _give_up(self, running: _Running) -> None:
        if running.fate.done_s < inf:
            return
        running.fate.given_up = True
        for job in running.jobs:
            if not job.ended:
                job.ended = True
                for stage in self._stages.values():
                    stage.drop(job, self.now)
        running.stack.close()


LOOK = object()


@dataclass(eq=False)
class _Running:
    fate: Fate
    kept: Kept
    stack: ExitStack
    jobs: Sequence[Job]
