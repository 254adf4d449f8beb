"""A plan: which steps run on which stages, and how the latent is carried between them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from diffusion_edge.errors import InvalidPlan

Tier = Literal["device", "edge", "cloud"]
TIERS: tuple[Tier, ...] = ("device", "edge", "cloud")
Codec = Literal["exact", "bf16", "int8"]
EXACT: Codec = "exact"
Guiding = Literal["doubled", "embedded", "off"]
"""How a denoiser is guided: by a second pass with the negative prompt, by the value of guidance as
an input of its own, or not at all."""
MAX_STEPS = 1000
MAX_GUIDANCE = 50.0


@dataclass(frozen=True)
class Span:
    """Steps [start, stop) on one stage. `guidance` None takes the request's."""

    stage: str
    start: int
    stop: int
    guidance: float | None = None

    @property
    def steps(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """Contiguous spans in order, and the codec of each hop between them."""

    spans: tuple[Span, ...]
    codecs: tuple[Codec, ...]
    reason: str = ""

    def __post_init__(self) -> None:
        if not self.spans:
            raise InvalidPlan("a plan needs at least one span", param="plan")
        for span in self.spans:
            if span.stop <= span.start:
                raise InvalidPlan(f"the span on {span.stage!r} has no steps", param="plan")
        for before, after in zip(self.spans, self.spans[1:], strict=False):
            if before.stop != after.start:
                raise InvalidPlan(
                    f"the spans on {before.stage!r} and {after.stage!r} do not meet", param="plan"
                )
        if len(self.codecs) != len(self.spans) - 1:
            raise InvalidPlan("a plan needs one codec for every hop", param="plan")

    @classmethod
    def of(cls, parts: tuple[tuple[str, int], ...], reason: str = "") -> Plan:
        """From (stage, steps) pairs, starting at step 0, with the exact codec."""
        spans, start = [], 0
        for stage, steps in parts:
            spans.append(Span(stage, start, start + steps))
            start += steps
        codecs = (EXACT,) * (len(spans) - 1)
        return cls(tuple(spans), codecs, reason)

    @classmethod
    def parse(cls, text: str, reason: str = "asked for") -> Plan:
        """From `cloud:8,edge:6,device:6`; `edge:6@1` is a span with guidance of its own."""
        spans: list[Span] = []
        for part in text.split(","):
            start = spans[-1].stop if spans else 0
            spans.append(_span(part.strip(), start, text))
        plan = cls(tuple(spans), (EXACT,) * (len(spans) - 1), reason)
        if plan.steps > MAX_STEPS:
            raise InvalidPlan(f"plan {text!r} has more than {MAX_STEPS} steps", param="plan")
        return plan

    def __str__(self) -> str:
        """As `parse` reads it."""
        return ",".join(
            f"{span.stage}:{span.steps}"
            + ("" if span.guidance is None else f"@{span.guidance}".removesuffix(".0"))
            for span in self.spans
        )

    @property
    def start(self) -> int:
        return self.spans[0].start

    @property
    def stop(self) -> int:
        return self.spans[-1].stop

    @property
    def steps(self) -> int:
        return self.stop - self.start

    def after_first(self) -> Plan | None:
        """The plan that is left when the first span is done."""
        if len(self.spans) == 1:
            return None
        return Plan(self.spans[1:], self.codecs[1:], self.reason)

    def from_step(self, start: int) -> Plan | None:
        """What is left of it before that step; None if no span begins there."""
        for k, span in enumerate(self.spans):
            if span.start == start:
                return Plan(self.spans[k:], self.codecs[k:], self.reason)
        return None

    def with_codecs(self, by_step: Sequence[Codec]) -> Plan:
        """The same spans; each hop takes the codec that `by_step` has for its hand-off step."""
        codecs = tuple(by_step[span.start] for span in self.spans[1:])
        return Plan(self.spans, codecs, self.reason)

    def with_guidance(self, by_stage: Mapping[str, float]) -> Plan:
        """The same spans; one without guidance of its own takes its stage's, if that has any."""
        spans = tuple(
            replace(span, guidance=by_stage.get(span.stage)) if span.guidance is None else span
            for span in self.spans
        )
        return Plan(spans, self.codecs, self.reason)


_PART = re.compile(r"([^:@]*[^:@\s])\s*:\s*([0-9]{1,4})\s*(?:@\s*([0-9.e-]{1,32}))?")


def _span(part: str, start: int, plan: str) -> Span:
    """The span from step `start` that a part of a plan says, such as `edge:6@7.5`."""
    found = _PART.fullmatch(part)
    if found is None:
        raise InvalidPlan(
            f"{part!r} in plan {plan!r} is not stage:steps or stage:steps@guidance; "
            "a plan reads like cloud:8,edge:6,device:6@1",
            param="plan",
        )
    stage, steps, given = found.groups()
    guidance = None if given is None else _guidance(given, part, plan)
    return Span(stage, start, start + int(steps), guidance)


def _guidance(given: str, part: str, plan: str) -> float:
    try:
        guidance = float(given)
    except ValueError:
        guidance = -1.0
    if not 0 <= guidance <= MAX_GUIDANCE:
        raise InvalidPlan(
            f"{part!r} in plan {plan!r}: guidance {given} is not a number between 0 and "
            f"{MAX_GUIDANCE:g}; 1 and below are off",
            param="plan",
        )
    return guidance
