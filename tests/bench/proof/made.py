"""Cells and results made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffusion_edge.bench.proof.figures import Found
from diffusion_edge.bench.proof.grid import Cell
from diffusion_edge.bench.proof.play import Played, Result

CELL = Cell(
    number=0,
    family="sdxl",
    ratio="1:2:4",
    near="lte_bus_nyc",
    far=50.0,
    wire=500.0,
    near_rtt_s=0.04,
    far_rtt_s=0.1,
    wire_rtt_s=0.005,
    load=0.5,
    arrivals="poisson",
    patience=2.0,
    floor=0.98,
    late="serve",
)
RESULT = Result(
    policy="elastic",
    earned=0.8,
    in_time=0.9,
    served=1.0,
    latency_s=2.0,
    p95_s=3.0,
    cost=1.0,
    cloud_s=1.0,
    quality=0.99,
    bound=0.985,
    cpu_s=1.0,
)


def result(policy: str, **changes: Any) -> Result:
    return replace(RESULT, policy=policy, **changes)


def found(
    number: int, *by_seed: tuple[Result, ...], most: float | None = 0.9, **cell: Any
) -> Found:
    """by_seed: what every policy came to, with one seed after another."""
    played = (Played(number, seed, 1.0, most, results) for seed, results in enumerate(by_seed))
    return Found(replace(CELL, number=number, **cell), tuple(played))
