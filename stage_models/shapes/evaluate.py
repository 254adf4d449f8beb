"""Attribute accuracy of plans on captions whose pairs of colour and shape no training scene had.

    python -m stage_models.shapes.evaluate --plan cloud:20 --captions 300 --seed 1
    python -m stage_models.shapes.evaluate --plan cloud:20 --plan cloud:6,device:14 --json
    python -m stage_models.shapes.evaluate --grid grid.png --plan cloud:20 --plan device:20
    python -m stage_models.shapes.evaluate --card     # the figures and pictures of the model card
    python -m stage_models.shapes.evaluate --relations    # how often scenes have each relation

Captions have one and two things in equal numbers, unless `--things` says otherwise. Caption i is
drawn with seed + i, the same for every plan. Intervals are Agresti and Coull's over pictures; a
picture of two things that has one shape right counts as half in `shape`. Fréchet distances are to
as many drawn scenes of other captions of the same kind; see `frechet.py`. An interrupted run goes
on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from diffusion_edge.errors import EdgeError
from diffusion_edge.families.base import Family
from diffusion_edge.families.card import FamilyCard, load_card
from diffusion_edge.families.quiet import quiet_libraries
from diffusion_edge.markdown import between
from diffusion_edge.plan import Plan
from diffusion_edge.profile import batch, intervals
from diffusion_edge.profile.ledger import results
from diffusion_edge.profile.measure import fingerprint
from diffusion_edge.profile.progress import pictures_bar
from stage_models.shapes import frechet, gallery, scenes
from stage_models.shapes.scenes import Caption, Scene
from stage_models.shapes.verify import ATTRIBUTES, Report, count_right, verify

Floats = NDArray[np.float64]

ROOT = Path(__file__).parent
BATCH = 32
OTHERS = 10**6
"""Added to the seed of captions for the drawn scenes that pictures are compared with."""


# ---------------------------------------------------------------------------- what is judged


@dataclass(frozen=True)
class Kind:
    """Captions: how many, from which seed, of how many things in turn, held out of training?"""

    count: int
    seed: int
    things: tuple[int, ...] = (1, 2)
    held_out: bool = True

    def scenes(self, shift: int = 0) -> list[Scene]:
        return gallery.some_scenes(self.count, self.seed + shift, self.things, self.held_out)

    def captions(self) -> list[Caption]:
        return [scene.caption for scene in self.scenes()]


@dataclass
class Judged:
    """Pictures of one plan: what is right of each, and its features (n, 64) for Fréchet."""

    marks: list[dict[str, float]] = field(default_factory=list)
    features: list[list[float]] = field(default_factory=list)

    def add(self, captions: Sequence[Caption], images: Sequence[Image.Image]) -> None:
        pairs = zip(captions, images, strict=True)
        self.marks += [marks(verify(caption, image)) for caption, image in pairs]
        self.features += frechet.features(images).round(5).tolist()


def marks(report: Report) -> dict[str, float]:
    """Accuracy, the share that is right of every attribute the caption has, and whether all is."""
    return {
        "accuracy": report.accuracy,
        **report.shares(),
        "all right": float(report.all_right),
    }


@dataclass(frozen=True)
class Score:
    """A mean in [0, 1] over n pictures, with its 95 % confidence interval."""

    value: float
    n: int
    interval: tuple[float, float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Score:
        return cls(float(np.mean(values)), len(values), intervals.of_mean(values))


@dataclass(frozen=True)
class Summary:
    """Scores by name, each over the pictures that have it, and the Fréchet distance; and which of
    the captions did not come out all right."""

    scores: Mapping[str, Score]
    frechet: float
    failed: tuple[int, ...]

    @classmethod
    def of(cls, judged: Judged, drawn: Floats) -> Summary:
        values: dict[str, list[float]] = {}
        for picture in judged.marks:
            for name, value in picture.items():
                values.setdefault(name, []).append(value)
        scores = {name: Score.of(values[name]) for name in COLUMNS if name in values}
        failed = tuple(i for i, marks in enumerate(judged.marks) if marks["all right"] < 1)
        return cls(scores, frechet.distance(np.array(judged.features), drawn), failed)


# ---------------------------------------------------------------------------- measuring


def judge(
    card: FamilyCard, kind: Kind, plans: Sequence[Plan], execution: str = "eager"
) -> dict[str, Summary]:
    """The summary of every plan, then of the drawn scenes themselves and of what the autoencoder
    makes of them: the most that a plan can reach, and the least distance."""
    others = frechet.features([scenes.draw(scene) for scene in kind.scenes(OTHERS)])
    drawn = _judge(card, kind, plans, execution)
    found = {plan: Summary.of(judged, others) for plan, judged in drawn.items()}
    for name, images in (
        (AUTOENCODER, gallery.reconstructed(card, kind.scenes())),
        (DRAWN, [scenes.draw(scene) for scene in kind.scenes()]),
    ):
        judged = Judged()
        judged.add(kind.captions(), images)
        found[name] = Summary.of(judged, others)
    return found


def _judge(
    card: FamilyCard, kind: Kind, plans: Sequence[Plan], execution: str
) -> dict[str, Judged]:
    captions = kind.captions()
    settings = {
        "weights": fingerprint(card),
        "defaults": card.defaults.model_dump(),
        "captions": [str(caption) for caption in captions],
        "seed": kind.seed,
        "plans": [str(plan) for plan in plans],
    }
    stages: dict[str, Family] = {}
    found = {str(plan): Judged() for plan in plans}

    def of_batch(start: int) -> dict[str, Any]:
        if not stages:
            stages.update(gallery.stages_of(card, plans, execution))
        part = captions[start : start + BATCH]
        requests = [card.request(str(said), kind.seed + start + i) for i, said in enumerate(part)]
        result = {}
        for plan, pictures in batch.pictures(stages, requests, plans):
            judged = Judged()
            judged.add(part, [gallery.image(picture) for picture in pictures])
            result[str(plan)] = asdict(judged)
            advance(len(part))
        return result

    starts = range(0, len(captions), BATCH)
    with pictures_bar(len(captions) * len(plans)) as advance:
        for result, was_there in results(_kept(card, settings), settings, starts, of_batch):
            for plan, judged in result.items():
                found[plan].marks += judged["marks"]
                found[plan].features += judged["features"]
                if was_there:
                    advance(len(judged["marks"]))
    return found


def _kept(card: FamilyCard, settings: Mapping[str, Any]) -> Path:
    """What is done of these settings is kept here until the whole command is done."""
    name = hashlib.blake2b(json.dumps(settings).encode(), digest_size=6).hexdigest()
    return card.root / f"evaluate-{name}.part.jsonl"


# ---------------------------------------------------------------------------- tables


COLUMNS = ("accuracy", *ATTRIBUTES, "all right")
AUTOENCODER = "the drawn scenes, encoded and decoded"
DRAWN = "the drawn scenes themselves"


def cells(summary: Summary) -> Iterator[str]:
    """`83.1 (79-86)`: per cent, and the interval; the Fréchet distance last."""
    for name in COLUMNS:
        if name in summary.scores:
            score = summary.scores[name]
            low, high = score.interval
            yield f"{100 * score.value:.1f} ({100 * low:.0f}-{100 * high:.0f})"
        else:
            yield "-"
    yield f"{summary.frechet:.3g}"


def show(rows: Mapping[str, Summary], title: str) -> None:
    table = Table("pictures", *COLUMNS, "Fréchet", title=title)
    for name, summary in rows.items():
        table.add_row(name, *cells(summary))
    Console(width=170).print(table)


def as_json(rows: Mapping[str, Summary], facts: Mapping[str, object]) -> str:
    found = {
        row: {
            **{
                name: {"value": s.value, "low": s.interval[0], "high": s.interval[1], "n": s.n}
                for name, s in summary.scores.items()
            },
            "frechet": summary.frechet,
        }
        for row, summary in rows.items()
    }
    return json.dumps({**facts, "rows": found})


def relations(count: int, seed: int) -> str:
    """Shares of the relations in scenes of two and of three things, as training draws them."""
    lines = []
    for things in (2, 3):
        drawn = gallery.some_scenes(count, seed, (things,), held_out=False)
        said = Counter(relation for scene in drawn for relation in scene.caption.relations)
        shares = ", ".join(
            f"{name} {100 * said[name] / said.total():.0f} %" for name in scenes.RELATIONS
        )
        lines.append(f"{count} scenes of {things} things: {shares}")
    return "; ".join(lines)


# ---------------------------------------------------------------------------- pictures


def draw_grid(
    card: FamilyCard, captions: Sequence[Caption], plans: Sequence[Plan], seeds: Sequence[int]
) -> Image.Image:
    """A row for each caption and its seed, a column for each plan."""
    stages = gallery.stages_of(card, plans)
    pairs = zip(captions, seeds, strict=True)
    requests = [card.request(str(caption), seed) for caption, seed in pairs]
    made = {str(plan): pictures for plan, pictures in batch.pictures(stages, requests, plans)}
    columns = [[gallery.image(picture) for picture in made[str(plan)]] for plan in plans]
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
ALONE = ("cloud:20", "edge:20", "device:20")
HANDED_OFF = (
    "cloud:6,device:14",
    "device:14,cloud:6",
    "cloud:6,edge:14",
    "edge:14,cloud:6",
    "cloud:10,edge:6,device:4",
)
HANDED_OFF_LARGE = ("device:14,cloud:6", "edge:14,cloud:6")
GRID_PLANS = (*ALONE, "cloud:6,device:14", "device:14,cloud:6")
EXAMPLES = 8
FEWER = 5
"""Times fewer captions for plans that are handed off than for each stage alone."""


def with_defaults(card: FamilyCard, **changes: object) -> FamilyCard:
    """The same family, with other defaults for requests."""
    given = {name: value for name, value in changes.items() if value is not None}
    return card.model_copy(update={"defaults": card.defaults.model_copy(update=given)})


def write_card(card: FamilyCard, count: int, seed: int, execution: str = "eager") -> None:
    """Measures what the model card says, and writes it there; and the grids beside it."""
    path = card.root / "README.md"
    between(path.read_text(), MARKS, "", path)  # before the work, not after it
    some, few = max(4, 2 * count // 5), max(4, count // FEWER)
    larger = with_defaults(card, size=max(card.sizes.squares))
    large = f"{larger.defaults.size}x{larger.defaults.size} (`--size`)"
    kinds = (
        ("held-out captions, half of one thing, half of two", card, Kind(count, seed), ALONE),
        ("of them", card, Kind(few, seed), HANDED_OFF),
        ("held-out captions of three things", card, Kind(max(4, count // 4), seed, (3,)), ALONE),
        (
            "captions of one and two things, all pairs seen in training",
            card,
            Kind(few, seed, held_out=False),
            ALONE,
        ),
        (f"held-out captions of one and two things, {large}", larger, Kind(some, seed), ALONE),
        (f"of them, {large}", larger, Kind(max(4, some // FEWER), seed), HANDED_OFF_LARGE),
    )
    lines = [
        f"`python -m stage_models.shapes.evaluate --card --captions {count} --seed {seed} "
        f"--execution {execution}`: guidance {card.defaults.guidance:g}, {card.defaults.solver}. "
        "Per cent, with 95 % intervals (Agresti and Coull, over pictures). Fréchet distances are "
        "to as many drawn scenes of other captions of the same kind, and compare within one table."
    ]
    failed: Sequence[int] = ()
    for name, sized, kind, plans in kinds:
        found = judge(sized, kind, tuple(map(Plan.parse, plans)), execution)
        lines += ["", f"**{kind.count} {name}**", "", *_markdown(found)]
        failed = failed or found[plans[0]].failed[:EXAMPLES]
    lines += ["", *_about_the_judges(count)]
    path.write_text(between(path.read_text(), MARKS, "\n".join(lines), path))
    columns, first = tuple(map(Plan.parse, GRID_PLANS)), kinds[0][2]
    said = Kind(EXAMPLES, 5).captions()
    draw_grid(card, said, columns, [seed] * len(said)).save(
        card.root / "examples.png", optimize=True
    )
    worst, seeds = [first.captions()[i] for i in failed], [seed + i for i in failed]
    draw_grid(card, worst, columns, seeds).save(card.root / "failures.png", optimize=True)


def _about_the_judges(count: int) -> Iterator[str]:
    """How far the verifier, the classifier and the scenes themselves can be trusted."""
    drawn = 3 * count
    sharp, soft = count_right(drawn, seed=1)
    yield (
        f"- The verifier judges {sharp} of {drawn} drawn scenes all right, and {soft} when they "
        f"are softened (`python -m stage_models.shapes.verify --scenes {drawn}`)."
    )
    shares = frechet.told(frechet.right(frechet.classifier(), drawn, frechet.CHECK_SEED))
    yield (
        f"- The classifier is right on {drawn} fresh scenes about {shares} "
        f"(`python -m stage_models.shapes.frechet check --scenes {drawn}`)."
    )
    yield (
        f"- {relations(drawn, 1)} (`python -m stage_models.shapes.evaluate --relations "
        f"--captions {drawn}`)."
    )


def _markdown(rows: Mapping[str, Summary]) -> Iterator[str]:
    yield "| pictures | " + " | ".join(COLUMNS) + " | Fréchet |"
    yield "|---|" + "---|" * (len(COLUMNS) + 1)
    for name, summary in rows.items():
        head = name if name in (AUTOENCODER, DRAWN) else f"`{name}`"
        yield f"| {head} | " + " | ".join(cells(summary)) + " |"


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
    parser.add_argument("--size", type=int, help="edge of a picture; default: the family's")
    parser.add_argument("--execution", default="eager", help="how models are run; or auto")
    parser.add_argument("--family", type=Path, default=ROOT, help="folder of the family")
    parser.add_argument("--json", action="store_true", help="one JSON line in place of the table")
    parser.add_argument("--grid", type=Path, help="write a grid of 8 examples to this PNG")
    parser.add_argument("--card", action="store_true", help="rewrite the model card's figures")
    parser.add_argument("--relations", action="store_true", help="count the scenes' relations")
    args = parser.parse_args(argv)
    if args.captions < 4:
        parser.error("--captions must be at least 4")
    if args.relations:
        print(relations(args.captions, args.seed))
        return
    plans = args.plan or [Plan.parse("cloud:20")]
    quiet_libraries()
    try:
        card = load_card(args.family)
        card = with_defaults(card, guidance=args.guidance, size=args.size)
        kind = Kind(args.captions, args.seed, tuple(args.things), not args.seen)
        if args.card:
            write_card(card, args.captions, args.seed, args.execution)
        elif args.grid:
            captions = kind.captions()[:EXAMPLES]
            draw_grid(card, captions, plans, [args.seed] * len(captions)).save(args.grid)
        else:
            rows = judge(card, kind, plans, args.execution)
            if args.json:
                facts = {"captions": kind.count, "things": list(kind.things), "seed": kind.seed}
                facts |= {"held_out": kind.held_out, "guidance": card.defaults.guidance}
                print(as_json(rows, facts))
            else:
                said = "held-out" if kind.held_out else "seen"
                show(rows, f"{kind.count} {said} captions, seed {kind.seed}: per cent (95 %)")
        for kept in card.root.glob("evaluate-*.part.jsonl"):
            kept.unlink()
    except EdgeError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
