"""How far two judges of pictures agree that share no code: `verify` segments, `redraw` draws again.

    python -m stage_models.shapes.agree --captions 1000 --plan cloud:20 --seed 77
    python -m stage_models.shapes.agree --captions 200 --out differ.png    # and where they differ

Captions have one, two and three things in turn, pairs held out of training, unless told otherwise;
caption i is drawn with seed + i. Counted is every attribute that a caption has: its ground, and of
every thing and relation what is said. The contact sheet shows the pictures with a verdict on which
the judges differ, beside what `redraw` makes of them.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from diffusion_edge.errors import EdgeError
from diffusion_edge.families.card import FamilyCard, load_card
from diffusion_edge.families.quiet import quiet_libraries
from diffusion_edge.plan import Plan
from diffusion_edge.profile import batch
from diffusion_edge.profile.progress import pictures_bar
from stage_models.shapes import gallery, redraw, verify
from stage_models.shapes.scenes import Caption

ROOT = Path(__file__).parent
BATCH = 32
SHOWN = 60
"""Pictures on a contact sheet, at most."""

# ---------------------------------------------------------------------------- verdicts


class Found(Protocol):
    """What a judge says of one thing."""

    @property
    def colour(self) -> bool: ...
    @property
    def shape(self) -> bool: ...
    @property
    def size(self) -> bool | None: ...


class Report(Protocol):
    """What a judge says of a picture."""

    @property
    def background(self) -> bool: ...
    @property
    def things(self) -> Sequence[Found]: ...
    @property
    def relations(self) -> Sequence[bool]: ...


@dataclass(frozen=True)
class Verdict:
    """On one attribute, by `verify` and by `redraw`. what: the attribute, of what."""

    attribute: str
    what: str
    first: bool
    second: bool

    @property
    def agreed(self) -> bool:
        return self.first == self.second


@dataclass(frozen=True)
class Judged:
    """A picture with all verdicts on it."""

    caption: Caption
    image: Image.Image
    verdicts: tuple[Verdict, ...]

    @property
    def agreed(self) -> bool:
        return all(verdict.agreed for verdict in self.verdicts)


def judged(caption: Caption, image: Image.Image) -> Judged:
    first = _marks(caption, verify.verify(caption, image))
    second = _marks(caption, redraw.judge(caption, image))
    pairs = zip(first, second, strict=True)
    return Judged(caption, image, tuple(Verdict(*a, right) for a, (*_, right) in pairs))


def _marks(caption: Caption, report: Report) -> list[tuple[str, str, bool]]:
    """Attribute, of what, and whether it is right, in an order that the caption settles."""
    names = [f"{thing.colour} {thing.shape}" for thing in caption.things]
    marks = [("background", "ground", report.background)]
    for name, found in zip(names, report.things, strict=True):
        marks += [("colour", name, found.colour), ("shape", name, found.shape)]
        if found.size is not None:
            marks.append(("size", name, found.size))
    said = zip(caption.relations, report.relations, names, names[1:], strict=False)
    return [*marks, *(("relation", f"{a} {how} {b}", right) for how, right, a, b in said)]


# ---------------------------------------------------------------------------- counting


@dataclass(frozen=True)
class Agreement:
    """Of the verdicts on an attribute: how many there are, how many agree, and how many are right
    in the eyes of `verify` alone and of `redraw` alone."""

    count: int
    agreed: int
    first_alone: int
    second_alone: int

    @classmethod
    def of(cls, verdicts: Sequence[Verdict]) -> Agreement:
        return cls(
            count=len(verdicts),
            agreed=sum(v.agreed for v in verdicts),
            first_alone=sum(v.first and not v.second for v in verdicts),
            second_alone=sum(v.second and not v.first for v in verdicts),
        )

    @property
    def share(self) -> float:
        """That agrees, in [0, 1]."""
        return self.agreed / self.count


def agreements(pictures: Sequence[Judged]) -> dict[str, Agreement]:
    """By attribute, and of all of them."""
    verdicts = [verdict for picture in pictures for verdict in picture.verdicts]
    by_name = {
        name: Agreement.of(found)
        for name in verify.ATTRIBUTES
        if (found := [v for v in verdicts if v.attribute == name])
    }
    return {**by_name, "all": Agreement.of(verdicts)}


def table(found: dict[str, Agreement], title: str) -> Table:
    shown = Table(
        "attribute", "verdicts", "agree, %", "right to verify alone", "right to redraw alone",
        title=title,
    )  # fmt: skip
    for name, one in found.items():
        figures = (one.count, f"{100 * one.share:.2f}", one.first_alone, one.second_alone)
        shown.add_row(name, *map(str, figures))
    return shown


# ---------------------------------------------------------------------------- the contact sheet


def sheet(pictures: Sequence[Judged], cell: int = 192) -> Image.Image:
    """A row for each picture: the picture, `redraw`'s drawing of it, the caption and the verdicts
    on which the judges differ."""
    gap, text = 8, 520
    size = (2 * (cell + gap) + gap + text, gap + len(pictures) * (cell + gap))
    made = Image.new("RGB", size, (238, 238, 238))
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(13)
    for row, one in enumerate(pictures):
        y = gap + row * (cell + gap)
        for column, image in enumerate((one.image, redraw.drawing(one.image))):
            enlarged = image.resize((cell, cell), Image.Resampling.NEAREST)
            made.paste(enlarged, (gap + column * (cell + gap), y))
        lines = "\n".join(line for told in _told(one) for line in textwrap.wrap(told, 76))
        pen.text((2 * (cell + gap) + gap, y), lines, fill=(0, 0, 0), font=font)
    return made


def _told(one: Judged) -> Iterator[str]:
    yield str(one.caption)
    for verdict in one.verdicts:
        if not verdict.agreed:
            who = ("verify", "redraw") if verdict.first else ("redraw", "verify")
            yield f"{verdict.attribute}, {verdict.what}: right to {who[0]}, wrong to {who[1]}"
    blobs = (
        f"{b.size} {b.colour} {b.shape or 'blob'} r {b.radius:g} at {b.centre[0]:g}, "
        f"{b.centre[1]:g}, fit {b.fit:.2f}"
        for b in verify.see(one.image)[1]
    )
    yield "verify sees " + "; ".join(blobs)
    things = (
        f"{s.size} {s.colour} {s.shape or 'blob'} r {s.radius:g} at {s.centre[0]:g}, "
        f"{s.centre[1]:g}, fit {s.fit:.2f}"
        for s in redraw.see(one.image)[1]
    )
    yield "redraw sees " + "; ".join(things)


# ---------------------------------------------------------------------------- model pictures


def judge_plan(
    card: FamilyCard, captions: Sequence[Caption], plan: Plan, seed: int
) -> list[Judged]:
    """The pictures that the plan makes of the captions, with all verdicts."""
    stages, found = gallery.stages_of(card, [plan]), []
    with pictures_bar(len(captions)) as advance:
        for start in range(0, len(captions), BATCH):
            part = captions[start : start + BATCH]
            requests = [card.request(str(said), seed + start + i) for i, said in enumerate(part)]
            for _, pictures in batch.pictures(stages, requests, [plan]):
                images = map(gallery.image, pictures)
                found += [judged(said, image) for said, image in zip(part, images, strict=True)]
            advance(len(part))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--plan", type=Plan.parse, default=Plan.parse("cloud:20"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--things", type=int, nargs="+", choices=(1, 2, 3), default=(1, 2, 3))
    parser.add_argument("--seen", action="store_true", help="pairs that training scenes had")
    parser.add_argument("--family", type=Path, default=ROOT, help="folder of the family")
    parser.add_argument("--out", type=Path, help="write a contact sheet of differences to this PNG")
    args = parser.parse_args(argv)
    if args.captions < 1:
        parser.error("--captions must be at least 1")
    quiet_libraries()
    captions = gallery.captions(args.captions, args.seed, args.things, not args.seen)
    try:
        pictures = judge_plan(load_card(args.family), captions, args.plan, args.seed)
    except EdgeError as error:
        parser.exit(2, f"{error}\n")
    Console().print(table(agreements(pictures), f"{args.captions} pictures by {args.plan}"))
    differing = [one for one in pictures if not one.agreed]
    if args.out and differing:
        sheet(differing[:SHOWN]).save(args.out, optimize=True)
        print(f"{args.out}: {min(len(differing), SHOWN)} of {len(differing)} pictures that differ")


if __name__ == "__main__":
    main()
