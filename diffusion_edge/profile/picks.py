"""Which plans a router would take of a family's: its own policy, asked about made-up views.

Nothing of a deployment is known here. Seconds of a step go by the size of a stage's denoiser and
by its tier, as published for one and the same model (`serve_configs/local.yaml` has the sources);
links cost nothing; prices are those of `local.yaml`. Deadlines lie between the fastest stage alone
and the slowest. Once all stages are idle, and once each is busy for as long as a picture takes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from diffusion_edge.curves import cells_of
from diffusion_edge.errors import NoPlan
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.plan import EXACT, Plan, Tier
from diffusion_edge.routing.policies import policy
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.view import Held, Link, StageStatus, View

POLICY = "elastic"
FLOORS = (0.85, 0.9, 0.95, 0.98)
DEADLINES = 6
SLOWER: Mapping[Tier, float] = {"cloud": 1.0, "edge": 1.9, "device": 20.0}
"""Seconds of a step of the same model, against the cloud's."""
PRICES: Mapping[Tier, float] = {"device": 0.0, "edge": 1.0, "cloud": 4.0}


@dataclass(frozen=True)
class Pick:
    """What the policy takes for this floor, with what the table says of it."""

    floor: float
    plan: Plan
    quality: float
    bound: float


def picks(card: FamilyCard, table: QualityTable, counts: Sequence[int]) -> list[Pick]:
    """All different ones at the card's default size, in these numbers of steps, by floor. A floor
    that nothing reaches has none."""
    found: dict[tuple[float, str], Pick] = {}
    for steps in counts:
        for view, deadline_s in situations(card, steps):
            for floor in FLOORS:
                asked = replace(
                    card.request("", seed=0),
                    steps=steps,
                    quality_floor=floor,
                    deadline_s=deadline_s,
                    policy=POLICY,
                )
                try:
                    choice = policy(POLICY)(asked, view, table)
                except NoPlan:
                    continue
                pick = Pick(floor, choice.plan, choice.quality, choice.quality_bound)
                found.setdefault((floor, str(choice.plan)), pick)
    return [found[key] for key in sorted(found)]


def situations(card: FamilyCard, steps: int) -> Iterator[tuple[View, float]]:
    """Views, each with deadlines in seconds."""
    idle = idle_view(card, steps)
    alone_s = [steps * status.seconds_per_step(True, idle.cells) for status in idle.stages.values()]
    for view in (idle, *(_busy(idle, name, steps) for name in idle.stages)):
        for deadline_s in np.geomspace(0.9 * min(alone_s), 1.1 * max(alone_s), DEADLINES):
            yield view, float(deadline_s)


def idle_view(card: FamilyCard, steps: int) -> View:
    cells = cells_of(card.latent_shape(card.defaults.size, card.defaults.size))
    weights = {name: _weight(card, name) for name in card.stages}
    largest = max(weights.values())
    step_s = {
        name: SLOWER[stage.tier] * weights[name] / largest for name, stage in card.stages.items()
    }
    return View(
        stages={
            name: StageStatus(
                stage=name,
                tier=stage.tier,
                model=name,
                queue_s=0.0,
                queued=0,
                capacity=32,
                step_s={cells: {1: step_s[name]}},
                encode_s=0.0,
                decode_s={cells: 0.0},
                resident_bytes=0,
                emulated=True,
            )
            for name, stage in card.stages.items()
        },
        links={pair: Link(1e12, 0.0) for pair in permutations(card.stages, 2)},
        price_per_s=PRICES,
        packet_bytes=(1,) * (steps + 1),
        codecs=(EXACT,) * (steps + 1),
        cells=cells,
    )


def _weight(card: FamilyCard, name: str) -> float:
    """The size of a stage's denoiser, in a unit that all stages of the family share: millions of
    parameters if the card says so of all, or else its place among them."""
    millions = [stage.parameters_millions for stage in card.stages.values()]
    at = list(card.stages).index(name)
    return float(4**at) if None in millions else float(millions[at] or 1.0)


def _busy(idle: View, name: str, steps: int) -> View:
    """The same, but that one stage has a picture to make first."""
    status = idle.stages[name]
    held = (Held("before", 0, steps, 1, idle.cells, 0.0, encodes=False, decodes=False),)
    queue_s = steps * status.seconds_per_step(True, idle.cells)
    busy = replace(status, held=held, queued=1, queue_s=queue_s)
    return replace(idle, stages={**idle.stages, name: busy})
