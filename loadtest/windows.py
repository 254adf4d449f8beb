"""What the router chose while the load or a link changed: plans and hand-offs by time window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from statistics import fmean

from diffusion_edge.bench.answered import Answer
from diffusion_edge.plan import Plan


@dataclass(frozen=True)
class Throttle:
    """An emulated link gets `factor` times its rate from `at_s` on, in both directions."""

    between: tuple[str, str]
    factor: float
    at_s: float

    @classmethod
    def parse(cls, text: str) -> Throttle:
        """From `device,cloud,0.05@60`. Raises ValueError."""
        link, _, at = text.partition("@")
        try:
            one, other, factor = link.split(",")
            found = cls((one.strip(), other.strip()), float(factor), float(at))
        except ValueError:
            raise ValueError(f"{text!r} should read like device,cloud,0.05@60") from None
        if not 0.001 <= found.factor <= 1000 or not 0 <= found.at_s < inf:
            raise ValueError(f"{text!r}: a factor is 0.001 to 1000, a time 0 s or later")
        return found

    def __str__(self) -> str:
        return f"{'-'.join(self.between)} x {self.factor:g}"


@dataclass(frozen=True)
class Window:
    """Requests that were due within [start_s, stop_s). Of those answered: how many took each plan,
    the mean step at which they were first handed off, None where none was, and the mean steps by
    stage."""

    start_s: float
    stop_s: float
    rate_per_s: float
    throttled: str
    sent: int
    met_deadline: float | None
    plans: dict[str, int]
    handed_off: int
    handoff_step: float | None
    steps: dict[str, float]


def edges(
    rates: Sequence[float], seconds: float, throttles: Sequence[Throttle], parts: int
) -> list[float]:
    """Where windows begin, and the end: each time that the rate or a link changes, with the time
    between two of these cut into equal parts. Each rate has an equal share of the seconds."""
    changes = {seconds * k / len(rates) for k in range(len(rates) + 1)}
    changes |= {each.at_s for each in throttles if 0 < each.at_s < seconds}
    cuts = [a + (b - a) * k / parts for a, b in pairwise(sorted(changes)) for k in range(parts)]
    return [*cuts, seconds]


def windows(
    answers: Sequence[Answer],
    rates: Sequence[float],
    seconds: float,
    throttles: Sequence[Throttle],
    parts: int,
) -> list[Window]:
    found = []
    for start_s, stop_s in pairwise(edges(rates, seconds, throttles, parts)):
        rate = rates[min(int(start_s * len(rates) / seconds + 1e-9), len(rates) - 1)]
        latest = {each.between: each for each in throttles if each.at_s <= start_s}
        throttled = ", ".join(str(each) for each in latest.values() if each.factor != 1)
        within = [each for each in answers if start_s <= each.due_s < stop_s]
        found.append(_window(start_s, stop_s, rate, throttled, within))
    return found


def _window(
    start_s: float, stop_s: float, rate: float, throttled: str, answers: Sequence[Answer]
) -> Window:
    plans = [Plan.parse(each.plan) for each in answers if each.ok]
    stages = sorted({span.stage for plan in plans for span in plan.spans})
    handoffs = [plan.spans[0].stop for plan in plans if len(plan.spans) > 1]
    return Window(
        start_s=start_s,
        stop_s=stop_s,
        rate_per_s=rate,
        throttled=throttled,
        sent=len(answers),
        met_deadline=sum(each.in_time for each in answers) / len(answers) if answers else None,
        plans=dict(Counter(map(str, plans)).most_common()),
        handed_off=len(handoffs),
        handoff_step=fmean(handoffs) if handoffs else None,
        steps={stage: fmean(_steps_on(stage, plan) for plan in plans) for stage in stages},
    )


def _steps_on(stage: str, plan: Plan) -> int:
    return sum(span.steps for span in plan.spans if span.stage == stage)
