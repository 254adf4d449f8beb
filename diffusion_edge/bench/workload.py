"""What the arms of a benchmark are asked for. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffusion_edge.families.card import FamilyCard
from diffusion_edge.request import ImageRequest
from diffusion_edge.schedule import resolved_steps

PROMPTS = (
    "a red circle on a white background",
    "a blue square on a black background",
    "a red square on a black background",
    "a blue circle on a white background",
)
STEADY = (
    ("ddim", "euler", "dpmpp-2m", "unipc", "lms", "pndm", "dpmpp-2m-karras"),
    ("flow-euler", "flow-dpmpp-2m", "flow-unipc"),
)
"""Solvers that draw no noise, so that a stock pipeline can be asked for the same image."""
SHARES = (1.0, 0.8, 0.6, 0.7, 0.9, 0.5, 1.2, 0.75)
"""Of the steps asked for, by request."""
GUIDANCE = (3.5, 5.0, 2.0, 4.0, 3.0, 6.0, 4.5, 2.5)
FEWEST = 4


@dataclass(frozen=True)
class Asked:
    """One image. `steps` as a stock pipeline is asked for them; PNDM makes one more."""

    prompt: str
    seed: int
    solver: str
    steps: int
    guidance: float

    def request(self, card: FamilyCard) -> ImageRequest:
        return ImageRequest(
            prompt=self.prompt,
            family=card.name,
            steps=resolved_steps(self.solver, self.steps),
            seed=self.seed,
            solver=self.solver,
            guidance=self.guidance,
            width=card.defaults.size,
            height=card.defaults.size,
        )

    def __str__(self) -> str:
        return f"{self.solver} {self.steps}/{self.guidance:g}"


def steady(card: FamilyCard) -> tuple[str, ...]:
    """The family's solvers that draw no noise."""
    fitting = card.solvers()
    return tuple(solver for solvers in STEADY for solver in solvers if solver in fitting)


def mixed(card: FamilyCard, count: int, steps: int, seed: int) -> list[Asked]:
    """Requests that differ in solver, steps and guidance value; all are guided. seed: the first
    one's."""
    solvers = steady(card)
    return [
        Asked(
            prompt=PROMPTS[i % len(PROMPTS)],
            seed=seed + i,
            solver=solvers[i % len(solvers)],
            steps=max(FEWEST, round(SHARES[i % len(SHARES)] * steps)),
            guidance=GUIDANCE[i % len(GUIDANCE)],
        )
        for i in range(count)
    ]


def equal(card: FamilyCard, count: int, steps: int, seed: int) -> list[Asked]:
    """Requests that differ in prompt and seed only."""
    solver = steady(card)[0]
    return [
        Asked(PROMPTS[i % len(PROMPTS)], seed + i, solver, max(FEWEST, steps), GUIDANCE[0])
        for i in range(count)
    ]


def grouped(requests: Sequence[Asked]) -> list[list[int]]:
    """Indices of the requests that one call of a stock pipeline can take together."""
    groups: dict[tuple[str, int, float], list[int]] = {}
    for i, asked in enumerate(requests):
        groups.setdefault((asked.solver, asked.steps, asked.guidance), []).append(i)
    return list(groups.values())
