"""When a burst is done whose requests are decided one after another, against the best split of all
of them that a search finds which knows them all. On views, without a server. No torch.

Stages are those of `local.yaml`, idle, one or several replicas of each, with places for the whole
burst. Decisions count at once, as the board has it; what comes of them is played by the stages'
rules (`offline.played`). The search begins with the best split that a policy found, so none is
better than it; it is no oracle.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import fmean

from diffusion_edge.bench.routing.decision import CELLS, PACKET_BYTES, asked_for, stated
from diffusion_edge.bench.routing.foretold import all_plans
from diffusion_edge.bench.routing.live import Wanted
from diffusion_edge.bench.routing.offline import Known, Played, played
from diffusion_edge.config import Settings
from diffusion_edge.plan import EXACT, Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.board import Board, Carriage
from diffusion_edge.routing.cost import of_plan
from diffusion_edge.routing.due import is_late
from diffusion_edge.routing.policies import policy
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.view import Choice, Link, View

COUNT = 100
REPLICAS = (1, 8)
"""Of each stage."""
PATIENCE = (2.0, 1.1, 0.1)
"""Deadlines: times the best makespan that is found from those of `BLIND`. By the first one there is
time for what is cheaper, by the second hardly, and by the last one nobody can be in time."""
BLIND = ("earliest", "in-turn")
"""Policies that the deadline does not matter to."""
TRIES = 600
"""Splits that are tried, each of the best one with some plans changed."""
OFFLINE = "offline"


@dataclass(frozen=True)
class Split:
    """Of a burst, by a policy or by the search. patience, deadline_s: of the requests, 0 for the
    search. makespan_s: when all are done. cost: mean of a request. promised: how many were decided
    to be in time; in_time: how many are."""

    by: str
    replicas: int
    patience: float
    deadline_s: float
    makespan_s: float
    cost: float
    promised: int
    in_time: int


@dataclass(frozen=True)
class Burst:
    """view: all stages idle. good: plans above the floor, over one replica of each stage; replicas:
    of each by name."""

    count: int
    view: View
    wanted: Wanted
    good: Sequence[Plan]
    replicas: Mapping[str, Sequence[str]]

    def drawn(self, rng: random.Random) -> Plan:
        """A plan above the floor, on some replicas."""
        spans = rng.choice(self.good).spans
        return Plan.of(tuple((rng.choice(self.replicas[s.stage]), s.steps) for s in spans))

    def played(self, plans: Sequence[Plan], known: Known) -> Played:
        return played(plans, tuple(self.view.stages), self.wanted, self.view, known)

    def due(self, deadline_s: float) -> Burst:
        return replace(self, wanted=replace(self.wanted, deadline_s=deadline_s))


def over_best(splits: Sequence[Split], split: Split) -> float:
    """Makespan over that of the best split on as many replicas."""
    (least,) = (s.makespan_s for s in splits if (s.by, s.replicas) == (OFFLINE, split.replicas))
    return split.makespan_s / least


def measured(
    settings: Settings,
    quality: QualityTable,
    bound: Callable[[Plan], float],
    wanted: Wanted,
    seed: int,
    count: int = COUNT,
    tries: int = TRIES,
) -> tuple[Split, ...]:
    """bound: of a plan's quality, by models. wanted: but for the deadline, which follows."""
    bursts = (burst(settings, bound, wanted, each, count) for each in REPLICAS)
    return tuple(split for each in bursts for split in splits(each, quality, seed, tries))


def splits(burst: Burst, quality: QualityTable, seed: int, tries: int) -> Iterator[Split]:
    known: Known = {}
    rng = random.Random(f"{seed} split")
    blind = [_plans(decided(name, burst, quality)) for name in BLIND]
    found = best(burst, blind, tries, rng, known)
    makespan_s = max(burst.played(found, known).done_s)
    for patience in PATIENCE:
        due = burst.due(patience * makespan_s)
        request = _request(due, quality, 0)
        chosen = {name: decided(name, due, quality) for name in ("elastic", *BLIND)}
        for name, choices in chosen.items():
            promised = sum(not is_late(request, choice, due.view) for choice in choices)
            yield _split(name, patience, due, request, _plans(choices), known, promised)
        lists = [*map(_plans, chosen.values()), found]
        found = best(due, lists, tries, rng, known)
    yield _split(OFFLINE, 0.0, burst.due(0.0), request, found, known, 0)


def _split(
    by: str,
    patience: float,
    due: Burst,
    request: ImageRequest,
    plans: Sequence[Plan],
    known: Known,
    promised: int,
) -> Split:
    done_s, deadline_s = due.played(plans, known).done_s, due.wanted.deadline_s
    return Split(
        by=by,
        replicas=len(next(iter(due.replicas.values()))),
        patience=patience,
        deadline_s=deadline_s,
        makespan_s=max(done_s),
        cost=fmean(of_plan(plan, request, due.view) for plan in plans),
        promised=promised,
        in_time=sum(at_s <= deadline_s for at_s in done_s),
    )


def _plans(choices: Sequence[Choice]) -> list[Plan]:
    return [choice.plan for choice in choices]


# ---------------------------------------------------------------------------- one after another


def decided(name: str, burst: Burst, quality: QualityTable) -> list[Choice]:
    """All in one instant, each knowing those before it."""
    view, choose = burst.view, policy(name)
    carried = Carriage(view.codecs, view.packet_bytes, view.cells)
    board = Board(
        tuple(view.stages), view.links, view.price_per_s, lambda _: carried, lambda: 0.0, False
    )
    for stage, status in view.stages.items():
        board.heard(stage, status)
    choices = []
    with ExitStack() as promises:
        for number in range(burst.count):
            request = _request(burst, quality, number)
            seen = board.view(request)
            choices.append(choose(request, seen, quality))
            promises.enter_context(board.promised(request, choices[-1], seen))
    return choices


def _request(burst: Burst, quality: QualityTable, number: int) -> ImageRequest:
    wanted = burst.wanted
    return asked_for(quality.family, wanted.steps, wanted.deadline_s, wanted.quality_floor, number)


# ---------------------------------------------------------------------------- all together


def best(
    burst: Burst, begin: Sequence[Sequence[Plan]], tries: int, rng: random.Random, known: Known
) -> list[Plan]:
    """By local search from the best of some splits: when all are done, and then how long stages
    are busy."""

    def key(plans: Sequence[Plan]) -> tuple[float, float]:
        found = burst.played(plans, known)
        return max(found.done_s), found.crowding()

    keys = [key(plans) for plans in begin]
    least = min(keys)
    chosen = list(begin[keys.index(least)])
    for _ in range(tries):
        other = _changed(chosen, burst, rng, known)
        other_key = key(other)
        if other_key <= least:
            chosen, least = other, other_key
    return chosen


def _changed(plans: Sequence[Plan], burst: Burst, rng: random.Random, known: Known) -> list[Plan]:
    """One or two plans are other ones; every other time one of those over the stage that is the
    last to be idle."""
    changed, found = list(plans), burst.played(plans, known)
    last = max(found.idle_s, key=found.idle_s.__getitem__)
    crowd = [i for i, plan in enumerate(plans) if any(s.stage == last for s in plan.spans)]
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.choice(crowd) if rng.random() < 0.5 else rng.randrange(len(plans))
        changed[at] = burst.drawn(rng)
    return changed


# ---------------------------------------------------------------------------- what is asked


def burst(
    settings: Settings,
    bound: Callable[[Plan], float],
    wanted: Wanted,
    replicas: int,
    count: int,
) -> Burst:
    one = _view(settings, 1, count, wanted.steps)
    models = {name: status.model for name, status in one.stages.items()}
    good = [
        plan
        for plan in all_plans(one, wanted.steps)
        if bound(Plan.of(tuple((models[s.stage], s.steps) for s in plan.spans)))
        >= wanted.quality_floor
    ]
    names = {f"{tier}-0": [f"{tier}-{k}" for k in range(replicas)] for tier in settings.stages}
    return Burst(count, _view(settings, replicas, count, wanted.steps), wanted, good, names)


def _view(settings: Settings, replicas: int, count: int, steps: int) -> View:
    """Links between replicas are those between their stages; replicas of one stage have none."""
    kind = {f"{name}-{k}": name for name in settings.stages for k in range(replicas)}
    links = settings.link_map()
    ways: dict[tuple[str, str], Link] = {
        (a, b): links[kind[a], kind[b]] for a in kind for b in kind if (kind[a], kind[b]) in links
    }
    return View(
        stages={
            name: replace(stated(name, settings.stages[of]), capacity=count)
            for name, of in kind.items()
        },
        links=ways,
        price_per_s=settings.prices_per_s,
        packet_bytes=(PACKET_BYTES,) * (steps + 1),
        codecs=(EXACT,) * (steps + 1),
        cells=CELLS,
    )
