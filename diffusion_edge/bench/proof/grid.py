"""The 96 cells in which policies are compared: fixed before any result was looked at.

Every factor has its levels equally often (as nearly as 96 allows), each in an order of its own. Of
TRIES orders drawn for a factor, the one is taken with which its levels fall most evenly on those of
the factors before it (the least chi-square, summed over them): a balanced, nearly orthogonal
design. All is drawn from one stated seed.

Cells say what is varied; `cells.py` makes scenarios of them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

CELLS, REQUESTS = 96, 400
SEEDS = (7101, 7102, 7103, 7104, 7105)
"""Of the runs; nothing was chosen by what came of them."""
DRAWN_FROM, TRIES = 20260, 200

RATIOS: Mapping[str, tuple[float, float, float]] = {
    "1:2:4": (1.0, 2.0, 4.0),
    "1:4:16": (1.0, 4.0, 16.0),
    "1:8:32": (1.0, 8.0, 32.0),
    "SD 1.5: H100, RTX 4080, Galaxy S25": (0.0183, 0.034, 0.12),
    "SD 1.5: H100, RTX 4080, Snapdragon 7 Gen 4": (0.0183, 0.034, 0.37),
    "SDXL: H100, RTX 4080, iPhone 15 Pro Max": (0.067, 0.217, 1.18),
    "SDXL: H100, RTX 4080, M2 Max": (0.067, 0.217, 1.75),
    "SDXL: H100, Jetson AGX Orin, M2 Max": (0.067, 0.50, 1.75),
}
"""Seconds of a step of one and the same model on cloud, edge and device. Those of devices are
published (loadtest/traces/README.md): of other software and precision each, so ratios alone count.
"""

TRACES = (
    "lte_stationary_home_nyc",
    "lte_walking_nyc",
    "lte_bus_nyc",
    "nr_walking_mmwave",
    "nr_driving_verizon",
    "nr_stationary_tmobile",
    "wifi_campus_ac",
    "wifi_office_ac",
    "broadband_fcc_a",
    "hsdpa_train_oslo",
    "hsdpa_ferry_oslo",
    "hsdpa_metro_oslo",
)
MBITS = (5.0, 50.0, 500.0)
ROUND_TRIPS_S = (0.005, 0.04, 0.1)
RECORDED = (
    "azure_llm_code_2023",
    "mooncake_conversation_2024",
    "servegen_mm_image_24h",
    "servegen_mm_image_bursty_6h",
)
Level = Any
Codes = NDArray[np.int64]

FACTORS: Mapping[str, Sequence[Level]] = {
    "family": ("shapes", "sdxl"),
    "ratio": tuple(RATIOS),
    "near": (*TRACES, *MBITS),
    "far": (*TRACES, *MBITS),
    "wire": MBITS,
    "near_rtt_s": ROUND_TRIPS_S,
    "far_rtt_s": ROUND_TRIPS_S,
    "wire_rtt_s": ROUND_TRIPS_S,
    "load": (0.3, 0.5, 0.7, 0.9, 1.0, 1.2),
    "arrivals": ("poisson", "bursty", *RECORDED),
    "patience": (1.5, 2.5, 5.0),
    "floor": (0.98, 0.98, 0.9),
    "late": ("serve", "refuse"),
}


@dataclass(frozen=True)
class Cell:
    """family: whose seconds and bytes. ratio: a key of RATIOS. near, far: the link from the device
    to the edge and to the cloud, a recording or Mbit/s; wire: the one between these two, Mbit/s.
    load: of the capacity. patience: the deadline, in times of what the cloud takes alone. floor: of
    the quality; 0.98 twice as often as 0.9. late: what is done with what cannot be in time.
    """

    number: int
    family: str
    ratio: str
    near: str | float
    far: str | float
    wire: float
    near_rtt_s: float
    far_rtt_s: float
    wire_rtt_s: float
    load: float
    arrivals: str
    patience: float
    floor: float
    late: str


@cache
def cells() -> tuple[Cell, ...]:
    rng = random.Random(DRAWN_FROM)
    columns: dict[str, list[Level]] = {}
    known: list[Codes] = []
    for name, levels in FACTORS.items():
        drawn = [_shuffled(levels, rng) for _ in range(TRIES)]
        coded = [_coded(one) for one in drawn]
        k = min(range(TRIES), key=lambda k: sum(_unevenness(coded[k], other) for other in known))
        columns[name] = drawn[k]
        known.append(coded[k])
    rows = zip(*columns.values(), strict=True)
    return tuple(Cell(k, **dict(zip(columns, row, strict=True))) for k, row in enumerate(rows))


def _shuffled(levels: Sequence[Level], rng: random.Random) -> list[Level]:
    """Which levels are once more than others where 96 is no multiple of them is drawn, too."""
    some = list(levels)
    rng.shuffle(some)
    every = [some[k % len(some)] for k in range(CELLS)]
    rng.shuffle(every)
    return every


def _coded(levels: Sequence[Level]) -> Codes:
    numbers = {level: k for k, level in enumerate(dict.fromkeys(levels))}
    return np.array([numbers[level] for level in levels])


def _unevenness(one: Codes, other: Codes) -> float:
    """Chi-square of how often two factors' levels meet, against meeting as often as they can."""
    ones, others = np.bincount(one), np.bincount(other)
    met = np.bincount(one * len(others) + other, minlength=len(ones) * len(others))
    wanted = np.outer(ones, others).ravel() / len(one)
    return float(((met - wanted) ** 2 / wanted).sum())
