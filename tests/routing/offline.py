"""What a burst could get if all its plans were chosen together: a local search over them.

    python -m tests.routing.offline in-time 30     # how many of a burst of 30 can be in time
    python -m tests.routing.offline makespan 100   # when a burst of 100 can be done

What it finds is a bound from below (in time) or above (makespan) on the best there is. Plans that
are not in time need not be begun, so the first search grows a list as long as all in it are in
time. Stages are those of serve_configs/local.yaml; see `clock` for what is played.
"""

from __future__ import annotations

import heapq
import itertools
import random
import sys
from collections.abc import Mapping, Sequence

from diffusion_edge.plan import Plan
from diffusion_edge.request import NEVER, ImageRequest, Times
from diffusion_edge.view import Link, StageStatus

from .brute import bundles
from .clock import Job, SimStage, live


def ends_s(
    plans: Sequence[Plan],
    request: ImageRequest,
    idle: Sequence[StageStatus],
    links: Mapping[tuple[str, str], Link],
    nbytes: int,
) -> list[float]:
    """When each of them is done if all come at once, due in this order."""
    stages = {status.stage: SimStage(status) for status in idle}
    (cells,) = idle[0].step_s
    order = itertools.count()
    coming: list[tuple[float, int, Job]] = []
    free_s: dict[tuple[str, str], float] = {}
    done_s = [0.0] * len(plans)
    for k, plan in enumerate(plans):
        times = Times(due=request.deadline_s + 1e-6 * k, give_up=NEVER.give_up)
        heapq.heappush(coming, (0.0, next(order), Job(request, k, plan, times)))
    while True:
        stage = min(stages.values(), key=lambda one: one.next_s)
        at_s = coming[0][0] if coming else float("inf")
        if min(at_s, stage.next_s) == float("inf"):
            return done_s
        if at_s < stage.next_s:
            _, _, job = heapq.heappop(coming)
            stages[job.stage].take(job, 1, cells, at_s)
            continue
        now = stage.next_s
        for job in stage.ended():
            if job.last:
                done_s[job.image] = now
                continue
            came_from = job.stage
            job.span += 1
            pair = came_from, job.stage
            sent_s = max(free_s.get(pair, 0.0), now) + nbytes / links[pair].bytes_per_s
            free_s[pair] = sent_s
            heapq.heappush(coming, (sent_s + links[pair].delay_s, next(order), job))


class Search:
    """Plans above the floor on the live stages, and what lists of them come to."""

    def __init__(self, seed: int, floor: float = 0.95) -> None:
        self.at = live()
        self.request = self.at.request(0, quality_floor=floor)
        self.random = random.Random(seed)
        self.tried = 0
        models = {status.stage: status.model for status in self.at.idle}
        self.plans = [
            bundle.plan(k)
            for bundle in bundles(list(models), self.request.steps, self.at.links)
            for k, bound in enumerate(
                self.at.quality.bound_all(
                    tuple(models[name] for name in bundle.stages), bundle.steps, self.request.size
                )
            )
            if bound >= floor
        ]

    def ends_s(self, plans: Sequence[Plan]) -> list[float]:
        self.tried += 1
        at = self.at
        return ends_s(plans, self.request, at.idle, at.links, at.packet_bytes)

    def changed(self, plans: Sequence[Plan]) -> list[Plan]:
        """One or two of them other ones, or moved."""
        new = list(plans)
        for _ in range(self.random.choice((1, 1, 2))):
            k = self.random.randrange(len(new))
            if self.random.random() < 0.3:
                new.insert(self.random.randrange(len(new)), new.pop(k))
            else:
                new[k] = self.random.choice(self.plans)
        return new

    def in_time(self, tries: int, begun: Sequence[Plan] = ()) -> list[Plan]:
        """As many as all are in time; each that is added costs at most `tries` lists."""

        def excess_s(plans: Sequence[Plan]) -> float:
            return sum(max(end_s - self.request.deadline_s, 0) for end_s in self.ends_s(plans))

        best = list(begun)
        while True:
            plans = [*best, self.random.choice(self.plans)]
            late_s = excess_s(plans)
            for _ in range(tries):
                if late_s <= 1e-9:
                    break
                other = self.changed(plans)
                other_s = excess_s(other)
                if other_s <= late_s:
                    plans, late_s = other, other_s
            if late_s > 1e-9:
                return best
            best = plans

    def makespan_s(self, plans: Sequence[Plan], tries: int) -> float:
        """Of the best list found from this one on."""
        plans, ends = list(plans), self.ends_s(plans)
        for _ in range(tries):
            other = self.changed(plans)
            other_ends = self.ends_s(other)
            if (max(other_ends), sum(other_ends)) <= (max(ends), sum(ends)):
                plans, ends = other, other_ends
        return max(ends)


def main(what: str, images: int, seed: int = 0, tries: int = 300) -> None:
    search = Search(seed)
    if what == "in-time":
        begun = [Plan.parse("edge:20")] * 4 + [Plan.parse("cloud:20")] * 2
        found = search.in_time(tries, begun)
        print(len(found), "in time:", *found, "| lists:", search.tried)
        return
    share = {"edge:20": 0.44, "cloud:20": 0.38, "device:14,cloud:6": 0.09, "device:15,edge:5": 0.09}
    plans = [Plan.parse(text) for text, part in share.items() for _ in range(round(part * images))]
    plans += [Plan.parse("edge:20")] * (images - len(plans))
    print(search.makespan_s(plans, tries), "s | lists:", search.tried)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
