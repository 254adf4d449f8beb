"""Pictures of many requests by many plans, through the engine that also serves them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

import torch

from diffusion_edge.engine import run
from diffusion_edge.engine.run import Trajectory
from diffusion_edge.execution.choose import chosen
from diffusion_edge.execution.eager import EAGER
from diffusion_edge.execution.parts import Use
from diffusion_edge.families.base import Family
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.families.load import load_family
from diffusion_edge.packet import Packet, new_packet, read, write
from diffusion_edge.plan import Codec, Plan
from diffusion_edge.request import ImageRequest, Picture

Taken = tuple[int, str, Codec | None]
"""One step of a plan: steps in all, the stage, and the codec in which the latent just came in."""


def load_stages(
    card: FamilyCard, names: Iterable[str], execution: str = EAGER.name
) -> dict[str, Family]:
    """execution: how their models are run, as a stage's config says it; scores do not depend on it
    beyond rounding. Raises ConfigError where a model cannot be run so."""
    use = Use((card.defaults.size,), card.defaults.solver, torch.get_num_threads())
    return {name: chosen(load_family(card, name), execution, use) for name in names}


def pictures(
    stages: Mapping[str, Family], requests: Sequence[ImageRequest], plans: Sequence[Plan]
) -> Iterator[tuple[Plan, list[Picture]]]:
    """Every plan with its pictures, one for each request.

    Plans that begin alike share their first steps: they are walked like the paths of a tree, and
    only the trajectories of the path in hand are kept. So plans come by their number of steps, in
    the order in which `plans` has these numbers, and then in the order of `stages`: of as many
    steps, the first stage alone is first.

    The requests must be all guided or all unguided; the steps are the plan's.
    """
    rank = {stage: number for number, stage in enumerate(stages)}
    turn = {steps: number for number, steps in enumerate(dict.fromkeys(p.steps for p in plans))}

    def key(plan: Plan) -> list[tuple[int, int, str]]:
        return [(turn[n], rank[s], c or "") for n, s, c in route(plan)]

    path: list[list[Trajectory]] = []
    before: Sequence[Taken] = ()
    for plan in sorted(plans, key=key):
        taken = route(plan)
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(before, taken, strict=False))
        del path[sum(1 for _ in alike) :]
        for at in range(len(path), plan.steps):
            path.append(_step(stages, requests, taken[: at + 1], path[-1] if path else []))
        yield plan, run.decode_all(stages[taken[-1][1]], path[-1])
        before = taken


def route(plan: Plan) -> list[Taken]:
    """What the plan does at each step."""
    codecs: list[Codec | None] = [None, *plan.codecs]
    return [
        (plan.steps, span.stage, codec if at == span.start else None)
        for span, codec in zip(plan.spans, codecs, strict=True)
        for at in range(span.start, span.stop)
    ]


def _step(
    stages: Mapping[str, Family],
    requests: Sequence[ImageRequest],
    taken: Sequence[Taken],
    trajectories: list[Trajectory],
) -> list[Trajectory]:
    """The last step of `taken`; the trajectories have done the others."""
    steps, stage, codec = taken[-1]
    family, at = stages[stage], len(taken) - 1
    if not trajectories:
        trajectories = begun(family, requests, Plan.of(((stage, steps),)))
    elif codec is not None:
        both = Plan.of(((taken[-2][1], at), (stage, steps - at)))
        packets = _packets(family, requests, replace(both, codecs=(codec,)))
        crossed = [
            write(run.finish(packet, trajectory))
            for packet, trajectory in zip(packets, trajectories, strict=True)
        ]
        trajectories = [run.begin(family, read(data, family.latent_space)) for data in crossed]
    return run.step(family, trajectories)


def begun(family: Family, requests: Sequence[ImageRequest], plan: Plan) -> list[Trajectory]:
    """Before their first steps."""
    return [run.begin(family, packet) for packet in _packets(family, requests, plan)]


def _packets(family: Family, requests: Sequence[ImageRequest], plan: Plan) -> list[Packet]:
    return [
        new_packet(replace(request, steps=plan.steps), plan, 0, family.latent_space)
        for request in requests
    ]
