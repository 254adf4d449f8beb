"""One image in one process: every span of a plan, one after another, without Ray or a server."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from diffusion_edge.engine.run import begin, decode, finish, step, warnings_of
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.families.load import load_family
from diffusion_edge.packet import new_packet, take, write
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest, Picture


@dataclass(frozen=True)
class SpanTime:
    """Seconds of one span with encoding and, at the end, decoding; bytes of the hop after it."""

    stage: str
    start: int
    stop: int
    seconds: float
    hop_bytes: int


@dataclass(frozen=True)
class Generated:
    picture: Picture
    spans: tuple[SpanTime, ...]
    warnings: tuple[str, ...]


def generate(
    card: FamilyCard, request: ImageRequest, plan: Plan, on_step: Callable[[], None]
) -> Generated:
    """Carries out `plan`, crossing each hop as packet bytes. `on_step` is called after a step."""
    families = {span.stage: load_family(card, span.stage) for span in plan.spans}
    packet = new_packet(request, plan, 0, card.latent_space())
    times: list[SpanTime] = []
    warnings: dict[str, None] = {}
    while True:
        span = packet.plan.spans[0]
        family = families[span.stage]
        started = time.perf_counter()
        trajectory = begin(family, packet)
        warnings |= dict.fromkeys(warnings_of(family, packet))
        for _ in range(span.steps):
            (trajectory,) = step(family, [trajectory])
            on_step()
        last = len(packet.plan.spans) == 1
        crossing = b"" if last else write(finish(packet, trajectory))
        picture = decode(family, trajectory) if last else None
        seconds = time.perf_counter() - started
        times.append(SpanTime(span.stage, span.start, span.stop, seconds, len(crossing)))
        if picture is not None:
            return Generated(picture, tuple(times), tuple(warnings))
        packet = take(crossing, family.offer)
