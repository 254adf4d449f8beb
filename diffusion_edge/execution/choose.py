"""Which way a stage takes: the fastest lossless one, measured, unless its config names one.

    refuses -> prepare -> equal latents? -> seconds, in turns with eager -> the fastest

The VAE takes its own way, by the same rule. Once for a model on a machine: what was found is
remembered.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import inf
from math import log as ln
from pathlib import Path
from typing import TypeVar

import torch

from diffusion_edge.engine.lanes import use_threads
from diffusion_edge.engine.measure import probe
from diffusion_edge.engine.run import Trajectory, begin, step
from diffusion_edge.errors import ConfigError
from diffusion_edge.execution.check import drawn, final_error, image_error
from diffusion_edge.execution.eager import EAGER
from diffusion_edge.execution.remembered import Found, Memory, key_of
from diffusion_edge.execution.way import Images, Way, painting, running
from diffusion_edge.execution.ways import TRIED, named
from diffusion_edge.families.base import Loaded
from diffusion_edge.rounding import BOUND

log = logging.getLogger(__name__)

T = TypeVar("T")

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
        own = _checked(way, family, use)[0]
    except Exception as error:
        raise ConfigError(f"{said}: {_first_line(error)}") from error
    images = _images(way, family, use)
    return own if images is None else painting(own, images)


def _fastest(family: Loaded, use: Use, memory: Memory) -> Loaded:
    ways = [way for way in TRIED.get(family.device.type, ()) if _fits(way, family, use)]
    if not ways:
        return family
    models, told = [family.denoiser, family.vae], (*use.sizes, use.solver, use.threads)
    key = key_of(models, family.device, [way.name for way in ways], told)
    known = memory.read(key)
    if known is not None:
        return _again(known, family, use)
    ready, errors = {EAGER.name: family}, {}
    painters: dict[str, Images] = {EAGER.name: family.images}
    for way in ways:
        checked = _tried(way, family, "", partial(_checked, way, family, use))
        if checked is not None:
            ready[way.name], errors[way.name] = checked
        images = _images(way, family, use)
        if images is not None:
            painters[way.name] = images
    step_s, images_s = seconds(ready, use), image_seconds(family, painters, use)
    painter = fastest({name: {1: taken_s} for name, taken_s in images_s.items()})
    found = Found(fastest(step_s), errors, step_s, painter, images_s)
    memory.write(key, found)
    log.info("%s runs by %s: %s", family.stage, found.execution, found)
    own = ready[found.execution]
    return own if painter == EAGER.name else painting(own, painters[painter])


def _again(known: Found, family: Loaded, use: Use) -> Loaded:
    """By ways that were held against eager before; eagerly if they fail now."""
    own, way, painter = family, named(known.execution), named(known.images)
    if way is not EAGER:
        prepare = partial(running, family, way, use.sizes, use.threads)
        own = _tried(way, family, "", prepare) or own
    if painter.images is not None:
        prepare_images = partial(painter.images, family, use.sizes, use.threads)
        images = _tried(painter, family, "the VAE of ", prepare_images)
        own = own if images is None else painting(own, images)
    return own


def _tried(way: Way, family: Loaded, part: str, make: Callable[[], T]) -> T | None:
    """What is made; None where that fails, which is logged."""
    try:
        return make()
    except Exception as error:
        said = (part, family.stage, way.name, _first_line(error))
        log.warning("%s%s does not run by %s: %s", *said)
        return None


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


def _images(way: Way, family: Loaded, use: Use) -> Images | None:
    """The VAE by this way; None where it cannot, or makes other images."""
    if way.images is None:
        return None
    prepare = partial(way.images, family, use.sizes, use.threads)

    def checked() -> Images:
        images = prepare()
        error = image_error(family, images, use.sizes[0])
        if not error <= BOUND:
            raise ConfigError(f"its images differ from eager's by {error:.1e}")
        return images

    return _tried(way, family, "the VAE of ", checked)


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


@torch.inference_mode()
def image_seconds(family: Loaded, painters: Mapping[str, Images], use: Use) -> dict[str, float]:
    """Of one image by way, as `seconds`."""
    latent, taken = drawn(family, use.sizes[0]), dict.fromkeys(painters, inf)
    for images in painters.values():
        images(latent)
    for _ in range(REPEATS):
        for name, images in painters.items():
            began = time.perf_counter()
            images(latent)
            taken[name] = min(taken[name], time.perf_counter() - began)
    return taken


def _start(family: Loaded, use: Use) -> Trajectory:
    return begin(family, probe(family, use.sizes[0], use.solver))
