"""Holds what a table promises against fresh prompts: does what the router takes reach its floor?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from diffusion_edge.errors import InvalidRequest
from diffusion_edge.profile import intervals
from diffusion_edge.profile.measure import Scores, Task, with_reference
from diffusion_edge.profile.picks import Pick
from diffusion_edge.routing.quality import Interval, SizeQuality

ALLOWED = 0.01
"""By so much may fresh prompts fall short of a floor."""


@dataclass(frozen=True)
class Verdict:
    """What a pick reached on n fresh prompts, with its 95 % interval."""

    pick: Pick
    quality: float
    interval: Interval
    n: int

    @property
    def broken(self) -> bool:
        return self.quality < self.pick.floor - ALLOWED


def check_fresh(task: Task, known: SizeQuality) -> None:
    """Raises InvalidRequest where a picture of the task's may be one of those that the table is
    made of: prompt i is drawn with seed + i."""
    first, last = task.seed, task.seed + len(task.prompts) - 1
    theirs = known.seed, known.seed + known.captions - 1
    if first <= theirs[1] and theirs[0] <= last:
        raise InvalidRequest(
            f"seeds {first} to {last} are not fresh: the table of {known.size} pixels was measured "
            f"with {theirs[0]} to {theirs[1]}; give another --seed",
            param="seed",
        )


def of_picks(task: Task, picked: Sequence[Pick]) -> Task:
    """The same with the picks' plans, each once."""
    plans = {str(pick.plan): pick.plan for pick in picked}
    plans.pop(str(task.reference), None)
    return replace(task, plans=with_reference(task, list(plans.values())))


def verdicts(task: Task, picked: Sequence[Pick], scores: Scores) -> list[Verdict]:
    """Of all picks, by the scores of their plans."""
    reference = scores[str(task.reference)]
    found = []
    for pick in picked:
        ours = scores[str(pick.plan)]
        quality = sum(ours) / sum(reference)
        found.append(Verdict(pick, quality, intervals.of_ratio(ours, reference), len(ours)))
    return found


def lines(verdicts: Sequence[Verdict]) -> list[str]:
    """A Markdown table."""
    found = [
        "| floor | plan | estimate | bound | on fresh prompts, 95 % | less the floor |",
        "|---|---|---|---|---|---|",
    ]
    for each in verdicts:
        low, high = each.interval
        pick = each.pick
        fresh = f"{100 * each.quality:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        over = f"{100 * (each.quality - pick.floor):+.1f}" + (" **broken**" if each.broken else "")
        found.append(
            f"| {pick.floor:g} | `{pick.plan}` | {100 * pick.quality:.1f} % | "
            f"{100 * pick.bound:.1f} % | {fresh} | {over} |"
        )
    return found
