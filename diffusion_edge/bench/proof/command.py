"""`diffusion-edge bench proof`: from what is asked to the report."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from diffusion_edge.bench import simulated
from diffusion_edge.bench.proof import figures, plots
from diffusion_edge.bench.proof.grid import SEEDS, cells
from diffusion_edge.bench.proof.play import POLICIES, Task, Tell, measured
from diffusion_edge.bench.proof.report import COMMAND, Report, apart
from diffusion_edge.bench.proof.runs import events
from diffusion_edge.bench.report import machine
from diffusion_edge.bench.routing.command import code, digest
from diffusion_edge.errors import ConfigError, InvalidRequest
from diffusion_edge.places import REPOSITORY, family_folder, trace_file
from diffusion_edge.routing.policies import RULES
from diffusion_edge.routing.rule import Rule
from diffusion_edge.sim.scenario import load
from diffusion_edge.strict import nearest

FAMILY = "shapes"
SHORT = Task(cells()[3:6], seeds=SEEDS[:2], requests=40, plays=15)
COLLAPSE = "loadtest/scenarios/collapse.yaml"
LIBRARIES = ("numpy", "scipy")


@dataclass(frozen=True)
class Asked:
    """policies: none for all. short: a few cells, requests and seeds, to see that all works.
    signals: a recording for policies that choose again."""

    policies: tuple[str, ...]
    short: bool
    signals: Path
    workers: int
    ledger: Path

    def __str__(self) -> str:
        """The command."""
        options = [f"--policy {name}" for name in self.policies] + ["--short"] * self.short
        return " ".join((COMMAND, *options, f"--signals {self.signals}"))


def measure(asked: Asked, tell: Tell) -> Report:
    """Raises InvalidRequest or ConfigError before the work for what cannot be measured."""
    task = task_of(asked)
    asked.ledger.parent.mkdir(parents=True, exist_ok=True)
    played = measured(task, asked.ledger, _settings(task), asked.workers, tell)
    return Report(
        command=str(asked),
        measured=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=machine("", 1),
        versions={name: version(name) for name in LIBRARIES},
        whole=task == Task(cells(), signals=task.signals),
        seeds=len(task.seeds),
        requests=task.requests,
        plays=task.plays,
        cpu_s=sum(each.cpu_s for one in played for each in one.results),
        found=tuple(figures.of_cells(task.cells, played)),
    )


def task_of(asked: Asked) -> Task:
    """`elastic` is always among the policies."""
    for name in asked.policies:
        if name not in POLICIES:
            known = f"{', '.join(POLICIES)}{nearest(name, POLICIES)}"
            raise InvalidRequest(f"unknown policy {name!r}; known: {known}", param="policy")
    wanted = (figures.OURS, *asked.policies) if asked.policies else POLICIES
    chosen = tuple(name for name in POLICIES if name in wanted)
    task = SHORT if asked.short else Task(cells())
    return replace(task, policies=chosen, signals=_signals(asked.signals, chosen))


def _signals(file: Path, policies: Sequence[str]) -> str | None:
    rules: list[Rule] = [RULES[name] for name in policies if name in RULES]
    if all(rule.chooses_once for rule in rules):
        return None
    try:
        return str(trace_file(str(file)))
    except ConfigError:
        raise InvalidRequest(
            f"there is no recording {file} of what policies look at that choose again; "
            f"`diffusion-edge profile {FAMILY} --signals {file}` makes it, or name the other "
            "policies (--policy)"
        ) from None


def _settings(task: Task) -> dict[str, str]:
    """What entries depend on beside the task."""
    package = REPOSITORY / "diffusion_edge"
    data = [family_folder(FAMILY) / "quality.json"]
    data += [Path(task.signals)] if task.signals else []
    plays = [*(package / "sim").glob("*.py"), *(package / "bench" / "proof").glob("[cp]*.py")]
    return {"data": digest(data), "code": code(), "plays": digest(sorted(plays))}


def draw(report: Report, folder: Path, stem: str) -> list[Path]:
    """For each kind of seconds and bytes apart; and the run in which a link collapses."""
    files: list[Path] = []
    for family, found in apart(report.found).items():
        told = figures.points(found), figures.by_load(found)
        files += plots.draw_all(*told, folder, f"{stem}-{family}-")
    return [*files, collapse(folder / f"{stem}-timeline.png")]


def collapse(file: Path) -> Path:
    scenario = load(REPOSITORY / COLLAPSE, [figures.OURS])
    settings = simulated.config_of(scenario)
    (run,) = simulated.runs(scenario, settings, simulated.family_of(settings), lambda _: None)
    return plots.timeline(run.told, scenario.title, file, events(scenario))
