"""What the benchmark of the router asks for, and what it keeps of every request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from diffusion_edge.bench.answered import Answer

Part = Literal["capacity", "steady", "overload", "burst", "forecast", "links", "split", "decision"]
PARTS: tuple[Part, ...] = get_args(Part)

LIVE: tuple[Part, ...] = tuple(part for part in PARTS if part not in ("split", "decision"))
"""Those that need a server."""

MOST_OVERRUNS = 0.01
"""Of all emulated parts, that a row may have to count."""


@dataclass(frozen=True)
class Arm:
    """options: of the request's `diffusion_edge`. settings: of the server, beside the config's."""

    name: str
    options: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ran:
    """One arm's answers to some arrivals, in their order, from a quiet server on.

    rate_per_s: 0 where all came at once. parts_run, overruns: by stage, what its counters rose by.
    load: the machine's average over one minute before. at: when it began, UTC.
    """

    arm: str
    rate_per_s: float
    answers: tuple[Answer, ...]
    parts_run: Mapping[str, int]
    overruns: Mapping[str, int]
    load: float
    at: str

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Ran:
        """From a ledger's entry."""
        answers = tuple(Answer(**each) for each in entry["answers"])
        return cls(**(dict(entry) | {"answers": answers}))

    def entry(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def in_time(self) -> float:
        """Share of all that were sent."""
        return sum(each.in_time for each in self.answers) / len(self.answers)


def together(runs: tuple[Ran, ...]) -> Ran:
    """Rounds of one arm as if they were one; the first one's time, the highest load."""
    first = runs[0]
    return Ran(
        arm=first.arm,
        rate_per_s=first.rate_per_s,
        answers=tuple(each for run in runs for each in run.answers),
        parts_run=_summed([run.parts_run for run in runs]),
        overruns=_summed([run.overruns for run in runs]),
        load=max(run.load for run in runs),
        at=first.at,
    )


def _summed(counts: list[Mapping[str, int]]) -> dict[str, int]:
    return {stage: sum(each[stage] for each in counts) for stage in counts[0]}


def overrun_share(ran: Ran) -> float:
    """Of all parts of a stage (steps, texts, pictures), of the stage that has most."""
    return max(
        (ran.overruns[stage] / parts for stage, parts in ran.parts_run.items() if parts),
        default=0.0,
    )
