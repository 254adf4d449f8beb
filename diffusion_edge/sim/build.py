"""From a scenario and the config that it names to a world, and to the requests that come."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, permutations
from typing import TypeVar, cast

import numpy as np

from diffusion_edge import arrivals
from diffusion_edge.config import Settings
from diffusion_edge.emulation import LinkConfig
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.places import trace_file
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest, Late
from diffusion_edge.routing.board import Carriage
from diffusion_edge.routing.links.taken import Pair
from diffusion_edge.routing.policies import RULES
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.sim.faults import Fault
from diffusion_edge.sim.loop import Arrival
from diffusion_edge.sim.scenario import Arrivals, FaultScenario, LinkScenario, Scenario, Sites
from diffusion_edge.sim.ways import FOREVER_S, Rates, steady
from diffusion_edge.sim.world import Group, World, idle
from diffusion_edge.strict import nearest
from diffusion_edge.traces import Trace, read_rates
from diffusion_edge.view import Link

Value = TypeVar("Value")
MARKOV_S = 3600.0
"""A link that jumps between rates does as before after so long."""


@dataclass(frozen=True)
class Family:
    """What has to be known of the config's family. asked: a request with all defaults; cells: of
    its latent, which stated seconds are for. guidance: by model, of those with their own."""

    asked: ImageRequest
    cells: int
    quality: QualityTable
    carriage: Callable[[ImageRequest], Carriage]
    guidance: Mapping[str, float] = field(default_factory=dict)


# ---------------------------------------------------------------------------- the world


def world(scenario: Scenario, settings: Settings, family: Family, seed: int) -> World:
    """seed: of who sees whom, and of links that are drawn. Raises InvalidRequest."""
    what = {name: idle(name, stated, family.cells) for name, stated in settings.stages.items()}
    rng = random.Random(f"{seed} world")
    groups, names = _sites(scenario.sites, list(what), rng)
    kinds = _links(scenario, settings, rng)
    pairs = _pairs(groups, names, kinds)
    own = {name: family.guidance.get(stage.model) for name, stage in settings.stages.items()}
    measure, anywhere = scenario.measure_links, scenario.anywhere or scenario.sites is not None
    return World(
        stages={name: what[kind] for name, kind in names.items()},
        ways={pair: _shifted(kinds[kind][0], anywhere, rng) for pair, kind in pairs.items()},
        first={pair: kinds[kind][1] for pair, kind in pairs.items()},
        groups=groups,
        price_per_s=scenario.prices_per_s or settings.prices_per_s,
        carriage=family.carriage,
        quality=family.quality,
        guidance={name: g for name, kind in names.items() if (g := own[kind]) is not None},
        faults=[_fault(each, names) for each in scenario.faults],
        report_s=scenario.report_s,
        measure_links=settings.measure_links if measure is None else measure,
        hop_timeout_s=settings.hop_timeout_s,
        replan=scenario.replan or settings.replan,
    )


def _sites(
    sites: Sites | None, stages: Sequence[str], rng: random.Random
) -> tuple[list[Group], dict[str, str]]:
    """Who sees which stages; and every stage, with what it is. There is a group for every stage of
    the first kind that `sites` has, which is always the same one."""
    if sites is None:
        return [Group(tuple(stages))], {name: name for name in stages}
    for kind in (*sites.count, *sites.sees):
        _known(kind, stages, "sites")
    named = {kind: [f"{kind}-{k}" for k in range(sites.count[kind])] for kind in sites.count}
    first, *others = named
    groups = []
    for name in named[first]:
        beside = rng.sample(named[first], sites.sees.get(first, 1) - 1)
        seen = [name, *beside]
        for kind in others:
            seen += rng.sample(named[kind], sites.sees.get(kind, 1))
        groups.append(Group(tuple(dict.fromkeys(seen))))
    return groups, {name: kind for kind, names in named.items() for name in names}


def _known(name: str, stages: Sequence[str], where: str) -> None:
    if name not in stages:
        known = ", ".join(stages)
        raise InvalidRequest(
            f"{where}: the config has no stage {name!r}, but {known}{nearest(name, stages)}"
        )


def _pairs(
    groups: Sequence[Group], names: Mapping[str, str], kinds: Mapping[Pair, object]
) -> dict[Pair, Pair]:
    """Every pair that some group sees and that has a link, with what it is."""
    found: dict[Pair, Pair] = {}
    for group in groups:
        for pair in permutations(group.stages, 2):
            kind = names[pair[0]], names[pair[1]]
            if kind in kinds:
                found[pair] = kind
    return found


# ---------------------------------------------------------------------------- links


def _links(
    scenario: Scenario, settings: Settings, rng: random.Random
) -> dict[Pair, tuple[Rates, Link]]:
    """How links go, and what is told of them at first, by what they are between. Without any in
    the config nor here there are none."""
    found: dict[Pair, tuple[Rates, Link]] = {}
    for link in settings.links:
        found |= _both_ways(link.between, _of_config(link), link.delay_s, link.bytes_per_s)
    for own in scenario.links:
        for name in own.between:
            _known(name, list(settings.stages), "links")
        rates = _rates(own, rng)
        found |= _both_ways(own.between, rates, own.delay_s, own.stated or rates.mean)
    return found


def _both_ways(
    between: Pair, rates: Trace, delay_s: float, stated: float
) -> dict[Pair, tuple[Rates, Link]]:
    back = rates if len(rates.values) == 1 else rates.back()
    told = Link(stated, delay_s)
    return {between: (Rates(rates, delay_s), told), between[::-1]: (Rates(back, delay_s), told)}


def _of_config(link: LinkConfig) -> Trace:
    return read_rates(trace_file(link.trace)) if link.trace else steady(link.bytes_per_s)


def _rates(link: LinkScenario, rng: random.Random) -> Trace:
    if link.file is not None:
        return read_rates(trace_file(link.file)).scaled(link.factor)
    if link.steps is not None:
        at_s = sorted(link.steps)
        return Trace(np.array(at_s), np.array([link.steps[s] for s in at_s]), FOREVER_S)
    if link.rates is not None and link.stay_s is not None:
        return _markov(link.rates, link.stay_s, rng)
    assert link.bytes_per_s is not None
    if link.every_s is not None and link.for_s is not None:
        starts = np.array([0.0, link.every_s - link.for_s])
        return Trace(starts, np.array([link.bytes_per_s, 0.0]), link.every_s)
    return steady(link.bytes_per_s)


def _markov(rates: Sequence[float], stay_s: float, rng: random.Random) -> Trace:
    """Jumps to one of the others, all alike likely."""
    now = rng.randrange(len(rates))
    starts, values, at_s = [], [], 0.0
    while at_s < MARKOV_S:
        starts.append(at_s)
        values.append(rates[now])
        at_s += rng.expovariate(1.0 / stay_s)
        now = (now + rng.randrange(1, len(rates))) % len(rates)
    return Trace(np.array(starts), np.array(values), MARKOV_S)


def _shifted(rates: Rates, anywhere: bool, rng: random.Random) -> Rates:
    """Of many sites each link begins at a moment of its own."""
    if not anywhere or len(rates.trace.values) == 1:
        return rates
    return Rates(rates.trace, rates.delay_s, rng.random() * rates.trace.period_s)


def _fault(fault: FaultScenario, names: Mapping[str, str]) -> Fault:
    ends = fault.between or ()
    for name in (*ends, fault.stage or next(iter(names))):
        _known(name, list(names), "faults")
    pairs = tuple(permutations(ends, 2))
    return Fault(fault.kind, fault.at_s, fault.for_s, fault.stage or "", pairs, fault.times)


# ---------------------------------------------------------------------------- requests


@dataclass(frozen=True)
class Asks:
    """The requests of a scenario. All that is drawn is drawn alike for every policy."""

    scenario: Scenario
    settings: Settings
    family: Family
    world: World
    seed: int

    def by(self, policy: str) -> Iterator[Arrival]:
        """Who comes, when and where, with what is to decide on it."""
        rng, asked = random.Random(f"{self.seed} requests"), self.scenario.requests
        drawn = random.Random(f"{self.seed} arrivals")
        times = stream(self.scenario.arrivals, drawn, asked.count if self.scenario.anywhere else 0)
        plan = Plan.parse(policy) if ":" in policy else None
        plans = {g: plan and self.world.in_group(plan, g) for g in self.world.groups}
        for number, at_s in enumerate(islice(times, asked.count)):
            group = rng.choice(self.world.groups)
            yield at_s, self._request(number, policy, plans[group], rng), group

    def _request(
        self, number: int, policy: str, plan: Plan | None, rng: random.Random
    ) -> ImageRequest:
        asked, usual, defaults = self.scenario.requests, self.family.asked, self.settings.defaults
        size = _drawn(asked.size or {usual.width: 1.0}, rng)
        steps = _drawn(asked.steps or {usual.steps: 1.0}, rng)
        return replace(
            usual,
            steps=steps,
            free_steps=self._free_steps(policy, steps, size) if asked.free_steps else (),
            seed=number,
            width=size,
            height=size,
            images=_drawn(asked.images, rng),
            deadline_s=_drawn(asked.deadline_s or {defaults.deadline_s: 1.0}, rng),
            quality_floor=_drawn(asked.quality_floor or {defaults.quality_floor: 1.0}, rng),
            policy="fixed" if plan else policy,
            plan=plan,
            codec=asked.codec or defaults.codec,
            request_id=str(number),
            late=cast(Late, _drawn(asked.late, rng)),
        )

    def _free_steps(self, policy: str, steps: int, size: int) -> tuple[int, ...]:
        """All that a policy may choose from; none where it takes no choice."""
        if policy in RULES and not RULES[policy].frees_steps:
            return ()
        return tuple(sorted({steps, *self.family.quality.counts((size, size))}))


def _drawn(shares: Mapping[Value, float], rng: random.Random) -> Value:
    return rng.choices(list(shares), list(shares.values()))[0]


def stream(wanted: Arrivals, rng: random.Random, some: int = 0) -> Iterator[float]:
    """some: so many of a recording, from anywhere in it; 0 for all. Raises InvalidRequest for a
    file that cannot be read."""
    if wanted.file is not None:
        times = arrivals.read_arrivals(trace_file(wanted.file))
        times = arrivals.excerpt(times, some, rng) if some else times
        return arrivals.recorded(times, wanted.rate)
    rate = wanted.rate
    assert rate is not None
    if wanted.kind == "bursty":
        return arrivals.bursty(rate, wanted.burst, rng)
    if wanted.kind == "diurnal":
        return arrivals.diurnal(rate, wanted.swing, wanted.period_s, rng)
    if wanted.kind == "crowd":
        return arrivals.crowd(rate, wanted.times, wanted.at_s, wanted.for_s, rng)
    return arrivals.poisson(rate, rng)
