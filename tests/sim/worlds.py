"""Small worlds for the tests of this folder."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

from diffusion_edge.arrivals import poisson
from diffusion_edge.config import StageConfig
from diffusion_edge.emulation import Emulate
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.board import Carriage
from diffusion_edge.sim.loop import Arrival
from diffusion_edge.sim.ways import Rates, steady
from diffusion_edge.sim.world import Group, World, idle
from diffusion_edge.view import Link, StageStatus
from tests.routing.views import CELLS, MODEL, request, symmetric

SECONDS: Mapping[str, Emulate] = {
    "phone": Emulate(step_s=0.231, encode_s=0.116, decode_s=0.319),
    "tower": Emulate(step_s=0.085, encode_s=0.043, decode_s=0.117),
    "hall": Emulate(
        step_s={1: 0.183, 2: 0.261, 4: 0.418, 8: 0.732}, encode_s=0.092, decode_s=0.252
    ),
}
NBYTES = 264_000
LINK = Link(1.1e6, 0.03)


def stage(name: str, **changes: Any) -> StageStatus:
    emulate = SECONDS[name]
    config = StageConfig(tier=MODEL[name], model=MODEL[name], emulate=emulate)
    return replace(idle(name, config, CELLS), **changes)


def carriage(asked: ImageRequest) -> Carriage:
    every = asked.steps + 1
    return Carriage(("exact",) * every, (NBYTES,) * every, CELLS)


def a_world(*names: str, **changes: Any) -> World:
    stages = {name: stage(name) for name in names or SECONDS}
    pairs = list(permutations(stages, 2))
    known = {
        "stages": stages,
        "ways": {pair: Rates(steady(LINK.bytes_per_s), LINK.delay_s) for pair in pairs},
        "first": dict.fromkeys(pairs, LINK),
        "groups": [Group(tuple(stages))],
        "price_per_s": {"device": 0.0, "edge": 1.0, "cloud": 4.0},
        "carriage": carriage,
        "quality": symmetric(),
        "measure_links": False,
    }
    return World(**(known | changes))


def arrivals(
    world: World, count: int, rate: float, seed: int = 0, **asked: Any
) -> Iterator[Arrival]:
    times = poisson(rate, random.Random(seed))
    kept = {"steps": 20, "deadline_s": 8.0, "quality_floor": 0.0} | asked
    for number in range(count):
        group = world.groups[number % len(world.groups)]
        yield next(times), request(request_id=str(number), **kept), group


def at_once(world: World, requests: Sequence[ImageRequest]) -> Iterator[Arrival]:
    return ((1.0, each, world.groups[0]) for each in requests)
