"""What is drawn next: prompts by all plans, coarsely, then more of them where decisions lie.

A plan is decisive if it is the nearest that is measured to one that the router would take, by what
is known so far; once by bounds, as it would today, and once by estimates, as it will when bounds
have come near to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from diffusion_edge.plan import Plan
from diffusion_edge.profile.measure import BATCH, Part, Scores, Task, up_to, with_reference
from diffusion_edge.profile.picks import picks
from diffusion_edge.profile.table import draft
from diffusion_edge.routing.quality import QualityRow, QualityTable

NARROW = 0.01
"""How far a quality's 95 % interval may reach to either side."""


@dataclass(frozen=True)
class Where:
    """All plans draw `coarse` prompts; then decisive ones draw more until their intervals are
    narrow, prompts run out, or so many `pictures` are drawn in all."""

    coarse: int
    pictures: int

    def following(self, task: Task, scores: Scores) -> Part | None:
        part = up_to(min(self.coarse, len(task.prompts)), task, scores)
        spent = sum(map(len, scores.values())) >= self.pictures
        if part is not None or spent or up_to(len(task.prompts), task, scores) is None:
            return part
        rows = wide(task, draft(task, scores))
        drawn = {row.plan: row.n for row in rows if row.n < len(task.prompts)}
        if not drawn:
            return None
        start = min(drawn.values())
        plans = [plan for plan, count in drawn.items() if count == start]
        stop = min(start + BATCH, len(task.prompts))
        return Part(start, stop, with_reference(task, plans))


def wide(task: Task, known: QualityTable) -> list[QualityRow]:
    """Decisive plans of a table of the task's size alone whose intervals are not narrow."""
    return [row for row in decisive(task, known) if reach(row) > NARROW]


def reach(row: QualityRow) -> float:
    """To either side of its quality."""
    return row.relative_interval[1] - row.relative


def decisive(task: Task, known: QualityTable) -> list[QualityRow]:
    (size,) = known.sizes
    hopeful = size.model_copy(update={"low": size.model})
    taken = {
        str(pick.plan)
        for table in (known, known.model_copy(update={"sizes": (hopeful,)}))
        for pick in picks(task.card, table, task.steps)
    }
    near = {nearest(Plan.parse(plan), size.rows).plan for plan in sorted(taken)}
    return [row for row in size.rows if row.plan in near]


def nearest(plan: Plan, rows: Sequence[QualityRow]) -> QualityRow:
    """The row over the same stages, in as many steps, that hands off most nearly where it does."""
    stages = tuple(span.stage for span in plan.spans)
    ends = [span.stop for span in plan.spans]
    alike = [row for row in rows if row.stages == stages and row.total == plan.steps]
    return min(
        alike,
        key=lambda row: sum(abs(a - b) for a, b in zip(accumulate(row.steps), ends, strict=True)),
    )
