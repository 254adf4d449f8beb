"""The events, in order: the next one is taken, handled, and what follows from it is put in line.

What is decided is decided by the functions that the server calls: `routing.board` over what stages
report, `routing.decide`, `routing.late`, `routing.due`, `routing.calibration`. What the server
carries out, this acts out: stages (`stage`), links (`ways`), requests that wait because they cannot
be in time, work that is given up.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import inf

from diffusion_edge.errors import DeadlineExceeded, EdgeError, QueueFull, StageLost
from diffusion_edge.plan import Plan
from diffusion_edge.request import HopRecord, ImageRequest, Progress
from diffusion_edge.routing import due
from diffusion_edge.routing.board import EVERY_S, FRESH_S, Board
from diffusion_edge.routing.calibration import Calibration
from diffusion_edge.routing.decide import begun, decided, seen
from diffusion_edge.routing.late import AGAIN_S, WAITING
from diffusion_edge.routing.links.probes import PAUSE_S
from diffusion_edge.routing.links.taken import Pair
from diffusion_edge.sim.again import Again
from diffusion_edge.sim.faults import Fault, cuts, slower
from diffusion_edge.sim.polled import Polled
from diffusion_edge.sim.running import Asked, Job, Running
from diffusion_edge.sim.stage import AT_ONCE_S, Guest
from diffusion_edge.sim.tally import SERVED, Tally
from diffusion_edge.sim.ways import Way
from diffusion_edge.sim.world import Group, World
from diffusion_edge.view import Choice, View

Arrival = tuple[float, ImageRequest, Group]

STAGES, PACKETS, REQUESTS = range(3)
"""What comes first of what happens at one time."""


class Simulation:
    """One run. seed: of the moments at which stages report."""

    def __init__(self, world: World, seed: int = 0) -> None:
        self.world, self.now, self.events = world, 0.0, 0
        self.tally = Tally()
        self.board = Board(
            tuple(world.stages),
            world.first,
            world.price_per_s,
            world.carriage,
            now=lambda: self.now,
            measure_links=world.measure_links,
        )
        rng = random.Random(f"{seed} reports")
        self.stages = {
            name: Polled(idle, world.report_s, -rng.random() * world.report_s)
            for name, idle in world.stages.items()
        }
        self.ways = {
            pair: Way(rates, cuts(world.faults, pair)) for pair, rates in world.ways.items()
        }
        self._heap: list[tuple[float, int, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._open = 0
        self._fresh_s = FRESH_S - EVERY_S + world.report_s
        self._jobs: dict[Guest, Job] = {}
        self._calibrations: dict[Group, Calibration] = defaultdict(Calibration)
        self._again = Again(world.quality, world.replay, world.replan)
        self._late: dict[Group, deque[Asked]] = defaultdict(deque)
        for fault in world.faults:
            self._expect(fault)
        if world.measure_links:
            self._probe_all(rng)

    def play(self, arrivals: Iterator[Arrival]) -> Tally:
        """Returns when everything that came has ended."""
        self._open += 1
        self._next(arrivals)
        while self._open:
            self.now, _, _, handle = heapq.heappop(self._heap)
            self.events += 1
            handle()
        return self.tally

    def at(self, time_s: float, rank: int, handle: Callable[[], object]) -> None:
        heapq.heappush(self._heap, (time_s, rank, next(self._order), handle))

    # ------------------------------------------------------------------ requests

    def _next(self, arrivals: Iterator[Arrival]) -> None:
        """The stream of them counts as one that is open."""
        following = next(arrivals, None)
        if following is None:
            self._open -= 1
        else:
            self.at(following[0], REQUESTS, partial(self._comes, following, arrivals))

    def _comes(self, arrival: Arrival, others: Iterator[Arrival]) -> None:
        came_s, request, group = arrival
        self._open += 1
        number = self.tally.came(came_s, request)
        asked = Asked(number, request, group, came_s, steps=request.steps)
        try:
            self._decide(asked)
        except EdgeError as error:
            self._ended(asked, error.code)
        self._next(others)

    def _decide(self, asked: Asked) -> None:
        group, world = asked.group, self.world
        view = self._view(asked)
        known, learned = self._calibrations[group], self._again.learned
        choice = decided(asked.request, view, world.quality, known, learned)
        steps = choice.plan.steps
        asked.request, view = asked.request.in_steps(steps), view.of_steps(steps)
        if not choice.late:
            self._begin(asked, choice, view)
            return
        waiting = self._late[group]
        if len(waiting) >= WAITING:
            raise QueueFull(f"{len(waiting)} requests that cannot be in time wait already")
        waiting.append(asked)
        asked.stages = frozenset(view.stages)
        if len(waiting) == 1:
            self._look(group)

    def _look(self, group: Group) -> None:
        """Begins those that wait, in order of arrival."""
        waiting = self._late[group]
        while waiting and self._ends_waiting(waiting[0]):
            waiting.popleft()
        if waiting:
            self.at(self.now + AGAIN_S, REQUESTS, partial(self._look, group))

    def _ends_waiting(self, asked: Asked) -> bool:
        view, quality = self._view(asked), self.world.quality
        calibration = self._calibrations[asked.group]
        waited = self.now - asked.came_s, len(self._late[asked.group])
        choice = begun(asked.request, view, quality, calibration, *waited)
        if choice is not None:
            self._begin(asked, choice, view)
            return True
        if asked.stages <= set(view.stages):
            return False
        try:
            decided(asked.request, view, quality, calibration)
        except EdgeError as error:
            self._ended(asked, error.code)
            return True
        asked.stages = frozenset(view.stages)
        return False

    def _view(self, asked: Asked) -> View:
        """With what the stages have reported by now."""
        for name in asked.group.stages:
            told = self.stages[name].look(self.now)
            if told is None:
                continue
            at_s, status = told
            if status is None:
                self.board.lost(name)
            else:
                self.board.heard(name, status, self._fresh_s, self.now - at_s)
        view = self.board.view(asked.request, asked.group.stages)
        if self.world.guidance:
            view = replace(view, guidance=self.world.guidance)
        return seen(view, self._calibrations[asked.group])

    def _ended(self, asked: Asked, fate: str) -> None:
        self.tally.ended(asked.number, fate, self.now - asked.came_s)
        self._open -= 1

    # ------------------------------------------------------------------ what is begun

    def _begin(self, asked: Asked, choice: Choice, view: View) -> None:
        request, waited_s = asked.request, self.now - asked.came_s
        times = due.times(request, choice, view).shifted(self.now)
        promises = self.board.promised(request, choice, view)
        running = Running(
            asked=asked,
            told=choice,
            view=view,
            times=times,
            began_s=self.now,
            promises=promises,
            kept=promises.__enter__(),
            left=request.images,
        )
        self.tally.chosen(asked.number, choice, self.world.what(choice.plan), waited_s)
        if times.give_up is not None:
            given_up = partial(self._fails, running, DeadlineExceeded.code)
            self.at(times.give_up, PACKETS, given_up)
        self._sets_out(running)
        if self._again.looks(running):
            self._looks_again(running)

    def _looks_again(self, running: Running) -> None:
        """Now and then: whether images are to go another way."""
        if running.over:
            return
        self.at(self.now + self.world.replan.look_s, REQUESTS, partial(self._looks_again, running))
        if self.now == running.began_s:
            return
        view, elapsed_s = self._view(running.asked), self.now - running.asked.came_s
        for job in running.jobs:
            if self._again.wants(job, view, elapsed_s):
                self._follow(self.stages[job.span.stage])

    def _sets_out(self, running: Running) -> None:
        self._again.begins(running)
        images, plan = range(running.asked.request.images), running.told.plan
        running.jobs = [Job(running, image, plan) for image in images]
        for job in running.jobs:
            self._arrives(job)

    def _arrives(self, job: Job) -> None:
        running, polled = job.running, self.stages[job.span.stage]
        self.board.links.came(job)
        if running.over:
            return
        if not polled.alive:
            lost = partial(self._fails, running, StageLost.code)
            self.at(self.now + self.world.hop_timeout_s, PACKETS, lost)
            return
        if not job.at and len(polled.stage) >= polled.stage.idle.capacity:
            self._fails(running, QueueFull.code)
            return
        polled.before(self.now)
        job.came_s, job.guest = self.now, polled.stage.take(job.coming(), self.now)
        self._jobs[job.guest] = job
        self._follow(polled)

    def _follow(self, polled: Polled) -> None:
        """Comes back when somebody leaves the stage, unless something happens to it before."""
        if polled.stage.next_s < inf:
            leaves = partial(self._leaves, polled, polled.version)
            self.at(polled.stage.next_s, STAGES, leaves)
        steps_s = [polled.stage.step_ends_s(guest, self.now) for guest, _ in self._asking(polled)]
        if steps_s and min(steps_s) < polled.stage.next_s:
            self.at(min(steps_s), STAGES, partial(self._stepped, polled, polled.version))

    def _asking(self, polled: Polled) -> list[tuple[Guest, Job]]:
        """Images on a stage whose policy may revise their plans."""
        if not self._again.revising:
            return []
        here = ((guest, self._jobs.get(guest)) for guest in polled.stage.here(self.now))
        return [(guest, job) for guest, job in here if job and self._again.asks(job)]

    def _stepped(self, polled: Polled, version: int) -> None:
        if polled.version == version:
            polled.before(self.now)
            self._revise(polled)

    def _revise(self, polled: Polled) -> None:
        """Asks the policies of all images that have made a step since they were last asked."""
        going = []
        for guest, job in self._asking(polled):
            position = job.span.stop - polled.stage.left(guest, self.now)
            if position <= job.position:
                continue
            job.position = position
            view = self._view(job.running.asked)
            plan = self._again.revised(job, position, view)
            if plan is not None and self._turns(polled, guest, job, plan, view):
                going.append(job)
        self._follow(polled)
        for job in going:
            self._goes_on(job)

    def _turns(self, polled: Polled, guest: Guest, job: Job, plan: Plan, view: View) -> bool:
        """Goes by another plan from here; whether it leaves the stage at once."""
        job.plan = plan
        job.replans += 1
        running = job.running
        running.view = view
        running.kept.revised(job.image, plan, job.at, running.asked.request, view)
        self.tally.replanned(running.asked.number)
        self._revised(running, self._again.of_plans(running))
        polled.stage.take_off(guest, self.now)
        del self._jobs[guest]
        if job.span.stop > job.position:
            job.guest = polled.stage.take(job.coming(), self.now)
            self._jobs[job.guest] = job
        return job.span.stop == job.position

    def _leaves(self, polled: Polled, version: int) -> None:
        if polled.version != version:
            return
        polled.before(self.now)
        gone = [self._jobs.pop(guest) for guest in polled.stage.leave()]
        self._revise(polled)
        for job in gone:
            if not job.running.over:
                self._goes_on(job)

    def _goes_on(self, job: Job) -> None:
        running, span = job.running, job.span
        job.guest = None
        job.left_stage(self.now)
        running.kept.saw(job.image, Progress(span.stage, span.stop))
        if job.last:
            self._has_its_picture(job)
            return
        codec, nbytes = job.plan.codecs[job.at], running.view.packet_bytes[span.stop]
        job.at += 1
        pair = span.stage, job.span.stage
        if pair[0] == pair[1]:
            self._arrives(job)
            return
        arrives_s, waited_s = self.ways[pair].carry(nbytes, self.now)
        took_s = arrives_s - self.now
        job.hops.append(HopRecord(*pair, nbytes, took_s, codec, took_s, queue_s=waited_s))
        self.board.links.left(job, pair, nbytes)
        self.at(arrives_s, PACKETS, partial(self._arrives, job))

    def _has_its_picture(self, job: Job) -> None:
        running, done = job.running, job.done()
        running.kept.saw(job.image, done)
        self.board.links.arrived(done, self.now - running.began_s)
        running.left -= 1
        if running.left or self._makes_again(running):
            return
        self._over(running, SERVED)
        self._learns(running, served=True)

    def _revised(self, running: Running, choice: Choice) -> None:
        running.told = choice
        self.tally.revised(running.asked.number, choice, self.world.what(choice.plan))

    def _makes_again(self, running: Running) -> bool:
        asked = running.asked
        if self._again.rule(asked.request.policy).after is None:
            return False
        view = self._view(asked)
        choice = self._again.after(running, view, self.now - asked.came_s)
        self._revised(running, choice or running.told)
        if choice is None:
            return False
        running.promises.__exit__(None, None, None)
        asked.request = asked.request.in_steps(choice.plan.steps)
        running.view, running.left = view, asked.request.images
        running.promises = self.board.promised(asked.request, choice, view)
        running.kept = running.promises.__enter__()
        self._sets_out(running)
        return True

    def _learns(self, running: Running, served: bool) -> None:
        asked, told = running.asked, running.told
        if told.late:
            return
        known, seconds = self._calibrations[asked.group], self.now - asked.came_s
        self._calibrations[asked.group] = (
            known.observe(told, seconds, asked.request.deadline_s)
            if served
            else known.given_up(told, seconds)
        )

    def _fails(self, running: Running, fate: str) -> None:
        """All its images are taken off, wherever they are."""
        if running.over:
            return
        if fate == DeadlineExceeded.code:
            self._learns(running, served=False)
        self._over(running, fate)
        for job in running.jobs:
            self.board.links.came(job)
            if job.guest is not None:
                polled = self.stages[job.span.stage]
                polled.before(self.now)
                polled.stage.drop(job.guest, self.now)
                self._follow(polled)

    def _over(self, running: Running, fate: str) -> None:
        running.over = True
        running.promises.__exit__(None, None, None)
        self._again.over(running, self.now - running.asked.came_s if fate == SERVED else None)
        self._ended(running.asked, fate)

    # ------------------------------------------------------------------ what goes wrong

    def _expect(self, fault: Fault) -> None:
        begins: Callable[[str], None] = self._loses
        ends: Callable[[str], None] = self._finds
        if fault.kind == "slow":
            begins, ends = partial(self._slows, fault.times), partial(self._slows, 1.0)
        if fault.kind != "cut":  # which the links know themselves
            self.at(fault.at_s, STAGES, partial(begins, fault.stage))
            self.at(fault.at_s + fault.for_s, STAGES, partial(ends, fault.stage))

    def _loses(self, name: str) -> None:
        """A stage and all that it holds."""
        polled = self.stages[name]
        polled.before(self.now)
        polled.alive = False
        for guest in polled.stage.lose(self.now):
            job = self._jobs.pop(guest)
            job.guest = None
            self._fails(job.running, StageLost.code)

    def _finds(self, name: str) -> None:
        """A stage that was lost is there again, with nothing to do."""
        self.stages[name].before(self.now)
        self.stages[name].alive = True

    def _slows(self, times: float, name: str) -> None:
        polled = self.stages[name]
        polled.before(self.now)
        polled.stage.slowed(slower(self.world.stages[name], times), self.now)
        self._follow(polled)

    # ------------------------------------------------------------------ probes

    def _probe_all(self, rng: random.Random) -> None:
        """As the server's prober does, one stage at a time has its links looked at."""
        by_source: dict[str, list[Pair]] = defaultdict(list)
        for pair in self.ways:
            by_source[pair[0]].append(pair)
        for pairs in by_source.values():
            self.at(rng.random() * PAUSE_S, PACKETS, partial(self._probes, pairs))

    def _probes(self, pairs: Sequence[Pair]) -> None:
        due, again_s = self.board.links.due(pairs), self.now + PAUSE_S
        took_s = self.ways[due[0]].probe(due[1], self.now) if due else None
        if due and took_s is not None:
            again_s += took_s
            self.at(self.now + took_s, PACKETS, partial(self.board.links.probed, *due, took_s))
        quiet_until_s = self.board.links.quiet_until(pairs) - AT_ONCE_S
        while again_s < quiet_until_s:  # a look that finds nothing
            again_s += PAUSE_S
        self.at(again_s, PACKETS, partial(self._probes, pairs))
