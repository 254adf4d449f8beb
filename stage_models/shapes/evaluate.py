"""Attribute accuracy of plans on captions whose pairs of colour and shape no training scene had.

    python -m stage_models.shapes.evaluate --plan cloud:20 --captions 300 --seed 1
    python -m stage_models.shapes.evaluate --plan cloud:20 --plan cloud:6,device:14 --json
    python -m stage_models.shapes.evaluate --grid grid.png --plan cloud:20 --plan device:20
    python -m stage_models.shapes.evaluate --card     # the figures and pictures of the model card

Captions have one and two things in equal numbers, unless `--things` says otherwise. Caption i is
drawn with seed + i, the same for every plan. Intervals are Wilson's, with the number of pictures
as the number of trials; a picture of two things that has one shape right counts as half.
"""

from __future__ import annotations

import argparse
import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from diffusion_edge.errors import EdgeError
from diffusion_edge.families.base import Family
from diffusion_edge.families.card import FamilyCard, load_card
from diffusion_edge.types import Plan
from stage_models.shapes import gallery
from stage_models.shapes.scenes import Caption
from stage_models.shapes.verify import ATTRIBUTES, Report, verify

ROOT = Path(__file__).parent
BATCH = 32


# ---------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Score:
    """A share in [0, 1] over n pictures, with its 95 % confidence interval."""

    value: float
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval."""
        z = 1.959964
        spread = z * math.sqrt(self.value * (1 - self.value) / self.n + z**2 / (4 * self.n**2))
        middle = self.value + z**2 / (2 * self.n)
        scale = 1 + z**2 / self.n
        return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def summary(reports: Sequence[Report]) -> dict[str, Score]:
    """Accuracy, every attribute over the pictures that have it, and the share with all right."""
    scores = {"accuracy": Score(fmean(r.accuracy for r in reports), len(reports))}
    for name in ATTRIBUTES:
        shares = [r.shares()[name] for r in reports if name in r.shares()]
        if shares:
            scores[name] = Score(fmean(shares), len(shares))
    return scores | {"all right": Score(fmean(r.all_right for r in reports), len(reports))}


def judge(
    card: FamilyCard, captions: Sequence[Caption], plans: Sequence[Plan], seed: int
) -> dict[str, list[Report]]:
    """The report of every caption's picture, by plan."""
    stages = gallery.load_stages(card, plans)
    reports: dict[str, list[Report]] = {str(plan): [] for plan in plans}
    with Progress(console=Console(stderr=True), refresh_per_second=2) as progress:
        task = progress.add_task("pictures", total=len(captions) * len(plans))
        for part in parts(captions):
            batches = _batches(card, stages, part, plans, seed)
            for plan in plans:
                pictures = batches[plan.steps].pictures(plan)
                for (_, caption), picture in zip(part, pictures, strict=True):
                    reports[str(plan)].append(verify(caption, picture))
                progress.advance(task, len(part))
    return reports


def parts(captions: Sequence[Caption]) -> Iterator[list[tuple[int, Caption]]]:
    """Numbered captions, BATCH at a time."""
    numbered = list(enumerate(captions))
    for start in range(0, len(numbered), BATCH):
        yield numbered[start : start + BATCH]


def batch_of(
    card: FamilyCard,
    stages: Mapping[str, Family],
    part: Sequence[tuple[int, Caption]],
    steps: int,
    seed: int,
) -> gallery.Batch:
    """Caption i is drawn with seed + i."""
    requests = [gallery.request(card, str(said), seed + i, steps) for i, said in part]
    return gallery.Batch(stages, requests)


def _batches(
    card: FamilyCard,
    stages: Mapping[str, Family],
    part: Sequence[tuple[int, Caption]],
    plans: Sequence[Plan],
    seed: int,
) -> dict[int, gallery.Batch]:
    """A batch for every number of steps."""
    return {steps: batch_of(card, stages, part, steps, seed) for steps in {p.steps for p in plans}}


# ---------------------------------------------------------------------------- tables


COLUMNS = ("accuracy", *ATTRIBUTES, "all right")


def cells(scores: Mapping[str, Score]) -> Iterator[str]:
    """`83.1 (79-86)`: per cent, and the interval."""
    for name in COLUMNS:
        if name in scores:
            low, high = scores[name].interval
            yield f"{100 * scores[name].value:.1f} ({100 * low:.0f}-{100 * high:.0f})"
        else:
            yield "-"


def show(rows: Mapping[str, Mapping[str, Score]], title: str) -> None:
    table = Table("plan", *COLUMNS, title=title)
    for name, scores in rows.items():
        table.add_row(name, *cells(scores))
    Console(width=150).print(table)


def as_json(rows: Mapping[str, Mapping[str, Score]], facts: Mapping[str, object]) -> str:
    plans = {
        plan: {
            name: {"value": s.value, "low": s.interval[0], "high": s.interval[1], "n": s.n}
            for name, s in scores.items()
        }
        for plan, scores in rows.items()
    }
    return json.dumps({**facts, "plans": plans})


# ---------------------------------------------------------------------------- pictures


def draw_grid(
    card: FamilyCard, captions: Sequence[Caption], plans: Sequence[Plan], seed: int
) -> Image.Image:
    """A row for each caption, a column for each plan, one seed for all."""
    stages = gallery.load_stages(card, plans)
    part = [(0, caption) for caption in captions]
    batches = _batches(card, stages, part, plans, seed)
    columns = [batches[plan.steps].pictures(plan) for plan in plans]
    return tile([str(caption) for caption in captions], [str(plan) for plan in plans], columns)


def tile(
    rows: Sequence[str],
    heads: Sequence[str],
    columns: Sequence[Sequence[Image.Image]],
    cell: int = 128,
    margin: int = 210,
) -> Image.Image:
    """Pictures `columns[c][r]`, enlarged to `cell` pixels, with text beside and above them."""
    gap, top = 6, 44
    size = (margin + len(heads) * (cell + gap), top + len(rows) * (cell + gap))
    grid = Image.new("RGB", size, (238, 238, 238))
    pen = ImageDraw.Draw(grid)
    font = ImageFont.load_default(13)
    for c, head in enumerate(heads):
        lines = head.replace(",", ",\n")
        pen.text((margin + c * (cell + gap), 4), lines, fill=(0, 0, 0), font=font, spacing=1)
    for r, row in enumerate(rows):
        y = top + r * (cell + gap)
        text = "\n".join(textwrap.wrap(row, 29))
        pen.text((8, y + cell // 2), text, fill=(0, 0, 0), font=font, anchor="lm")
        for c, column in enumerate(columns):
            picture = column[r].resize((cell, cell), Image.Resampling.NEAREST)
            grid.paste(picture, (margin + c * (cell + gap), y))
    return grid


# ---------------------------------------------------------------------------- the model card


MARKS = ("<!-- figures: written by evaluate --card -->", "<!-- end of figures -->")
CARD_PLANS = (
    "cloud:20",
    "edge:20",
    "device:20",
    "cloud:6,device:14",
    "device:14,cloud:6",
    "cloud:6,edge:14",
    "edge:14,cloud:6",
    "cloud:10,edge:6,device:4",
)
GRID_PLANS = ("cloud:20", "edge:20", "device:20", "cloud:6,device:14", "device:14,cloud:6")


def write_card(card: FamilyCard, count: int, seed: int) -> None:
    """Measures what the model card says, and writes it there; and the grid beside it."""
    plans = tuple(map(Plan.parse, CARD_PLANS))
    rows = {"": _summaries(judge(card, gallery.captions(count, seed, (1, 2)), plans, seed))}
    reference = plans[:1]
    for name, things, held_out in (
        ("pairs seen in training", (1, 2), False),
        ("three things, held out", (3,), True),
    ):
        said = gallery.captions(count // 2, seed, things, held_out)
        rows[name] = _summaries(judge(card, said, reference, seed))
    drawn = gallery.some_scenes(count, seed, (1, 2))
    pairs = zip(drawn, gallery.reconstructed(card, drawn), strict=True)
    limit = summary([verify(scene.caption, picture) for scene, picture in pairs])
    text = _markdown(card, rows, limit, count, seed)
    path = card.root / "README.md"
    path.write_text(between(path.read_text(), text))
    grid = draw_grid(card, gallery.captions(8, 5, (1, 2)), tuple(map(Plan.parse, GRID_PLANS)), seed)
    grid.save(card.root / "examples.png", optimize=True)


def _summaries(reports: Mapping[str, Sequence[Report]]) -> dict[str, dict[str, Score]]:
    return {plan: summary(each) for plan, each in reports.items()}


def _markdown(
    card: FamilyCard,
    rows: Mapping[str, Mapping[str, Mapping[str, Score]]],
    limit: Mapping[str, Score],
    count: int,
    seed: int,
) -> str:
    lines = [
        f"`python -m stage_models.shapes.evaluate --card --captions {count} --seed {seed}`: "
        f"held-out captions, half of one and half of two things, {count // 2} of them where the "
        f"row is of others; guidance {card.defaults.guidance:g}, {card.defaults.solver}. Per "
        "cent, with 95 % intervals. The last row is the autoencoder's: the true scenes, encoded "
        "and decoded.",
        "",
        "| plan | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for name, plans in rows.items():
        for plan, scores in plans.items():
            head = f"`{plan}`" + (f", {name}" if name else "")
            lines.append(f"| {head} | " + " | ".join(cells(scores)) + " |")
    lines.append("| none, drawn scenes | " + " | ".join(cells(limit)) + " |")
    return "\n".join(lines)


def between(page: str, text: str) -> str:
    """The page with `text` in place of what stands between the two marks."""
    head, first, rest = page.partition(MARKS[0])
    _, last, tail = rest.partition(MARKS[1])
    if not first or not last:
        raise ValueError(f"the model card lacks the marks {MARKS[0]!r} and {MARKS[1]!r}")
    return f"{head}{first}\n{text}\n{last}{tail}"


# ---------------------------------------------------------------------------- command line


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", action="append", type=Plan.parse, help="default: cloud:20")
    parser.add_argument("--captions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--things", type=int, nargs="+", choices=(1, 2, 3), default=(1, 2))
    parser.add_argument("--seen", action="store_true", help="pairs that training scenes had")
    parser.add_argument("--guidance", type=float, help="default: the family's")
    parser.add_argument("--family", type=Path, default=ROOT, help="folder of the family")
    parser.add_argument("--json", action="store_true", help="one JSON line in place of the table")
    parser.add_argument("--grid", type=Path, help="write a grid of 8 examples to this PNG")
    parser.add_argument("--card", action="store_true", help="rewrite the model card's figures")
    args = parser.parse_args(argv)
    if args.captions < 2:
        parser.error("--captions must be at least 2")
    plans = args.plan or [Plan.parse("cloud:20")]
    gallery.quiet()
    try:
        card = load_card(args.family)
        if args.guidance is not None:
            defaults = card.defaults.model_copy(update={"guidance": args.guidance})
            card = card.model_copy(update={"defaults": defaults})
        said = gallery.captions(args.captions, args.seed, args.things, not args.seen)
        if args.card:
            write_card(card, args.captions, args.seed)
        elif args.grid:
            draw_grid(card, said[:8], plans, args.seed).save(args.grid)
        else:
            rows = _summaries(judge(card, said, plans, args.seed))
            if args.json:
                facts = {"captions": len(said), "things": list(args.things), "seed": args.seed}
                facts |= {"held_out": not args.seen, "guidance": card.defaults.guidance}
                print(as_json(rows, facts))
            else:
                kind = "seen" if args.seen else "held-out"
                show(rows, f"{len(said)} {kind} captions, seed {args.seed}: per cent (95 %)")
    except EdgeError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
