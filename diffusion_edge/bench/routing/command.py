"""`diffusion-edge bench routing`: from what is asked to the report."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from diffusion_edge.bench.report import machine, versions
from diffusion_edge.bench.routing import decision, parts, server, split
from diffusion_edge.bench.routing.decision import Decisions
from diffusion_edge.bench.routing.live import Wanted
from diffusion_edge.bench.routing.parts import FULL, SHORT, Found, Task
from diffusion_edge.bench.routing.records import LIVE, PARTS, Part
from diffusion_edge.bench.routing.report import COMMAND, Report
from diffusion_edge.bench.routing.runs import Tell
from diffusion_edge.bench.routing.split import Split
from diffusion_edge.config import load_config
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.places import REPOSITORY, trace_file
from diffusion_edge.plan import Plan
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.strict import nearest, read_yaml
from diffusion_edge.traces import read_rates

BELOW = 0.01
"""The floor is so far below what the second stage of `in-turn` alone is known to reach."""
LONG_S = 1e3
"""A deadline that nobody misses, before the burst's own follows from what was found."""
DEVICE = "device"
SERVES = (
    *("api", "engine", "routing", "serve", "sites", "batching.py", "config.py", "emulation.py"),
    *("plan.py", "request.py", "view.py"),
)
"""What the figures depend on."""


@dataclass(frozen=True)
class Asked:
    """parts: none for all. own_models: stages compute what their own models do."""

    card: FamilyCard
    parts: tuple[str, ...]
    short: bool
    scale: float
    own_models: bool
    trace: Path
    seed: int
    ledger: Path

    def __str__(self) -> str:
        """The command."""
        options = [f"--part {part}" for part in self.parts]
        options += ["--short"] * self.short + ["--own-models"] * self.own_models
        rest = f"--scale {self.scale:g} --trace {self.trace} --seed {self.seed}"
        return " ".join((COMMAND, self.card.root.name, *options, rest))


def measure(asked: Asked, tell: Tell) -> Report:
    """Raises InvalidRequest before the work for what cannot be measured."""
    task = task_of(asked)
    found = None
    if set(task.parts) & set(LIVE):
        asked.ledger.parent.mkdir(parents=True, exist_ok=True)
        root = asked.card.root.resolve()
        with nullcontext(root) if asked.own_models else server.light(asked.card) as folder:
            opens = partial(server.opened, asked.scale, folder)
            kept = _settings(asked, task)
            found = asyncio.run(parts.measure(task, opens, asked.ledger, kept, tell))
    return reported(asked, found, splits(asked, task, tell), decisions(asked, task, tell))


def splits(asked: Asked, task: Task, tell: Tell) -> tuple[Split, ...]:
    if "split" not in task.parts:
        return ()
    count, tries = task.size.split
    tell(f"splits of {count} requests at once, on views")
    settings = load_config(server.LOCAL).settings
    quality = QualityTable.read(asked.card.root / "quality.json")
    wanted = Wanted(task.steps, LONG_S, task.floor)
    return split.measured(settings, quality, task.bound, wanted, asked.seed, count, tries)


def decisions(asked: Asked, task: Task, tell: Tell) -> Decisions | None:
    if "decision" not in task.parts:
        return None
    tell(f"decisions on {task.size.decisions} views")
    settings = load_config(server.LOCAL).settings
    quality = QualityTable.read(asked.card.root / "quality.json")
    return decision.measured(settings, quality, task.size.decisions, asked.seed)


def reported(
    asked: Asked, found: Found | None, splits: tuple[Split, ...], decided: Decisions | None
) -> Report:
    computes = "its own model's" if asked.own_models else "the smallest model's"
    return Report(
        command=str(asked),
        family=asked.card.name,
        scale=asked.scale,
        trace=asked.trace.stem,
        emulated=(
            "seconds of all stages and links as `serve_configs/local.yaml` states them, packets "
            f"counted in bytes of SDXL's; what a stage computes meanwhile is {computes} work"
        ),
        measured=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=machine("", os.cpu_count() or 1),
        versions=versions(),
        found=found,
        splits=splits,
        decisions=decided,
    )


def task_of(asked: Asked) -> Task:
    for part in asked.parts:
        if part not in PARTS:
            known = f"{', '.join(PARTS)}{nearest(part, PARTS)}"
            raise InvalidRequest(f"there is no part {part!r}; there are {known}", param="part")
    card = asked.card
    size = (card.defaults.size, card.defaults.size)
    bound = partial(QualityTable.read(card.root / "quality.json").bound, size=size)
    steps = card.defaults.steps
    wanted: tuple[Part, ...] = tuple(p for p in PARTS if not asked.parts or p in asked.parts)
    alone = Plan.of((("edge", steps),))
    return Task(
        bound=bound,
        floor=max(bound(alone) - BELOW, 0.0),
        links=following(asked.trace),
        size=SHORT if asked.short else FULL,
        steps=steps,
        seed=asked.seed,
        parts=wanted,
    )


def following(trace: Path) -> list[dict[str, Any]]:
    """The links of `local.yaml`, but the device's follow this trace and are stated as its mean."""
    data, _ = read_yaml(server.LOCAL)
    links: list[dict[str, Any]] = data["applications"][0]["args"]["links"]
    mean = read_rates(trace_file(str(trace))).mean
    own = {"trace": str(trace), "bytes_per_s": round(mean, 1)}
    return [link | own if DEVICE in link["between"] else link for link in links]


def _settings(asked: Asked, task: Task) -> dict[str, Any]:
    """What the ledger's entries depend on. The parts do not: each has entries of its own."""
    return {
        "family": asked.card.name,
        "quality": digest([asked.card.root / "quality.json"]),
        "code": code(),
        "scale": asked.scale,
        "own_models": asked.own_models,
        "size": asdict(task.size),
        "floor": task.floor,
        "links": list(task.links),
        "seed": asked.seed,
        "versions": versions(),
        "cpu": machine("", 1).cpu,
    }


def code() -> str:
    """A fingerprint of what serves."""
    return digest(sorted(p for name in SERVES for p in _sources(name)))


def _sources(name: str) -> list[Path]:
    path = REPOSITORY / "diffusion_edge" / name
    return [path] if path.is_file() else list(path.rglob("*.py"))


def digest(files: list[Path]) -> str:
    found = hashlib.sha256()
    for path in files:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]
