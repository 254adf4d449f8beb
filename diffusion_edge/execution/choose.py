"""Which way a stage takes: the fastest lossless one, measured, unless its config names one.

    refuses -> prepare -> equal? -> seconds, in turns with eager -> the fastest

Denoiser, VAE and text encoders have each a way of their own, by the same rule. Once for a model on
a machine: what was found is remembered.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import inf
from math import log as ln
from pathlib import Path
from typing import Any, TypeVar

import torch

from diffusion_edge.engine.lanes import use_threads
from diffusion_edge.errors import ConfigError
from diffusion_edge.execution.eager import EAGER
from diffusion_edge.execution.parts import LOOKS, Use
from diffusion_edge.execution.remembered import Found, Memory, key_of
from diffusion_edge.execution.way import PARTS, Part, Way, with_parts
from diffusion_edge.execution.ways import TRIED, named
from diffusion_edge.families.base import Loaded

log = logging.getLogger(__name__)

T = TypeVar("T")

REPEATS = 3
GAIN = 1.05
"""Times as fast as eager that another way has to be."""


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


def fastest(taken_s: Mapping[str, Mapping[int, float]]) -> str:
    """The way with the least seconds, over all rows alike; eager unless another one gains GAIN."""

    def cost(name: str) -> float:
        return sum(map(ln, taken_s[name].values())) / len(taken_s[name])

    best = min(taken_s, key=cost)
    return best if cost(EAGER.name) - cost(best) > ln(GAIN) else EAGER.name


def _asked(way: Way, family: Loaded, use: Use, memory: Memory) -> Loaded:
    """What it does not have or cannot do beside the denoiser stays eager."""
    said = f"the model {family.stage!r} cannot run by {way.name}"
    reason = way.refuses(family, use.sizes, use.threads)
    if reason is not None:
        raise ConfigError(f"{said}: {reason}")
    try:
        predict, _ = _checked(way, "predict", family, use)
    except Exception as error:
        raise ConfigError(f"{said}: {_first_line(error)}") from error
    parts: dict[Part, Any] = {"predict": predict}
    for part in way.prepare.keys() - parts:
        checked = _tried(way, part, family, partial(_checked, way, part, family, use))
        if checked is not None:
            parts[part], _ = checked
    return with_parts(family, way.name, parts)


def _fastest(family: Loaded, use: Use, memory: Memory) -> Loaded:
    ways = [way for way in TRIED.get(family.device.type, ()) if _fits(way, family, use)]
    if not ways:
        return family
    models = [*family.text_encoders, family.denoiser, family.vae]
    told = (*use.sizes, use.solver, use.threads)
    key = key_of(models, family.device, [way.name for way in ways], told)
    known = memory.read(key)
    if known is not None:
        return _again(known, family, use)
    found, parts = Found({}, {}, {}), dict[Part, Any]()
    for part in PARTS:
        ready: dict[str, Any] = {}
        for way in (way for way in ways if part in way.prepare):
            checked = _tried(way, part, family, partial(_checked, way, part, family, use))
            if checked is not None:
                ready[way.name], error = checked
                found.errors.setdefault(part, {})[way.name] = error
        if not ready:
            continue
        able = {EAGER.name: family}
        able |= {name: with_parts(family, name, {part: made}) for name, made in ready.items()}
        found.seconds[part] = seconds(part, able, use)
        found.ways[part] = fastest(found.seconds[part])
        if found.ways[part] != EAGER.name:
            parts[part] = ready[found.ways[part]]
    memory.write(key, found)
    log.info("%s runs by %s", family.stage, found)
    return with_parts(family, found.ways.get("predict", EAGER.name), parts)


def _again(known: Found, family: Loaded, use: Use) -> Loaded:
    """By ways that were held against eager before; eagerly where they fail now."""
    parts, execution = dict[Part, Any](), EAGER.name
    for part in PARTS:
        way = named(known.ways.get(part, EAGER.name))
        if part not in way.prepare:
            continue
        prepare = partial(way.prepare[part], family, use.sizes, use.threads)
        made = _tried(way, part, family, prepare)
        if made is not None:
            parts[part] = made
            execution = way.name if part == "predict" else execution
    return with_parts(family, execution, parts)


def _fits(way: Way, family: Loaded, use: Use) -> bool:
    reason = way.refuses(family, use.sizes, use.threads)
    if reason is not None:
        log.warning("%s does not run by %s: %s", family.stage, way.name, reason)
    return reason is None


def _tried(way: Way, part: Part, family: Loaded, make: Callable[[], T]) -> T | None:
    """What is made; None where that fails, which is logged."""
    try:
        return make()
    except Exception as error:
        said = (LOOKS[part].called, family.stage, way.name, _first_line(error))
        log.warning("%s of %s does not run by %s: %s", *said)
        return None


def _checked(way: Way, part: Part, family: Loaded, use: Use) -> tuple[Any, float]:
    """The part by this way, and the error with it. Raises ConfigError where that is not rounding,
    and what preparing does."""
    began = time.monotonic()
    made = way.prepare[part](family, use.sizes, use.threads)
    error, most = LOOKS[part].error(family, with_parts(family, way.name, {part: made}), use)
    told = (LOOKS[part].called, family.stage, way.name, time.monotonic() - began, error)
    log.info("%s of %s by %s: ready in %.1f s, error %.1e", *told)
    if not error <= most:
        raise ConfigError(f"its results differ from eager's by {error:.1e}, more than {most:.0e}")
    return made, error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


@torch.inference_mode()
def seconds(part: Part, able: Mapping[str, Loaded], use: Use) -> dict[str, dict[int, float]]:
    """By way and rows: the least of REPEATS, for what disturbs only adds; in turns."""
    taken: dict[str, dict[int, float]] = {name: {} for name in able}
    for rows in LOOKS[part].rows:
        work = {name: LOOKS[part].work(family, use, rows) for name, family in able.items()}
        for once in work.values():
            once()
        for _ in range(REPEATS):
            for name, once in work.items():
                began = time.perf_counter()
                once()
                took_s = time.perf_counter() - began
                taken[name][rows] = min(taken[name].get(rows, inf), took_s)
    return taken
