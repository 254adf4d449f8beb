"""What a decision takes on views of full size: three tiers of eight stages, 50 steps. No torch.

Seconds are CPU time of the thread, so that other work on the machine counts as little as can be.
Views are drawn: stages have the seconds that `local.yaml` states, up to a fifth off, hold some
images at random and have links of different rates.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from diffusion_edge.config import Settings, StageConfig
from diffusion_edge.plan import EXACT
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import finish
from diffusion_edge.routing.finish import Ask
from diffusion_edge.routing.policies import policy
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.view import Held, Link, StageStatus, View

REPLICAS, STEPS, CELLS = 8, 50, 64
SPREAD = 0.2
PACKET_BYTES = 264_000
FLOORS = (0.0, 0.85, 0.9, 0.95)
PATIENCE = (0.5, 1.0, 2.0)
"""Deadlines: times what the slowest tier takes alone."""


@dataclass(frozen=True)
class Decisions:
    """decide_s: each of a decision whose tables are known; table_s: each of the table of a stage
    that is full."""

    decide_s: tuple[float, ...]
    table_s: tuple[float, ...]


def measured(
    settings: Settings, quality: QualityTable, views: int, seed: int, name: str = "elastic"
) -> Decisions:
    rng = random.Random(f"{seed} decision")
    decide_s, table_s = [], []
    for number in range(views):
        view = drawn_view(settings, rng)
        request = drawn_request(quality.family, view, rng, number)
        for config in settings.stages.values():
            full = _stage("full", config, rng, config.capacity)
            table_s.append(_seconds(partial(_table, request, view, full)))
        choose = partial(policy(name), view=view, quality=quality)
        choose(request)  # makes what is kept: tables, and shapes above the floor
        again = replace(request, request_id="another", prompt="another")
        decide_s.append(_seconds(partial(choose, again)))
    return Decisions(tuple(decide_s), tuple(table_s))


def _seconds(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def _table(request: ImageRequest, view: View, status: StageStatus) -> None:
    """What is made for the first request after a stage's report."""
    ask = Ask(
        cells=view.cells,
        rows=status.rows(guided=True),
        steps=request.steps,
        due_s=request.deadline_s,
    )
    finish.table(status, ask)


# ---------------------------------------------------------------------------- what is drawn


def drawn_view(settings: Settings, rng: random.Random) -> View:
    stages = {
        f"{tier}-{number}": _stage(f"{tier}-{number}", config, rng, rng.randint(0, _some(config)))
        for tier, config in settings.stages.items()
        for number in range(REPLICAS)
    }
    stated = settings.link_map()
    return View(
        stages=stages,
        links={
            (a, b): _link(stated, stages[a].model, stages[b].model, rng)
            for a in stages
            for b in stages
            if a != b
        },
        price_per_s=settings.prices_per_s,
        packet_bytes=(PACKET_BYTES,) * (STEPS + 1),
        codecs=(EXACT,) * (STEPS + 1),
        cells=CELLS,
    )


def _some(config: StageConfig) -> int:
    """Images that a stage holds at most, where there is something to choose."""
    return 8 if config.emulate is not None and len(config.emulate.curve) > 1 else 2


def _stage(name: str, config: StageConfig, rng: random.Random, count: int) -> StageStatus:
    idle = stated(name, config, rng.uniform(1 - SPREAD, 1 + SPREAD))
    step_s = idle.step_s[CELLS][1]
    held = tuple(_held(k, step_s, rng) for k in range(count))
    queue_s = sum(each.steps for each in held) * step_s
    return replace(idle, queue_s=queue_s, queued=len(held), held=held)


def stated(name: str, config: StageConfig, off: float = 1.0) -> StageStatus:
    """A stage with nothing to do, whose seconds are stated ones times `off`."""
    assert config.emulate is not None
    curve = {rows: seconds * off for rows, seconds in config.emulate.curve.items()}
    return StageStatus(
        stage=name,
        tier=config.tier,
        model=config.model,
        queue_s=0.0,
        queued=0,
        capacity=config.capacity,
        step_s={CELLS: curve},
        encode_s=config.emulate.encode_s * off,
        decode_s={CELLS: config.emulate.decode_s * off},
        resident_bytes=0,
        emulated=True,
        batches=len(curve) > 1,
    )


def _held(number: int, step_s: float, rng: random.Random) -> Held:
    steps = rng.randint(1, STEPS)
    return Held(
        request=str(number),
        image=0,
        steps=steps,
        rows=1,
        cells=CELLS,
        due_s=rng.uniform(0.0, 3.0) * steps * step_s,
        encodes=rng.random() < 0.2,
        decodes=rng.random() < 0.5,
        arrives_s=0.0 if rng.random() < 0.7 else rng.uniform(0.0, 3.0),
    )


def _link(
    stated: Mapping[tuple[str, str], Link], source: str, target: str, rng: random.Random
) -> Link:
    """Up to three times as fast or as slow as stated; stages of one tier are as near as those of
    the edge and the cloud."""
    between = (source, target) if source != target else ("edge", "cloud")
    link = stated[between]
    return Link(link.bytes_per_s * 3 ** rng.uniform(-1, 1), link.delay_s)


def drawn_request(family: str, view: View, rng: random.Random, number: int) -> ImageRequest:
    slowest_s = max(s.seconds_per_step(True, CELLS) for s in view.stages.values()) * STEPS
    deadline_s = PATIENCE[number % len(PATIENCE)] * slowest_s
    return asked_for(family, STEPS, deadline_s, FLOORS[rng.randrange(len(FLOORS))], number)


def asked_for(
    family: str, steps: int, deadline_s: float, quality_floor: float, number: int
) -> ImageRequest:
    return ImageRequest(
        prompt="a red circle on a white background",
        family=family,
        steps=steps,
        seed=1,
        solver="ddim",
        guidance=3.5,
        width=64,
        height=64,
        deadline_s=deadline_s,
        quality_floor=quality_floor,
        request_id=str(number),
    )
