"""Runs of requests with given answers: what each earned, and what hindsight and an oracle find."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations

import numpy as np

from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import cost
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.reward import cloud_only, reward
from diffusion_edge.sim import hindsight, oracle, windows
from diffusion_edge.sim.blind import Known, blind
from diffusion_edge.sim.ceiling import alone_s, ceiling
from diffusion_edge.sim.loop import Arrival, Simulation
from diffusion_edge.sim.oracle import Answer, Answers, Found
from diffusion_edge.sim.tally import Floats, Tally
from diffusion_edge.sim.world import Group, World
from diffusion_edge.view import View

PLAYS = 400
"""Runs that an oracle may make."""
ROUTED = 2
"""Of the plans that are best with hindsight, so many are run by the policy `fixed`, too."""
OF_EACH = 4
"""Plans that it tries over the same stages, beside those of the policies."""


def run(world: World, arrivals: Sequence[Arrival], seed: int) -> Tally:
    return Simulation(world, seed).play(iter(arrivals))


# ---------------------------------------------------------------------------- what is earned


def idle_view(world: World, group: Group, request: ImageRequest) -> View:
    """Of stages that have nothing to do."""
    carried = world.carriage(request)
    return View(
        stages={name: world.stages[name] for name in group.stages},
        links={pair: link for pair, link in world.first.items() if link is not None},
        price_per_s=world.price_per_s,
        packet_bytes=carried.packet_bytes,
        codecs=carried.codecs,
        cells=carried.cells,
        guidance=world.guidance,
    )


def earned(tally: Tally, world: World, arrivals: Iterable[Arrival]) -> Floats:
    """By request, see `routing.reward`. The floor is held against the bound."""
    asked = np.array(list(_asked(world, arrivals)), np.float64).reshape(-1, 2)
    held = tally.in_time() & (np.array(tally.quality_bound) >= asked[:, 0])
    paid = np.nan_to_num(np.array(tally.cost))
    return np.array(list(map(reward, held, paid.tolist(), asked[:, 1].tolist())))


def _asked(world: World, arrivals: Iterable[Arrival]) -> Iterator[tuple[float, float]]:
    """By request its floor, and what it costs all in the cloud."""
    known: dict[object, float] = {}
    for _, request, group in arrivals:
        key = group, request.steps, request.images, request.size
        if key not in known:
            known[key] = cloud_only(request, idle_view(world, group, request))
        yield request.quality_floor, known[key]


# ---------------------------------------------------------------------------- answers, played


def found(by: str, told: Tally, world: World, arrivals: Sequence[Arrival]) -> Found:
    """What a policy's run says to an oracle. What was refused has no plan, nor has what earned
    nothing: the oracle knows that it will."""
    gained = tuple(earned(told, world, arrivals).tolist())
    texts = [told.plan(number) for number in range(len(arrivals))]
    answers = tuple(
        Plan.parse(text, reason="") if text and gain > 0.0 else None
        for text, gain in zip(texts, gained, strict=True)
    )
    return Found(by, answers, gained)


def answered(
    world: World, arrivals: Sequence[Arrival], answers: Answers, known: Known | None = None
) -> tuple[Tally, list[float]]:
    """The run in which every request takes its plan, whatever becomes of it, and what each earns;
    those without one are refused (`blind`). Rewards are over what was asked for, in whatever steps
    a plan is."""
    asked = (_fixed(world, *pair) for pair in zip(arrivals, answers, strict=True))
    told = blind(world, asked, {} if known is None else known, idle_view)
    return told, earned(told, world, arrivals).tolist()


def _fixed(world: World, arrival: Arrival, plan: Answer) -> Arrival:
    """By the policy `fixed`, which refuses what has no plan."""
    at_s, request, group = arrival
    if plan is None:
        return at_s, replace(request, policy="fixed", plan=None, late="serve"), group
    at_s, asked, _ = _as_asked(world, arrival, plan)
    return at_s, replace(asked, late="serve"), group


def _as_asked(world: World, arrival: Arrival, plan: Plan) -> Arrival:
    at_s, request, group = arrival
    there = world.in_group(plan, group)
    return at_s, replace(request, policy="fixed", plan=there, steps=plan.steps), group


def nothing(arrivals: Sequence[Arrival]) -> Found:
    """All refused."""
    return Found("oracle", (None,) * len(arrivals), (0.0,) * len(arrivals))


# ---------------------------------------------------------------------------- the two


def with_hindsight(
    world: World, arrivals: Sequence[Arrival], seed: int, advance: Callable[[], object] = int
) -> tuple[Plan, Tally]:
    """The best fixed plan of those that reach the lowest floor, and its run. The best are also run
    by the policy `fixed`, which refuses what cannot be in time where that is asked for. advance:
    called after every run."""
    _, request, group = min(arrivals, key=lambda arrival: arrival[1].quality_floor)
    view = idle_view(world, group, request)
    kinds = {world.stages[name].stage: name for name in group.stages}
    plans = [
        plan
        for steps in sorted({request.steps, *request.free_steps})
        for plan in hindsight.every(list(kinds), steps)
        if _reaches(plan, kinds, request, view, world.quality)
    ]
    known: Known = {}
    runs: dict[Plan, tuple[float, Tally]] = {}

    def worth(plan: Plan) -> float:
        told, total = answered(world, arrivals, (plan,) * len(arrivals), known)
        advance()
        runs[plan] = sum(total), told
        return runs[plan][0]

    best, _ = hindsight.hindsight(plans, worth)
    for plan in sorted(runs, key=lambda plan: runs[plan][0], reverse=True)[:ROUTED]:
        told = run(world, [_as_asked(world, arrival, plan) for arrival in arrivals], seed)
        advance()
        runs[plan] = max(runs[plan], (float(earned(told, world, arrivals).sum()), told), key=_worth)
    best = max(runs, key=lambda plan: runs[plan][0])
    return best, runs[best][1]


def _worth(run: tuple[float, Tally]) -> float:
    return run[0]


def _reaches(
    plan: Plan, kinds: Mapping[str, str], request: ImageRequest, view: View, quality: QualityTable
) -> bool:
    spans = tuple((kinds[span.stage], span.steps) for span in plan.spans)
    known = cost.in_models(Plan.of(spans), view)
    return quality.bound(known, request.size) >= request.quality_floor


def with_foresight(
    world: World,
    arrivals: Sequence[Arrival],
    policies: Sequence[Found],
    plays: int = PLAYS,
    advance: Callable[[], object] = int,
) -> Found:
    """What an oracle finds that has been told what the policies did. advance: called after every
    run."""

    known: Known = {}

    def play(answers: Answers) -> list[float]:
        _, total = answered(world, arrivals, answers, known)
        advance()
        return total

    may = partial(candidates, world)
    kept: dict[object, list[Answer]] = {}
    others = []
    for _, request, group in arrivals:
        key = (
            *(group, request.deadline_s, request.quality_floor),
            *(request.steps, request.free_steps, request.images),
        )
        if key not in kept:
            kept[key] = may(request, group)
        others.append(kept[key])
    many = len(arrivals) > 2 * windows.WINDOW
    return oracle.oracle(policies, others, play, plays, windows.searched if many else None)


def candidates(world: World, request: ImageRequest, group: Group) -> list[Answer]:
    """None, and over each set of stages some plans above the floor, from the cheapest to the one
    that is done first with nothing else to do."""
    by_set: dict[frozenset[str], list[tuple[float, float, Plan]]] = defaultdict(list)
    for steps in sorted({request.steps, *request.free_steps}):
        for paid, took_s, plan in _above_floor(world, request.in_steps(steps), group):
            kinds = frozenset(span.stage for span in plan.spans)
            by_set[kinds].append((paid, took_s, plan))
    found: list[Answer] = [None]
    for some in by_set.values():
        found += hindsight.spread(_front(some), OF_EACH)
    return found


def _above_floor(
    world: World, request: ImageRequest, group: Group
) -> Iterator[tuple[float, float, Plan]]:
    """What is paid for each, and what it takes with nothing else to do."""
    view = idle_view(world, group, request)
    for spans in range(1, min(len(group.stages), request.steps, 3) + 1):
        counts = cost.cuts(request.steps, spans)
        for order in permutations(group.stages, spans):
            guide = [cost.guided(name, request, view) for name in order]
            bounds = world.quality.bound_all(cost.models(order, view), counts, request.size)
            paid = cost.of(order, counts, guide, request.images, view)
            took_s = alone_s(order, counts, guide, view)
            kinds = [world.stages[name].stage for name in order]
            for k in np.flatnonzero(bounds >= request.quality_floor):
                parts = zip(kinds, (int(each[k]) for each in counts), strict=True)
                yield float(paid[k]), float(took_s[k]), Plan.of(tuple(parts))


def _front(some: Sequence[tuple[float, float, Plan]]) -> list[Plan]:
    """Those than which none is both cheaper and done earlier, the cheapest first."""
    least_s, front = float("inf"), []
    for _, took_s, plan in sorted(some, key=lambda each: each[:2]):
        if took_s < least_s:
            least_s = took_s
            front.append(plan)
    return front


def bound(world: World, arrivals: Sequence[Arrival]) -> float:
    """What nobody earns more than. Every group is taken to have all its stages for itself."""
    total = 0.0
    for group in dict.fromkeys(group for _, _, group in arrivals):
        asked = [(at_s, request) for at_s, request, other in arrivals if other is group]
        view = idle_view(world, group, asked[0][1])
        total += ceiling(asked, view, dict.fromkeys(view.stages, 1), world.quality)
    return total
