"""Whether simulations agree with a live server: the same arrivals, asked of both. No torch.

Both have one config: what the live stages and links act out is what the simulated ones take.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from diffusion_edge.bench.routing.live import Wanted
from diffusion_edge.bench.routing.records import Arm, Ran, overrun_share
from diffusion_edge.bench.routing.runs import Opens, Runs, Tell, serving
from diffusion_edge.config import Settings
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.markdown import marks, table
from diffusion_edge.places import trace_file
from diffusion_edge.request import ImageRequest
from diffusion_edge.sim.build import Asks, Family, world
from diffusion_edge.sim.loop import Simulation
from diffusion_edge.sim.scenario import LinkScenario, Scenario
from diffusion_edge.sim.tally import figures, kind, quantile
from diffusion_edge.traces import read_rates

COMMAND = "diffusion-edge bench agree"
MARKS = marks(COMMAND)
SECONDS_WITHIN, POINTS_WITHIN = 0.15, 0.05
"""How far mean and 95 % quantile of the seconds may be apart, relatively, and the shares of kinds
of plans."""


@dataclass(frozen=True)
class Seen:
    """What became of the requests of a scenario, live or simulated. mean_s, p95_s: from when a
    request came, of those with pictures; shares: of kinds of plans among these."""

    requests: int
    served: int
    in_time: int
    mean_s: float
    p95_s: float
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Pair:
    """overruns: share of the live stages' parts that took longer than stated."""

    title: str
    policy: str
    live: Seen
    simulated: Seen
    overruns: float

    @property
    def mean_off(self) -> float:
        return self.simulated.mean_s / self.live.mean_s - 1.0

    @property
    def p95_off(self) -> float:
        return self.simulated.p95_s / self.live.p95_s - 1.0

    @property
    def shares_off(self) -> float:
        """Of the kind of plan that is furthest apart."""
        there, here = self.live.shares, self.simulated.shares
        kinds = {*there, *here}
        return max((abs(there.get(k, 0.0) - here.get(k, 0.0)) for k in kinds), default=0.0)

    @property
    def agrees(self) -> bool:
        seconds = max(abs(self.mean_off), abs(self.p95_off))
        return seconds <= SECONDS_WITHIN and self.shares_off <= POINTS_WITHIN


# ---------------------------------------------------------------------------- what is asked


def checked(scenario: Scenario) -> Scenario:
    """A scenario that a live server can be asked. Raises InvalidRequest for one that it cannot."""
    asked = scenario.requests
    mixed = asked.steps, asked.size, asked.images, asked.deadline_s, asked.quality_floor, asked.late
    title = scenario.title or scenario.config
    if scenario.sites or scenario.faults:
        raise InvalidRequest(f"{title}: a live server has no other sites, and no faults on demand")
    if any(each is not None and len(each) > 1 for each in mixed):
        raise InvalidRequest(f"{title}: a live server is asked for one kind of request only")
    if not (asked.steps and asked.deadline_s and asked.quality_floor):
        raise InvalidRequest(f"{title}: needs requests.steps, .deadline_s and .quality_floor")
    for link in scenario.links:
        if link.kind not in ("constant", "trace") or link.factor != 1.0:
            raise InvalidRequest(
                f"{title}: a live link is constant or follows a trace as it is, not {link.kind!r}"
            )
    return scenario


def links_of(scenario: Scenario, settings: Settings) -> list[dict[str, Any]]:
    """Of the config that both are to have: the scenario's in place of the config's own."""
    own = {frozenset(link.between): _link(link) for link in scenario.links}
    kept = [link for link in settings.links if frozenset(link.between) not in own]
    return [*(link.model_dump(exclude_none=True) for link in kept), *own.values()]


def _link(link: LinkScenario) -> dict[str, Any]:
    told: dict[str, Any] = {"between": list(link.between), "delay_s": link.delay_s}
    told |= {"emulate": True, "bytes_per_s": link.stated or link.bytes_per_s}
    if link.file is not None:
        told |= {"trace": link.file}
        told["bytes_per_s"] = link.stated or read_rates(trace_file(link.file)).mean
    return told


# ---------------------------------------------------------------------------- both

Configured = Callable[[Mapping[str, Any]], Settings]
"""The settings that a server has which is opened with some of them changed."""


async def measure(
    scenarios: Sequence[Scenario],
    family: Family,
    configured: Configured,
    opens: Opens,
    ledger: Path,
    kept: Any,
    tell: Tell,
) -> list[Pair]:
    """kept: what the ledger's entries depend on."""
    found = []
    async with serving(opens, family.asked.steps, tell) as server:
        runs = Runs(server, ledger, kept, tell)
        for scenario in map(checked, scenarios):
            changes = {"links": links_of(scenario, configured({}))}
            settings = configured(changes)
            asks = asks_of(scenario, settings, family)
            for policy in scenario.policies:
                arrivals = list(asks.by(policy))
                due = [at_s for at_s, _, _ in arrivals]
                arm = Arm(f"{scenario.title} by {policy}", _options(arrivals[0][1]), changes)
                wanted = _wanted(arrivals[0][1])
                rate = len(due) / due[-1]
                ran = await runs.of("agree", arm, due, rate, wanted, seed=0)
                found.append(
                    Pair(
                        title=scenario.title,
                        policy=policy,
                        live=of_live(ran),
                        simulated=of_simulation(asks, policy),
                        overruns=overrun_share(ran),
                    )
                )
    return found


def asks_of(scenario: Scenario, settings: Settings, family: Family) -> Asks:
    """With the links of the settings alone."""
    seed, plain = scenario.seeds[0], scenario.model_copy(update={"links": []})
    return Asks(plain, settings, family, world(plain, settings, family, seed), seed)


def _options(asked: ImageRequest) -> dict[str, Any]:
    decides = {"policy": asked.policy} if asked.plan is None else {"plan": str(asked.plan)}
    return {**decides, "late": asked.late}


def _wanted(asked: ImageRequest) -> Wanted:
    return Wanted(asked.steps, asked.deadline_s, asked.quality_floor)


def of_live(ran: Ran) -> Seen:
    ended = [each for each in ran.answers if each.ok]
    plans = Counter(kind(each.plan) for each in ended)
    return Seen(
        requests=len(ran.answers),
        served=len(ended),
        in_time=sum(each.in_time for each in ended),
        mean_s=fmean(each.latency_s for each in ended),
        p95_s=quantile([each.latency_s for each in ended], 0.95) or 0.0,
        shares={name: count / len(ended) for name, count in plans.items()},
    )


def of_simulation(asks: Asks, policy: str) -> Seen:
    tally = Simulation(asks.world, asks.seed).play(asks.by(policy))
    told = figures(tally, policy, asks.seed)
    return Seen(
        requests=told.requests,
        served=told.served,
        in_time=told.in_time,
        mean_s=told.latency_s["mean"] or 0.0,
        p95_s=told.latency_s["p95"] or 0.0,
        shares=told.kinds,
    )


# ---------------------------------------------------------------------------- the page


def page_lines(found: Sequence[Pair], command: str) -> Iterator[str]:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    yield f"Measured on {today} by `{command}`."
    yield ""
    agree = sum(pair.agrees for pair in found)
    yield (
        f"{agree} of {len(found)} agree: mean and 95 % quantile of the seconds within "
        f"{SECONDS_WITHIN:.0%}, shares of kinds of plans within {100 * POINTS_WITHIN:.0f} points."
    )
    yield ""
    head = ("scenario", "policy", "", "requests", "served", "in time", "mean s", "p95 s", "plans")
    yield from table(head, (row for pair in found for row in _rows(pair)))


def _rows(pair: Pair) -> Iterator[list[str]]:
    for name, seen in (("live", pair.live), ("simulated", pair.simulated)):
        counts = [str(seen.requests), str(seen.served), str(seen.in_time)]
        times = [f"{seen.mean_s:.2f}", f"{seen.p95_s:.2f}"]
        yield [pair.title, pair.policy, name, *counts, *times, _most(seen.shares)]
    off = [f"{pair.mean_off:+.1%}", f"{pair.p95_off:+.1%}", f"{100 * pair.shares_off:.1f} points"]
    verdict = "agrees" if pair.agrees else "does not agree"
    yield ["", "", verdict, "", "", f"overruns {pair.overruns:.1%}", *off]


def _most(shares: Mapping[str, float]) -> str:
    most = sorted(shares.items(), key=lambda each: -each[1])[:3]
    return ", ".join(f"{name} {share:.0%}" for name, share in most)


def as_json(found: Sequence[Pair], command: str) -> dict[str, Any]:
    pairs = [asdict(pair) | {"agrees": pair.agrees} for pair in found]
    return {"command": command, "pairs": pairs}
