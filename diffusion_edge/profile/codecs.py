"""Measures what the codecs lose: one model on both sides of a hand-off, only the codec differs.

Prompts, seeds and the steps before a hand-off are the same for all codecs, so that they are
compared image by image with the run that the exact codec gives, which is the unsplit one.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_edge import markdown
from diffusion_edge.engine.run import Trajectory, begin, decode_all, finish, step
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.families.base import Family
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.families.load import load_family
from diffusion_edge.packet import Packet, new_packet, read, write
from diffusion_edge.plan import Codec, Plan
from diffusion_edge.profile.intervals import Z
from diffusion_edge.profile.ledger import open_ledger
from diffusion_edge.profile.measure import BATCH, fingerprint
from diffusion_edge.profile.metric import Metric
from diffusion_edge.profile.table import versions
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.codecs import CodecRow, CodecTable
from diffusion_edge.schedule import resolved_steps

LOSSY: tuple[Codec, ...] = ("bf16", "int8")


@dataclass(frozen=True)
class Task:
    """What is measured. Prompt i is drawn with seed + i, by every solver in `asked` steps.

    handoffs: the steps before which the latent is carried; none for all.
    source: where the prompts came from.
    """

    card: FamilyCard
    metric: Metric
    prompts: Sequence[str]
    source: str
    solvers: tuple[str, ...]
    asked: int
    handoffs: tuple[int, ...]
    seed: int

    def __post_init__(self) -> None:
        for solver in self.solvers:
            steps = resolved_steps(solver, self.asked)
            for handoff in self.handoffs_of(solver):
                if not 0 < handoff < steps:
                    raise InvalidRequest(
                        f"{solver} has no hand-off before step {handoff} of {steps}; there is one "
                        f"before each from 1 to {steps - 1}"
                    )

    def handoffs_of(self, solver: str) -> tuple[int, ...]:
        """Those asked for, or all."""
        return self.handoffs or tuple(range(1, resolved_steps(solver, self.asked)))

    @property
    def pictures(self) -> int:
        places = sum(len(self.handoffs_of(solver)) for solver in self.solvers)
        return places * len(LOSSY) * len(self.prompts)

    @property
    def parts(self) -> list[tuple[str, int]]:
        """Solvers, and the first prompt of each of their batches."""
        return list(product(self.solvers, range(0, len(self.prompts), BATCH)))

    def settings(self) -> dict[str, Any]:
        """All that the losses depend on, but for the versions of libraries."""
        return {
            "weights": fingerprint(self.card),
            "defaults": self.card.defaults.model_dump(),
            "metric": self.metric.name,
            "prompts": hashlib.blake2b("\n".join(self.prompts).encode()).hexdigest(),
            "handoffs": {solver: self.handoffs_of(solver) for solver in self.solvers},
            "asked": self.asked,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Loss:
    """What a codec did to one image; see `CodecRow`."""

    error: float
    change: float
    packet_bytes: int
    exact_bytes: int


Key = tuple[str, int, Codec]
"""Solver, hand-off step, codec."""


# ---------------------------------------------------------------------------- measuring


def measure(task: Task, kept: Path, advance: Callable[[int], None]) -> dict[Key, list[Loss]]:
    """The loss on every prompt. `kept` holds what an earlier run of the same task has measured.

    `advance` is told how many pictures are done, as they are.
    """
    ledger, entries = open_ledger(kept, task.settings())
    for entry in entries:
        advance(sum(map(len, entry.values())))
    family: Family | None = None
    for solver, start in task.parts[len(entries) :]:
        family = family or load_family(task.card, task.card.reference)
        entry = {}
        for at, codec, each in _batch(task, family, solver, start):
            entry[f"{at} {codec}"] = [vars(loss) for loss in each]
            advance(len(each))
        ledger.append(entry)
        entries.append(entry)
    found: dict[Key, list[Loss]] = {}
    for (solver, _), entry in zip(task.parts, entries, strict=True):
        for at, codec in product(task.handoffs_of(solver), LOSSY):
            each = [Loss(**loss) for loss in entry[f"{at} {codec}"]]
            found.setdefault((solver, at, codec), []).extend(each)
    return found


def _batch(
    task: Task, family: Family, solver: str, start: int
) -> Iterator[tuple[int, Codec, list[Loss]]]:
    prompts = task.prompts[start : start + BATCH]
    steps = resolved_steps(solver, task.asked)
    requests = [
        replace(task.card.request(prompt, task.seed + start + i), solver=solver, steps=steps)
        for i, prompt in enumerate(prompts)
    ]
    yield from losses(family, requests, task.handoffs_of(solver), task.metric)


def losses(
    family: Family, requests: Sequence[ImageRequest], handoffs: Sequence[int], metric: Metric
) -> Iterator[tuple[int, Codec, list[Loss]]]:
    """Every hand-off in every lossy codec, with the loss of each request's image.

    The requests share their steps and are all guided or all unguided. The steps before a hand-off
    are run once, and each image crosses it by itself, as packet bytes.
    """
    steps = requests[0].steps
    whole = Plan.of(((family.stage, steps),))
    trajectories = [begin(family, _packet(family, request, whole)) for request in requests]
    at_handoff: dict[int, list[Trajectory]] = {}
    for at in range(steps):
        if at in handoffs:
            at_handoff[at] = trajectories
        trajectories = step(family, trajectories)
    unsplit = _latents(trajectories)
    pictures = decode_all(family, trajectories)
    best = [metric.score(r.prompt, p, p) for r, p in zip(requests, pictures, strict=True)]
    for at, started in at_handoff.items():
        exact_bytes = [len(data) for data in _sent(family, requests, started, "exact")]
        for codec in LOSSY:
            sent = _sent(family, requests, started, codec)
            final = [_arrived(family, t, data) for t, data in zip(started, sent, strict=True)]
            for _ in range(at, steps):
                final = step(family, final)
            errors = _relative(_latents(final), unsplit)
            scores = [
                metric.score(request.prompt, picture, reference)
                for request, picture, reference in zip(
                    requests, decode_all(family, final), pictures, strict=True
                )
            ]
            yield (
                at,
                codec,
                [
                    Loss(error, score - before, len(data), size)
                    for error, score, before, data, size in zip(
                        errors, scores, best, sent, exact_bytes, strict=True
                    )
                ],
            )


def _sent(
    family: Family, requests: Sequence[ImageRequest], started: Sequence[Trajectory], codec: Codec
) -> list[bytes]:
    """The packets' bytes."""
    at, steps = started[0].position, requests[0].steps
    split = Plan.of(((family.stage, at), (family.stage, steps - at)))
    plan = replace(split, codecs=(codec,))
    return [
        write(finish(_packet(family, request, plan), trajectory))
        for request, trajectory in zip(requests, started, strict=True)
    ]


def _packet(family: Family, request: ImageRequest, plan: Plan) -> Packet:
    return new_packet(request, plan, 0, family.latent_space)


def _arrived(family: Family, trajectory: Trajectory, data: bytes) -> Trajectory:
    """The trajectory as it goes on from a packet; its prompt need not be encoded anew."""
    packet = read(data, family.latent_space)
    assert packet.latent is not None
    return replace(trajectory, latent=packet.latent, history=packet.history)


def _latents(trajectories: Sequence[Trajectory]) -> Tensor:
    return torch.cat([trajectory.latent for trajectory in trajectories])


def _relative(latents: Tensor, reference: Tensor) -> list[float]:
    """Relative L2 error of each sample."""
    far, whole = (latents - reference).double().flatten(1), reference.double().flatten(1)
    errors: list[float] = (far.norm(dim=1) / whole.norm(dim=1)).tolist()
    return errors


# ---------------------------------------------------------------------------- the table


def table(task: Task, found: Mapping[Key, Sequence[Loss]]) -> CodecTable:
    defaults = task.card.defaults
    return CodecTable(
        family=task.card.name,
        model=task.card.reference,
        metric=task.metric.name,
        guidance=defaults.guidance,
        size=defaults.size,
        seed=task.seed,
        prompts=task.source,
        captions=len(task.prompts),
        weights=fingerprint(task.card),
        versions=versions(),
        measured=datetime.datetime.now(datetime.UTC).date().isoformat(),
        rows=tuple(_row(key, resolved_steps(key[0], task.asked), found[key]) for key in found),
    )


def _row(key: Key, steps: int, found: Sequence[Loss]) -> CodecRow:
    solver, handoff, codec = key
    errors, changes = [loss.error for loss in found], [loss.change for loss in found]
    low, high = interval_of_change(changes)
    return CodecRow.model_validate(
        {
            "solver": solver,
            "steps": steps,
            "share": handoff / steps,
            "codec": codec,
            "error": _digits(float(np.mean(errors))),
            "worst": _digits(max(errors)),
            "change": round(float(np.mean(changes)), 4),
            "interval": (round(low, 4), round(high, 4)),
            "packet_bytes": round(float(np.mean([loss.packet_bytes for loss in found]))),
            "exact_bytes": round(float(np.mean([loss.exact_bytes for loss in found]))),
            "n": len(found),
        }
    )


def interval_of_change(changes: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean of paired differences of scores in [0, 1].

    Agresti and Min's interval for matched shares (Statistics in Medicine 24, 2005), carried over
    to scores: two pairs are made up, half a pair each of -1 and 1 and one pair of 0, and so an
    interval is left where no score has changed.
    """
    count = len(changes) + 2
    mean = float(np.sum(changes)) / count
    variance = (float(np.sum(np.square(changes))) + 1) / count - mean**2
    spread = Z * (variance / count) ** 0.5
    return max(-1.0, mean - spread), min(1.0, mean + spread)


def _digits(value: float) -> float:
    """Three of them."""
    return float(f"{value:.3g}")


# ---------------------------------------------------------------------------- the page

MARKS = markdown.marks("diffusion-edge codecs")


def page_lines(table: CodecTable, command: str, bound: float) -> Iterator[str]:
    """What stands between the marks of a page. `bound` is what `auto` goes by."""
    yield (
        f"Measured on {table.measured} by `{command}`: `{table.model}` of `{table.family}` on both "
        f"sides, {table.captions} prompts (from {table.prompts}), prompt i drawn with seed "
        f"{table.seed} + i, guidance {table.guidance:g}, {table.size} pixels, metric "
        f"`{table.metric}`; weights `{table.weights[:12]}`; {markdown.listed(table.versions)}."
    )
    columns = ["solver", "hand-off", "`exact`, bytes"]
    for codec in LOSSY:
        columns += [f"`{codec}`, bytes", "error, mean (worst)", "change of the score, points"]
    columns += [f"`auto` at {bound:g}"]
    yield from ("", *markdown.table(columns, _cells(table, bound)))


def _cells(table: CodecTable, bound: float) -> Iterator[list[str]]:
    places: dict[tuple[str, int, int], list[CodecRow]] = {}
    for row in sorted(table.rows, key=lambda row: LOSSY.index(row.codec)):
        places.setdefault((row.solver, row.steps, row.handoff), []).append(row)
    for (solver, steps, handoff), found in places.items():
        cells = [f"`{solver}`", f"{handoff} of {steps}", str(found[0].exact_bytes)]
        for row in found:
            low, high = (100 * end for end in row.interval)
            cells += [
                str(row.packet_bytes),
                f"{row.error:.1e} ({row.worst:.1e})",
                f"{100 * row.change:+.1f} ({low:+.1f} to {high:+.1f})",
            ]
        yield [*cells, f"`{table.smallest(solver, steps, handoff, bound)}`"]
