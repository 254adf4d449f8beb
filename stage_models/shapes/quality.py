"""Measure the quality table that the router uses: attribute accuracy by plan.

    python -m stage_models.shapes.quality                   # writes quality.json
    python -m stage_models.shapes.quality --captions 64     # quicker and coarser

Every order of one, two and three distinct stages, handing over at a few shares of the steps; the
same held-out captions and seeds for all. What is done is kept beside the table after every batch,
so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import permutations
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffusion_edge.errors import EdgeError
from diffusion_edge.families.card import FamilyCard, load_card
from diffusion_edge.types import Plan
from stage_models.shapes import gallery
from stage_models.shapes.evaluate import BATCH, ROOT, batch_of, parts
from stage_models.shapes.verify import verify

SHARES: dict[int, tuple[tuple[float, ...], ...]] = {
    1: ((1.0,),),
    2: ((0.25, 0.75), (0.5, 0.5), (0.75, 0.25)),
    3: ((0.25, 0.25, 0.5), (0.25, 0.5, 0.25), (0.5, 0.25, 0.25)),
}
"""Shares of the steps by number of spans."""

Row = tuple[tuple[str, ...], tuple[float, ...]]


def rows(stages: Sequence[str]) -> Iterator[Row]:
    """Stages in order and the share of each, for all that is measured."""
    for spans, shares in SHARES.items():
        for order in permutations(stages, spans):
            yield from ((order, share) for share in shares)


def plan_of(row: Row, steps: int) -> Plan:
    """Raises ValueError where a share is no whole number of steps."""
    stages, shares = row
    counts = [share * steps for share in shares]
    if any(count != int(count) for count in counts):
        raise ValueError(f"{steps} steps cannot be shared as {list(shares)}: use a multiple of 4")
    return Plan.of(tuple((s, int(c)) for s, c in zip(stages, counts, strict=True)))


def measure(card: FamilyCard, count: int, seed: int, kept: Path) -> dict[str, list[float]]:
    """Accuracy of every picture, by plan. `kept` holds finished batches of an earlier run."""
    steps = card.defaults.steps
    plans = [plan_of(row, steps) for row in rows(tuple(card.stages))]
    said = gallery.captions(count, seed, (1, 2))
    settings = f"{fingerprint(card)} {seed} {count}"
    found = _read_kept(kept, settings) or {str(plan): [] for plan in plans}
    stages = gallery.load_stages(card, plans)
    columns = (
        TextColumn("pictures"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=2) as progress:
        done = len(found[str(plans[0])])
        task = progress.add_task("", total=count * len(plans), completed=done * len(plans))
        for part in parts(said):
            if part[0][0] < done:
                continue
            batch = batch_of(card, stages, part, steps, seed)
            for plan in plans:
                for (_, caption), picture in zip(part, batch.pictures(plan), strict=True):
                    found[str(plan)].append(verify(caption, picture).accuracy)
                progress.advance(task, len(part))
            kept.write_text(json.dumps({"settings": settings, "found": found}))
    return found


def _read_kept(kept: Path, settings: str) -> dict[str, list[float]] | None:
    """What an earlier run of the same settings and weights has measured."""
    if not kept.exists():
        return None
    data = json.loads(kept.read_text())
    found: dict[str, list[float]] = data["found"]
    return found if data["settings"] == settings else None


def fingerprint(card: FamilyCard) -> str:
    """Hex digest of all weights and of the defaults that a measurement depends on."""
    digest = hashlib.blake2b(repr(card.defaults).encode(), digest_size=16)
    for stage in card.stages:
        for file in sorted(card.folder(stage).glob("*/*.safetensors")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def table(card: FamilyCard, found: dict[str, list[float]], seed: int) -> str:
    """The table as JSON, a row to a line."""
    count = len(next(iter(found.values())))
    head = {
        "family": card.name,
        "metric": "attribute accuracy",
        "steps": card.defaults.steps,
        "solver": card.defaults.solver,
        "guidance": card.defaults.guidance,
        "seed": seed,
        "captions": f"{count} held out, half with one thing, half with two",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "diffusers", "transformers")},
        },
        "measured": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    lines = []
    for stages, shares in rows(tuple(card.stages)):
        accuracies = found[str(plan_of((stages, shares), card.defaults.steps))]
        row = {"stages": stages, "shares": shares, "accuracy": round(fmean(accuracies), 4)}
        lines.append("    " + json.dumps(row | {"n": count}))
    return json.dumps(head, indent=2)[:-2] + ',\n  "rows": [\n' + ",\n".join(lines) + "\n  ]\n}\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=int, default=4 * BATCH)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--family", type=Path, default=ROOT, help="folder of the family")
    args = parser.parse_args(argv)
    gallery.quiet()
    try:
        card = load_card(args.family)
        kept = args.family / "quality.part.json"
        found = measure(card, args.captions, args.seed, kept)
        (args.family / "quality.json").write_text(table(card, found, args.seed))
        kept.unlink(missing_ok=True)
    except (EdgeError, ValueError) as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
