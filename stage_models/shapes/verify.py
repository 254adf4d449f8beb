"""Judge a picture against its caption. Nothing is learned: colours, templates, geometry.

    verify(caption, image) -> Report
    python -m stage_models.shapes.verify      # how often it is right on drawn scenes

The way: every pixel gets the palette colour next to it, where a pixel that is only a blend of
its two sides first goes over to the nearer side (`settle`); connected pixels of one colour other
than the ground are a blob; a blob is compared with drawn templates of every shape at many sizes
and sub-pixel places (`fit`); blobs are given to the caption's things so that most comes out right.

Colours are compared in plain RGB, since that is where `scenes.draw` blends its borders.
Lengths are in pixels of the 64 x 64 canvas; a picture of another size is resized to it.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from stage_models.shapes import scenes
from stage_models.shapes.scenes import CANVAS, Caption, Thing

Floats = NDArray[np.float32]
Labels = NDArray[np.int8]
Mask = NDArray[np.bool_]

ATTRIBUTES = ("background", "colour", "shape", "size", "relation")
_PALETTE: Floats = np.array(list(scenes.COLOURS.values()), dtype=np.float32)
_NAMES = tuple(scenes.COLOURS)
_UNKNOWN = -1

COLOUR_REACH = 75.0
"""A pixel farther than this from every palette colour has none. Red and orange lie 119 apart."""
BLEND_MISS = 25.0
"""A pixel nearer than this to a palette colour is no blend; one this far off the line between its
sides is none either. A blend of red and yellow comes no nearer to orange than 36."""
GROUND_SHARE = 0.6
"""Share of the frame, FRAME pixels wide, that must have the ground's colour."""
FRAME = 4
LEAST_AREA = 26
"""Pixels of the smallest thing that counts; the smallest that is ever drawn has 65."""
LEAST_FIT = 0.4
"""Overlap with the best template below which a blob is no thing at all."""
SHAPE_FIT = 0.7
"""Overlap with the best template from which a blob has that template's shape."""
SIZE_LIMIT = (scenes.RADII["small"] * scenes.RADII["large"]) ** 0.5
"""Radius between small and large."""

_WINDOW = 44
_TEMPLATE_RADII = (5.5, 6.25, 7.0, 7.75, 8.75, 10.0, 11.25, 12.5, 13.25, 14.0, 14.75, 16.0)
_OFFSETS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)


# ---------------------------------------------------------------------------- records


@dataclass(frozen=True)
class Blob:
    """A thing as seen. `shape` None: like no shape of the grammar. `box` is x0, y0, x1, y1."""

    colour: str
    shape: str | None
    radius: float
    centre: tuple[float, float]
    box: tuple[int, int, int, int]
    area: int
    fit: float

    @property
    def size(self) -> str:
        return "small" if self.radius < SIZE_LIMIT else "large"


@dataclass(frozen=True)
class Found:
    """What is right of one thing. `colour`: something of that colour is there at all.

    `size` is None where the caption leaves it unsaid.
    """

    blob: Blob | None
    colour: bool
    shape: bool
    size: bool | None


@dataclass(frozen=True)
class Report:
    """What is right of a picture; `strangers` are blobs that the caption does not mention."""

    background: bool
    things: tuple[Found, ...]
    relations: tuple[bool, ...]
    strangers: int

    def shares(self) -> Mapping[str, float]:
        """Share that is right of every attribute that the caption has."""
        marks: dict[str, list[bool]] = {
            "background": [self.background],
            "colour": [thing.colour for thing in self.things],
            "shape": [thing.shape for thing in self.things],
            "size": [thing.size for thing in self.things if thing.size is not None],
            "relation": list(self.relations),
        }
        return {name: fmean(marks[name]) for name in ATTRIBUTES if marks[name]}

    @property
    def accuracy(self) -> float:
        """Attribute accuracy: the mean of `shares`."""
        return fmean(self.shares().values())

    @property
    def all_right(self) -> bool:
        return self.accuracy == 1.0 and not self.strangers


# ---------------------------------------------------------------------------- the way of a picture


def verify(caption: Caption, image: Image.Image) -> Report:
    """What of `caption` is right in `image`."""
    ground, blobs = see(image)
    return compare(caption, ground, blobs)


def see(image: Image.Image) -> tuple[str | None, list[Blob]]:
    """The ground's colour, None where there is no plain ground, and all things on it."""
    pixels = _pixels(image)
    labels = label(settle(pixels))
    ground = _ground(labels)
    return (None if ground is None else _NAMES[ground]), find_blobs(labels, ground)


def _pixels(image: Image.Image) -> Floats:
    rgb = image.convert("RGB")
    if rgb.size != (CANVAS, CANVAS):
        rgb = rgb.resize((CANVAS, CANVAS), Image.Resampling.BOX)
    return np.asarray(rgb, dtype=np.float32)


def settle(pixels: Floats) -> Floats:
    """Pixels (H, W, 3) without blends: one that lies between its two sides joins the nearer.

    Red beside yellow is orange at the border; without this it would read as a third thing.
    The sides are two pixels away, in four directions.
    """
    height, width, _ = pixels.shape
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="edge")
    pure = _distances(pixels).min(-1) < BLEND_MISS
    best = np.where(pure, 0, BLEND_MISS)
    settled = pixels.copy()
    for dy, dx in ((0, 2), (2, 0), (2, 2), (2, -2)):
        here = padded[2 + dy : 2 + dy + height, 2 + dx : 2 + dx + width]
        there = padded[2 - dy : 2 - dy + height, 2 - dx : 2 - dx + width]
        across = there - here
        length = np.square(across).sum(-1)
        share = ((pixels - here) * across).sum(-1) / np.maximum(length, 1.0)
        miss = np.linalg.norm(pixels - here - share[..., None] * across, axis=-1)
        blend = (length > 60.0**2) & (share > 0.1) & (share < 0.9) & (miss < best)
        best = np.where(blend, miss, best)
        side = np.where((share < 0.5)[..., None], here, there)
        settled = np.where(blend[..., None], side, settled)
    return settled


def _distances(pixels: Floats) -> Floats:
    """To every palette colour: (H, W, colours)."""
    difference = pixels[:, :, None] - _PALETTE
    distances: Floats = np.sqrt(np.square(difference).sum(-1))
    return distances


def label(pixels: Floats) -> Labels:
    """Index of the nearest palette colour (H, W), `_UNKNOWN` where none is near."""
    distance = _distances(pixels)
    nearest = distance.argmin(-1).astype(np.int8)
    return np.where(distance.min(-1) <= COLOUR_REACH, nearest, np.int8(_UNKNOWN))


def _ground(labels: Labels) -> int | None:
    frame = np.ones(labels.shape, dtype=bool)
    frame[FRAME:-FRAME, FRAME:-FRAME] = False
    seen = labels[frame]
    counts = np.bincount(seen[seen != _UNKNOWN], minlength=len(_NAMES))
    colour = int(counts.argmax())
    return colour if counts[colour] >= GROUND_SHARE * seen.size else None


def find_blobs(labels: Labels, ground: int | None) -> list[Blob]:
    """Every thing, largest first."""
    masks: list[tuple[int, Mask]] = []
    for colour in range(len(_NAMES)):
        if colour == ground:
            continue
        parts, _ = ndimage.label(labels == colour, structure=np.ones((3, 3)))
        areas = np.bincount(parts.ravel())
        for part in np.flatnonzero(areas >= LEAST_AREA):
            mask: Mask = parts == part
            if part and _is_solid(mask):
                masks.append((colour, mask))
    blobs = [
        fit(_NAMES[colour], mask, _covered(mask, [m for _, m in masks if m is not mask]))
        for colour, mask in masks
    ]
    return sorted((b for b in blobs if b.fit >= LEAST_FIT), key=lambda b: -b.area)


def _is_solid(mask: Mask) -> bool:
    """At least half of it is two pixels wide: no border or scratch."""
    opened = ndimage.binary_opening(mask, structure=np.ones((2, 2)))
    return bool(opened.sum() >= mask.sum() / 2)


def _box(mask: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _covered(mask: Mask, others: Sequence[Mask]) -> Mask:
    """Where something that sits inside hides the blob; a ring's hole counts as its own."""
    hidden = np.zeros_like(mask)
    x0, y0, x1, y1 = _box(mask)
    for other in others:
        u0, v0, u1, v1 = _box(other)
        inside = x0 <= u0 and y0 <= v0 and u1 <= x1 and v1 <= y1
        if inside and (u1 - u0) * (v1 - v0) < 0.7 * (x1 - x0) * (y1 - y0):
            hidden |= ndimage.binary_fill_holes(other)
    return hidden


# ---------------------------------------------------------------------------- shapes


@dataclass(frozen=True)
class _Templates:
    """Drawn shapes by radius, `pixels` (n, window * window) of 0 and 1; what each row shows."""

    pixels: Floats
    shapes: tuple[str, ...]
    radii: tuple[float, ...]
    offsets: tuple[tuple[float, float], ...]


@cache
def _templates() -> _Templates:
    rows, shapes, radii, offsets = [], [], [], []
    for radius, shape, dx, dy in itertools.product(
        _TEMPLATE_RADII, scenes.SHAPES, _OFFSETS, _OFFSETS
    ):
        drawn = np.asarray(scenes.silhouette(shape, radius, (dx, dy), _WINDOW))
        rows.append((drawn >= 128).ravel())
        shapes.append(shape)
        radii.append(radius)
        offsets.append((dx, dy))
    pixels = np.stack(rows).astype(np.float32)
    return _Templates(pixels, tuple(shapes), tuple(radii), tuple(offsets))


def _rows_of_radius(least: float, most: float) -> slice:
    """The templates with a radius in [least, most]; the nearest radius where none is."""
    count = len(_TEMPLATE_RADII)
    first = min(bisect.bisect_left(_TEMPLATE_RADII, least), count - 1)
    last = max(bisect.bisect_right(_TEMPLATE_RADII, most), first + 1)
    block = len(scenes.SHAPES) * len(_OFFSETS) ** 2
    return slice(first * block, last * block)


def fit(colour: str, mask: Mask, hidden: Mask) -> Blob:
    """The blob of `mask` with the shape that overlaps it best; `hidden` pixels do not count.

    Overlap is intersection over union. A template stands where its bounding box and the blob's
    have the same middle, and up to 1.5 pixels around; it may be about as large as the box.
    """
    templates = _templates()
    x0, y0, x1, y1 = _box(mask)
    reach = max(x1 - x0, y1 - y0) / 2
    rows = _rows_of_radius(0.8 * reach, 1.4 * reach)
    left, top = (x0 + x1) // 2 - _WINDOW // 2, (y0 + y1) // 2 - _WINDOW // 2
    seen = _crop(mask & ~hidden, left, top)
    counted = 1 - _crop(hidden, left, top)
    shared, drawn = (templates.pixels[rows] @ np.stack([seen, counted], axis=1)).T
    overlap = shared / np.maximum(drawn + seen.sum() - shared, 1.0)
    best = rows.start + int(overlap.argmax())
    score = float(overlap.max())
    middle = _WINDOW / 2
    dx, dy = templates.offsets[best]
    return Blob(
        colour=colour,
        shape=templates.shapes[best] if score >= SHAPE_FIT else None,
        radius=templates.radii[best],
        centre=(left + middle + dx, top + middle + dy),
        box=(x0, y0, x1, y1),
        area=int(mask.sum()),
        fit=score,
    )


def _crop(mask: Mask, left: int, top: int) -> Floats:
    """The window of `mask` whose corner is (left, top), flat; outside of the picture is empty."""
    padded = np.pad(mask, _WINDOW)
    rows = slice(top + _WINDOW, top + 2 * _WINDOW)
    columns = slice(left + _WINDOW, left + 2 * _WINDOW)
    return padded[rows, columns].astype(np.float32).ravel()


# ---------------------------------------------------------------------------- against the caption


def compare(caption: Caption, ground: str | None, blobs: Sequence[Blob]) -> Report:
    """The report of the most favourable way to give blobs to the caption's things."""
    reports = (
        Report(
            background=ground == caption.background,
            things=tuple(map(_found, caption.things, given)),
            relations=tuple(
                _holds(relation, first, second)
                for relation, first, second in zip(
                    caption.relations, given, given[1:], strict=False
                )
            ),
            strangers=len(blobs) - sum(blob is not None for blob in given),
        )
        for given in _ways(caption.things, blobs)
    )
    return max(reports, key=lambda report: (report.accuracy, -report.strangers))


def _ways(things: Sequence[Thing], blobs: Sequence[Blob]) -> Iterator[tuple[Blob | None, ...]]:
    """All ways to give every thing a blob of its colour, or none; no blob twice."""
    choices = [[None, *(b for b in blobs if b.colour == thing.colour)][:5] for thing in things]
    for way in itertools.product(*choices):
        given = [id(blob) for blob in way if blob is not None]
        if len(set(given)) == len(given):
            yield way


def _found(thing: Thing, blob: Blob | None) -> Found:
    if blob is None:
        return Found(None, False, False, None if thing.size is None else False)
    size = None if thing.size is None else blob.size == thing.size
    return Found(blob, True, blob.shape == thing.shape, size)


def _holds(relation: str, first: Blob | None, second: Blob | None) -> bool:
    """Left and above: farther that way than aside, and than the larger one reaches. Inside: within
    the other's box and middle."""
    if first is None or second is None:
        return False
    right = second.centre[0] - first.centre[0]
    down = second.centre[1] - first.centre[1]
    reach = max(first.radius, second.radius)
    match relation:
        case "left of":
            return right > max(abs(down), reach) and first.box[2] <= second.box[2]
        case "above":
            return down > max(abs(right), reach) and first.box[3] <= second.box[3]
        case _:
            inner, outer = first.box, second.box
            within = (
                inner[0] >= outer[0] - 1
                and inner[1] >= outer[1] - 1
                and inner[2] <= outer[2] + 1
                and inner[3] <= outer[3] + 1
            )
            return within and max(abs(right), abs(down)) <= second.radius / 2


# ---------------------------------------------------------------------------- on drawn scenes


def soften(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blurred by 0.7 pixels, with noise of 8 in 255."""
    pixels = ndimage.gaussian_filter(np.asarray(image, dtype=np.float64), (0.7, 0.7, 0))
    pixels += rng.normal(0, 8, pixels.shape)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def count_right(count: int, seed: int) -> tuple[int, int]:
    """How many of `count` drawn scenes of one to three things are judged all right; and if
    softened."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    sharp = soft = 0
    for i in range(count):
        scene = scenes.sample(rng, 1 + i % 3, held_out=i % 2 == 0)
        image = scenes.draw(scene)
        sharp += verify(scene.caption, image).all_right
        soft += verify(scene.caption, soften(image, noise)).all_right
    return sharp, soft


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Count the drawn scenes of one to three things that are judged all right."
    )
    parser.add_argument("--scenes", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    sharp, soft = count_right(args.scenes, args.seed)
    print(f"of {args.scenes} drawn scenes {sharp} are judged all right, {soft} if softened")


if __name__ == "__main__":
    main()
