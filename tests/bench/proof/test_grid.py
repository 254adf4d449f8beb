"""The grid as it was fixed: how often levels come, how they meet, and that it stays what it is."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, fields

from diffusion_edge.bench.proof.cells import emulated, scenario_of
from diffusion_edge.bench.proof.grid import CELLS, FACTORS, RECORDED, SEEDS, TRACES, Cell, cells
from diffusion_edge.places import trace_file
from diffusion_edge.plan import TIERS

KNOWN = "42500d4cf8a40c4a"


def test_every_level_comes_at_least_eight_times_links_on_either_side_of_the_device() -> None:
    found = cells()
    assert len(found) == CELLS == 96
    for name, levels in FACTORS.items():
        counts = Counter(getattr(cell, name) for cell in found)
        if name in ("near", "far"):
            continue
        assert set(counts) == set(levels)
        assert min(counts.values()) >= 8
    links = Counter(cell.near for cell in found) + Counter(cell.far for cell in found)
    assert set(links) == set(FACTORS["near"])
    assert min(links.values()) >= 12


def test_every_field_of_a_cell_is_a_factor() -> None:
    assert [field.name for field in fields(Cell)] == ["number", *FACTORS]


def test_loads_meet_everything_that_they_should_be_told_apart_from() -> None:
    found = cells()
    for name in ("family", "ratio", "arrivals", "patience", "floor", "late"):
        met = Counter((cell.load, getattr(cell, name)) for cell in found)
        levels = set(FACTORS[name])
        assert len(met) >= 0.9 * len(FACTORS["load"]) * len(levels)


def test_it_is_the_grid_that_was_committed() -> None:
    """Whoever changes it on purpose changes this, too, and has no results any more."""
    told = [repr(SEEDS)]
    for cell in cells():
        asked = scenario_of(cell, 1.0, ["elastic"], [0]).model_dump(exclude_unset=True)
        takes = [emulated(cell, tier) for tier in TIERS]
        told += [repr(asdict(cell)), repr(asked), repr(takes)]
    assert hashlib.sha256("".join(told).encode()).hexdigest()[:16] == KNOWN


def test_its_recordings_are_there() -> None:
    for name in TRACES:
        trace_file(f"loadtest/traces/links/{name}.csv")
    for name in RECORDED:
        trace_file(f"loadtest/traces/arrivals/{name}.csv")
