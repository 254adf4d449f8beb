"""From a cell of the grid to a scenario, and to the deployment in which it is played."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
from scipy.optimize import linprog

from diffusion_edge.bench.proof.grid import RATIOS, REQUESTS, TRACES, Cell
from diffusion_edge.config import Settings, read_settings
from diffusion_edge.places import REPOSITORY
from diffusion_edge.plan import Tier
from diffusion_edge.sim.build import Asks, Family, world
from diffusion_edge.sim.ceiling import ways_of
from diffusion_edge.sim.foresight import idle_view
from diffusion_edge.sim.scenario import Scenario
from diffusion_edge.strict import read_yaml

CONFIG = "serve_configs/local.yaml"
STEPS = 20

CLOUD_STEP_S: Mapping[str, Mapping[int, float]] = {
    "shapes": {1: 0.05, 8: 0.3},
    "sdxl": {1: 0.067, 2: 0.0957, 4: 0.153, 8: 0.268},
}
"""Seconds of a guided step of the cloud's model by rows: of `shapes` on one core of a CPU, of SDXL
on an H100, which makes twice as many a second in company (serve_configs/local.yaml says from where
both are)."""
SIZES: Mapping[Tier, float] = {"cloud": 1.0, "edge": 1 / 4, "device": 1 / 16}
"""Of the models: what a step of each takes on one machine, over that of the cloud's."""
ENCODES, DECODES = 0.5, 0.51 / 0.37
"""A text and a picture, in steps of the same stage, as in serve_configs/local.yaml."""
BYTES_PER_MBIT = 125_000.0
BURST = 8


def settings_of(cell: Cell) -> Settings:
    """local.yaml, with the cell's seconds and bytes of packets; links are the scenario's."""
    args = deepcopy(_args())
    for name, stage in args["stages"].items():
        stage["emulate"] = emulated(cell, name)
    if cell.family != "sdxl":
        del args["emulate"]
    return read_settings(args)


@cache
def _args() -> dict[str, Any]:
    data, _ = read_yaml(REPOSITORY / CONFIG)
    found: dict[str, Any] = data["applications"][0]["args"]
    return found


def emulated(cell: Cell, tier: Tier) -> dict[str, Any]:
    """What a stage takes: published or measured seconds, times what its machine takes of the
    cloud's, times the size of its model. Only the cloud's gains by company."""
    seconds = dict(zip(("cloud", "edge", "device"), RATIOS[cell.ratio], strict=True))
    factor = seconds[tier] / seconds["cloud"] * SIZES[tier]
    by_rows = {rows: factor * s for rows, s in CLOUD_STEP_S[cell.family].items()}
    step_s = by_rows[1]
    return {
        "step_s": by_rows if tier == "cloud" else step_s,
        "encode_s": ENCODES * step_s,
        "decode_s": DECODES * step_s,
    }


def deadline_s(cell: Cell) -> float:
    """In times of what the cloud takes alone for one picture."""
    return cell.patience * CLOUD_STEP_S[cell.family][1] * (ENCODES + STEPS + DECODES)


def scenario_of(
    cell: Cell, rate: float, policies: Sequence[str], seeds: Sequence[int], count: int = REQUESTS
) -> Scenario:
    """rate: requests a second."""
    device_links = (("edge", cell.near, cell.near_rtt_s), ("cloud", cell.far, cell.far_rtt_s))
    return Scenario.model_validate(
        {
            "config": CONFIG,
            "title": f"cell {cell.number}",
            "policies": list(policies),
            "seeds": list(seeds),
            "arrivals": _arrivals(cell.arrivals, rate),
            "requests": {
                "count": count,
                "steps": STEPS,
                "free_steps": True,
                "deadline_s": deadline_s(cell),
                "quality_floor": cell.floor,
                "late": cell.late,
            },
            "links": [
                *(_link(("device", to), kind, rtt_s) for to, kind, rtt_s in device_links),
                _link(("edge", "cloud"), cell.wire, cell.wire_rtt_s),
            ],
            "anywhere": True,
        }
    )


def _arrivals(kind: str, rate: float) -> dict[str, Any]:
    if kind == "poisson":
        return {"kind": kind, "rate": rate}
    if kind == "bursty":
        return {"kind": kind, "rate": rate, "burst": BURST}
    return {"kind": "trace", "rate": rate, "file": f"loadtest/traces/arrivals/{kind}.csv"}


def _link(between: tuple[str, str], kind: str | float, rtt_s: float) -> dict[str, Any]:
    """A recording, or a constant rate in Mbit/s; the delay is half the round trip."""
    link: dict[str, Any] = {"between": between, "delay_s": rtt_s / 2}
    if kind in TRACES:
        return link | {"kind": "trace", "file": f"loadtest/traces/links/{kind}.csv"}
    return link | {"kind": "constant", "bytes_per_s": float(kind) * BYTES_PER_MBIT}


def capacity(cell: Cell, settings: Settings, family: Family) -> float:
    """Requests a second that the stages can make at most, if links took no time: all plans above
    the floor that are in time with nothing else to do, in such shares that no stage is busy for
    more than all of its time, in full forward passes. Linear programming; 0 where no plan is."""
    scenario = scenario_of(cell, 1.0, ["elastic"], [0])
    made = world(scenario, settings, family, 0)
    _, request, group = next(Asks(scenario, settings, family, made, 0).by("elastic"))
    busy = ways_of(request, idle_view(made, group, request), made.quality).busy
    if not len(busy):
        return 0.0
    found = linprog(-np.ones(len(busy)), A_ub=busy.T, b_ub=np.ones(busy.shape[1]))
    return float(-found.fun)
