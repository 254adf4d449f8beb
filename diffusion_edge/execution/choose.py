"""Which way a stage takes: the fastest lossless one, measured, unless its config names one.

    refuses -> prepare -> equal latents? -> seconds, in turns with eager -> the fastest

Once for a model on a machine: what was found is remembered.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import log as ln
from pathlib import Path

from diffusion_edge.engine.lanes import use_threads
from diffusion_edge.engine.measure import probe
from diffusion_edge.engine.run import Trajectory, begin, step
from diffusion_edge.errors import ConfigError
from diffusion_edge.execution.check import final_error
from diffusion_edge.execution.eager import EAGER
from diffusion_edge.execution.remembered import Found, Memory, key_of
from diffusion_edge.execution.way import Way, running
from diffusion_edge.execution.ways import TRIED, named
from diffusion_edge.families.base import Loaded

log = logging.getLogger(__name__)

ROWS = (2, 8)
"""Of the passes that are timed: one guided picture, and a few."""
REPEATS = 3
GAIN = 1.05
"""Times as fast as eager that another way has to be."""


@dataclass(frozen=True)
class Use:
    """What a model is to run for. sizes: edges of squares in pixels, the usual one first. threads:
    that it may use."""

    sizes: Sequence[int]
    solver: str
    threads: int = 1


def chosen(family: Loaded, asked: str, use: Use, memory: Path | None = None) -> Loaded:
    """`family` as it is to run: by the way that is asked for, or for `auto` by the fastest.

    memory: a folder for what was found; None is the user's. Raises ConfigError where the way that
    is asked for cannot run the model, and InvalidRequest where there is none of that name.
    """
    if asked == EAGER.name:
        return family
    choose = _fastest if asked == "auto" else partial(_asked, named(asked))
    # In a thread of its own: where many threads were once set, they stay in the way of lanes.
    with ThreadPoolExecutor(1, "execution", use_threads, (use.threads,)) as thread:
        return thread.submit(choose, family, use, Memory(memory)).result()


def fastest(step_s: Mapping[str, Mapping[int, float]]) -> str:
    """The way with the least seconds, over all rows alike; eager unless another one gains GAIN."""

    def cost(name: str) -> float:
        return sum(map(ln, step_s[name].values())) / len(step_s[name])

    best = min(step_s, key=cost)
    return best if cost(EAGER.name) - cost(best) > ln(GAIN) else EAGER.name


def _asked(way: Way, family: Loaded, use: Use, memory: Memory) -> Loaded:
    said = f"the model {family.stage!r} cannot run by {way.name}"
    reason = way.refuses(family, use.sizes, use.threads)
    if reason is not None:
        raise ConfigError(f"{said}: {reason}")
    try:
        return _checked(way, family, use)[0]
    except Exception as error:
        raise ConfigError(f"{said}: {_first_line(error)}") from error


def _fastest(family: Loaded, use: Use, memory: Memory) -> Loaded:
    ways = [way for way in TRIED.get(family.device.type, ()) if _fits(way, family, use)]
    if not ways:
        return family
    key = key_of(family, [way.name for way in ways], (*use.sizes, use.solver, use.threads))
    known = memory.read(key)
    if known is not None:
        return _again(named(known.execution), family, use)
    ready, errors = {EAGER.name: family}, {}
    for way in ways:
        try:
            ready[way.name], errors[way.name] = _checked(way, family, use)
        except Exception as error:
            log.warning("%s does not run by %s: %s", family.stage, way.name, _first_line(error))
    step_s = seconds(ready, use)
    found = Found(fastest(step_s), errors, step_s)
    memory.write(key, found)
    log.info("%s runs by %s: %s", family.stage, found.execution, found)
    return ready[found.execution]


def _again(way: Way, family: Loaded, use: Use) -> Loaded:
    """By a way whose latents were held against eager's before; eagerly if it fails now."""
    if way is EAGER:
        return family
    try:
        return running(family, way, use.sizes, use.threads)
    except Exception as error:
        log.warning("%s does not run by %s: %s", family.stage, way.name, _first_line(error))
        return family


def _fits(way: Way, family: Loaded, use: Use) -> bool:
    reason = way.refuses(family, use.sizes, use.threads)
    if reason is not None:
        log.warning("%s does not run by %s: %s", family.stage, way.name, reason)
    return reason is None


def _checked(way: Way, family: Loaded, use: Use) -> tuple[Loaded, float]:
    """The family by this way, and the error of its final latent. Raises ConfigError where that is
    not rounding, and what its `prepare` does."""
    began = time.monotonic()
    own = running(family, way, use.sizes, use.threads)
    error, most = final_error(family, own, use.sizes[0], use.solver)
    took_s = time.monotonic() - began
    log.info("%s by %s: ready in %.1f s, error %.1e", family.stage, way.name, took_s, error)
    if not error <= most:
        raise ConfigError(f"its latents differ from eager's by {error:.1e}, more than {most:.0e}")
    return own, error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


# ---------------------------------------------------------------------------- seconds


def seconds(ready: Mapping[str, Loaded], use: Use) -> dict[str, dict[int, float]]:
    """Of a step by way and rows: the least of REPEATS, for what disturbs only adds; in turns."""
    start = _start(next(iter(ready.values())), use)
    taken: dict[str, dict[int, float]] = {name: {} for name in ready}
    for rows in ROWS:
        for family in ready.values():
            step(family, [start] * rows)
        for _ in range(REPEATS):
            for name, family in ready.items():
                began = time.perf_counter()
                step(family, [start] * rows)
                took_s = time.perf_counter() - began
                taken[name][rows] = min(taken[name].get(rows, took_s), took_s)
    return taken


def _start(family: Loaded, use: Use) -> Trajectory:
    return begin(family, probe(family, use.sizes[0], use.solver))
