"""Simulations of a deployment that a Serve config states: what they have to know of its family, and
the runs that a scenario asks for. No Ray."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from diffusion_edge.api.carriage import carriage
from diffusion_edge.bench.routing import server
from diffusion_edge.bench.routing.agree import Pair, checked, measure
from diffusion_edge.bench.routing.command import code
from diffusion_edge.bench.routing.runs import Tell
from diffusion_edge.config import Settings, load_config, read_settings
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.families.card import charged_shape, load_card
from diffusion_edge.places import REPOSITORY, family_folder, trace_file
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.board import Carriage
from diffusion_edge.routing.codecs import codec_table
from diffusion_edge.routing.policies import RULES
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.routing.signals import Signals
from diffusion_edge.schedule import resolved_steps
from diffusion_edge.sim import foresight
from diffusion_edge.sim.build import Asks, Family, world
from diffusion_edge.sim.loop import Arrival, Simulation
from diffusion_edge.sim.replay import Replay, check
from diffusion_edge.sim.scenario import FORESEE, Scenario, load
from diffusion_edge.sim.tally import Figures, Tally, figures
from diffusion_edge.sim.world import World


@dataclass(frozen=True)
class Run:
    """told: what became of every request. events: that were handled, 0 in runs beside those that
    know the future. cpu_s: of this thread. earned: by a request in the mean (`routing.reward`).
    most: what nobody earns more than; None where nobody knows the future."""

    figures: Figures
    told: Tally
    events: int
    cpu_s: float
    earned: float
    most: float | None = None


def family_of(settings: Settings) -> Family:
    """Raises ConfigError."""
    folder = family_folder(settings.family)
    card, table = load_card(folder), codec_table(folder)
    charged, loss = charged_shape(card, settings), settings.defaults.codec_loss
    known: dict[tuple[object, ...], Carriage] = {}

    def carried(request: ImageRequest) -> Carriage:
        """Kept, since all prompts of a simulation are one."""
        asked = request.steps, request.size, request.codec
        if asked not in known:
            known[asked] = carriage(card, table, loss, request, charged)
        return known[asked]

    defaults = card.defaults
    steps = resolved_steps(defaults.solver, defaults.steps)
    quality = folder / "quality.json"
    asked = replace(card.request("a picture", seed=0), steps=steps)
    return Family(
        asked=asked,
        cells=carried(asked).cells,
        quality=QualityTable.read(quality)
        if quality.exists()
        else QualityTable.unknown(card.name, card.reference, steps),
        carriage=carried,
        guidance={n: s.guidance for n, s in card.stages.items() if s.guidance is not None},
    )


def config_of(scenario: Scenario) -> Settings:
    """An absolute path, or one below the working directory or the repository. Raises
    ConfigError."""
    return load_config(_path_of(scenario)).settings


def _path_of(scenario: Scenario) -> Path:
    here = Path(scenario.config)
    return here if here.is_file() else REPOSITORY / scenario.config


def runs(
    scenario: Scenario,
    settings: Settings,
    family: Family,
    came: Callable[[int], None],
    plays: int = foresight.PLAYS,
) -> Iterator[Run]:
    """One by seed and policy. came: told of requests as they come. plays: of an oracle. Raises
    InvalidRequest where a policy has nothing to look at."""
    replay = _replay(scenario, family)
    check([(name, RULES[name]) for name in scenario.policies if name in RULES], replay)
    for seed in scenario.seeds:
        simulated = replace(world(scenario, settings, family, seed), replay=replay)
        asks = Asks(scenario, settings, family, simulated, seed)
        if set(FORESEE) & set(scenario.policies):
            yield from _foreseeing(scenario.policies, simulated, asks, seed, came, plays)
            continue
        for policy in scenario.policies:
            began = time.thread_time()
            simulation = Simulation(simulated, seed)
            with _seldom_collected():
                tally = simulation.play(_told(asks.by(policy), came))
            cpu_s = time.thread_time() - began
            earned = float(foresight.earned(tally, simulated, asks.by(policy)).mean())
            yield Run(figures(tally, policy, seed), tally, simulation.events, cpu_s, earned)


COLLECT = 20_000
"""Objects between two looks for circles that nobody refers to, of which a request leaves some."""


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """A world of many sites is not looked through again and again."""
    usual = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(COLLECT, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def _replay(scenario: Scenario, family: Family) -> Replay | None:
    if scenario.signals is None:
        return None
    signals = Signals.read(trace_file(scenario.signals))
    if signals.family != family.asked.family:
        raise InvalidRequest(
            f"{scenario.signals} is of the family {signals.family!r}, not {family.asked.family!r}"
        )
    return Replay(signals, family.quality.reference)


def _foreseeing(
    policies: Sequence[str],
    simulated: World,
    asks: Asks,
    seed: int,
    came: Callable[[int], None],
    plays: int,
) -> Iterator[Run]:
    """Those that know the future come last, for the oracle is told what the others did."""
    arrivals, most = list(asks.by("elastic")), None
    runs: dict[str, Tally] = {}
    for policy in sorted(policies, key=lambda name: (name in FORESEE, name == "oracle")):
        began = time.thread_time()
        if policy == "hindsight":
            _, told = foresight.with_hindsight(simulated, arrivals, seed)
        elif policy == "oracle":
            told = _of_oracle(runs, simulated, arrivals, plays)
            most = foresight.bound(simulated, arrivals) / len(arrivals)
        else:
            told = foresight.run(simulated, list(asks.by(policy)), seed)
        runs[policy] = told
        came(len(arrivals))
        earned = float(foresight.earned(told, simulated, arrivals).mean())
        cpu_s = time.thread_time() - began
        yield Run(figures(told, policy, seed), told, 0, cpu_s, earned, most)


def _of_oracle(
    runs: Mapping[str, Tally], simulated: World, arrivals: Sequence[Arrival], plays: int
) -> Tally:
    """The run of its answers, or of the policy that it could not better."""
    known = [foresight.found(name, told, simulated, arrivals) for name, told in runs.items()]
    refused = foresight.nothing(arrivals)
    found = foresight.with_foresight(simulated, arrivals, [*known, refused], plays)
    if found.by in runs:
        return runs[found.by]
    return foresight.answered(simulated, arrivals, found.answers)[0]


def _told(arrivals: Iterator[Arrival], came: Callable[[int], None]) -> Iterator[Arrival]:
    for arrival in arrivals:
        came(1)
        yield arrival


# ---------------------------------------------------------------------------- beside a live server


def agreement(
    files: Sequence[Path], requests: int | None, own_models: bool, ledger: Path, tell: Tell
) -> list[Pair]:
    """Scenarios played live and simulated. own_models: whether every stage computes what its own
    model does, rather than the family's smallest. Raises ConfigError and InvalidRequest before the
    work for what cannot be asked."""
    scenarios = [checked(load(file, count=requests)) for file in files]
    (source,) = {_path_of(scenario) for scenario in scenarios}
    settings = load_config(source).settings
    family, root = family_of(settings), family_folder(settings.family)
    kept = {
        "scenarios": [scenario.model_dump(mode="json") for scenario in scenarios],
        "code": code(),
        "own_models": own_models,
    }
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with nullcontext(root) if own_models else server.light(load_card(root)) as folder:
        opens = partial(server.opened, server.LOCAL_SCALE, folder, source=source)
        configured = partial(_configured, source)
        work = measure(scenarios, family, configured, opens, ledger, kept, tell)
        return asyncio.run(work)


def _configured(source: Path, changes: Mapping[str, Any]) -> Settings:
    """As the server has them, but for the folder with the models' weights."""
    family = load_config(source).settings.family
    config = server.configured(server.LOCAL_SCALE, Path(family), 1, changes, source)
    return read_settings(config["applications"][0]["args"])
