"""Judge a picture by drawing it again: a second opinion on `verify`, with which it shares no code.

    judge(caption, image) -> Report

The way: the ground is the palette colour that explains most of the picture. Of all shapes, radii,
places and colours that could be drawn on it, the one that explains most pixels is drawn, where it
takes away most of the squared error, and so on. With every new thing the others are fitted again,
each between what lies below it and what lies above. What does not explain its surroundings is no
thing. Then the things are compared with the caption's, in the way that makes most come out right.

Nothing is segmented: borders are blends in the drawing as they are in the picture. Lengths are in
pixels of the 64 x 64 canvas; a picture of another size is resized to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage_models.shapes import scenes
from stage_models.shapes.scenes import CANVAS, Caption, Thing

Floats = NDArray[np.float32]
Spectrum = NDArray[np.complex64]
Window = tuple[slice, slice]

PALETTE: Floats = np.array(list(scenes.COLOURS.values()), dtype=np.float32)
NAMES = tuple(scenes.COLOURS)
_LENGTHS: Floats = np.square(PALETTE).sum(-1)

NEAR = 80.0
"""Distance in RGB up to which a pixel is explained by a colour; farther off all are alike."""
GROUND_SHARE = 0.6
"""Of the pixels that no thing covers, the share that the ground must explain."""
MOST_THINGS = 6
"""Drawn in a picture; the grammar has three."""
LEAST_GAIN = 20.0
"""Pixels of error that drawing a thing takes away, at least; the smallest ever drawn has 65."""
LEAST_FIT = 0.2
"""Share of the error around a thing that drawing it takes away, below which it is none."""
SHAPE_FIT = 0.6
"""The same, from which on it has the shape that was drawn."""
BETWEEN_SIZES = 10.0
"""Radius between small and large."""

_PAD = 18
"""Ground around a picture, so that the windows of things at its border lie within."""
_WINDOW = 2 * _PAD
_SIDE = CANVAS + 2 * _PAD
_INNER = (slice(_PAD, -_PAD), slice(_PAD, -_PAD))
_RADII = (5.5, 6.25, 7.0, 7.75, 8.75, 10.0, 11.25, 12.5, 14.0, 15.5)
_NEAR_RADII = 1.35
"""Times as large or small a thing may become when it is fitted."""
_WHOLE, _HALF = (-2.0, -1.0, 0.0, 1.0, 2.0), (-0.5, 0.0, 0.5)
_SHIFTS = sorted({*itertools.product(_WHOLE, _WHOLE), *itertools.product(_HALF, _HALF)})
_COARSE = tuple(itertools.product((6.0, 7.5, 10.0, 14.0), scenes.SHAPES))
_COLOURS = 3
"""Tried at a place, those that could explain most."""
_LEAST_HOPE = 8.0
"""Pixels that a thing must explain at first sight to be tried; a faint one gains when fitted."""
_ROUNDS = 3


# ---------------------------------------------------------------------------- records


@dataclass(frozen=True)
class Drawn:
    """A thing as it was drawn: index of its colour, and its centre (x, y)."""

    shape: str
    colour: int
    radius: float
    x: float
    y: float

    @property
    def window(self) -> Window:
        """Where its template lies in the padded picture."""
        return _window(round(self.x), round(self.y))

    def opacity(self) -> tuple[Floats, Floats]:
        """Of it and of its hole, both (_WINDOW, _WINDOW, 1)."""
        dx, dy = self.x - round(self.x), self.y - round(self.y)
        opacity = _opacity(self.shape, self.radius, dx, dy)
        hole = _hole(self.radius, dx, dy) if self.shape == "ring" else np.zeros_like(opacity)
        return opacity[..., None], hole[..., None]


def _window(x: int, y: int, side: int = _WINDOW) -> Window:
    """Of the padded picture, around (x, y) of the canvas."""
    left, top = (v + _PAD - side // 2 for v in (x, y))
    return slice(top, top + side), slice(left, left + side)


@dataclass(frozen=True)
class Seen:
    """A thing that explains its surroundings by the share `fit`; `shape` None: like none."""

    colour: str
    shape: str | None
    size: str
    radius: float
    centre: tuple[float, float]
    fit: float


@dataclass(frozen=True)
class Found:
    """What is right of one thing; `size` None where the caption leaves it unsaid."""

    colour: bool
    shape: bool
    size: bool | None


@dataclass(frozen=True)
class Report:
    """What is right of a picture; `strangers` are things that the caption does not mention."""

    background: bool
    things: tuple[Found, ...]
    relations: tuple[bool, ...]
    strangers: int

    def shares(self) -> Mapping[str, float]:
        """Share that is right of every attribute that the caption has."""
        marks = {
            "background": [self.background],
            "colour": [thing.colour for thing in self.things],
            "shape": [thing.shape for thing in self.things],
            "size": [thing.size for thing in self.things if thing.size is not None],
            "relation": list(self.relations),
        }
        return {name: fmean(given) for name, given in marks.items() if given}

    @property
    def accuracy(self) -> float:
        return fmean(self.shares().values())

    @property
    def all_right(self) -> bool:
        return self.accuracy == 1.0 and not self.strangers


# ---------------------------------------------------------------------------- the way of a picture


def judge(caption: Caption, image: Image.Image) -> Report:
    """What of `caption` is right in `image`."""
    ground, things = see(image)
    return compare(caption, ground, things)


def see(image: Image.Image) -> tuple[str | None, list[Seen]]:
    """The ground's colour, None where there is no plain ground, and all things on it."""
    picture = Picture.of(image)
    things = draw_again(picture)
    seen = [
        _seen(thing, _Worth.of(picture, things, thing).fit)
        for thing in things
        if thing.colour != picture.ground  # a hole in another
    ]
    return (NAMES[picture.ground] if _is_plain(picture, things) else None), seen


def drawing(image: Image.Image) -> Image.Image:
    """What it is drawn as: the ground and all things on it."""
    picture = Picture.of(image)
    painted, _ = picture.painted(draw_again(picture))
    return Image.fromarray(painted[_INNER].round().clip(0, 255).astype(np.uint8))


def _seen(thing: Drawn, fit: float) -> Seen:
    return Seen(
        colour=NAMES[thing.colour],
        shape=thing.shape if fit >= SHAPE_FIT else None,
        size="small" if thing.radius < BETWEEN_SIZES else "large",
        radius=thing.radius,
        centre=(thing.x, thing.y),
        fit=fit,
    )


def draw_again(picture: Picture) -> list[Drawn]:
    """The things that explain a picture: one more while there is one that explains enough, and
    with each all are fitted again."""
    things: list[Drawn] = []
    while len(things) < MOST_THINGS:
        more = next(_with_one_more(picture, things), None)
        if more is None:
            break
        things = more
    return things


def _with_one_more(picture: Picture, things: Sequence[Drawn]) -> Iterator[list[Drawn]]:
    for new in _candidates(picture, things):
        more = [*things, new]
        if _Worth.of(picture, more, new).pixels >= LEAST_GAIN:
            more = _settled(picture, more)
            if all(_Worth.of(picture, more, thing).is_thing for thing in more):
                yield more


def _is_plain(picture: Picture, things: Sequence[Drawn]) -> bool:
    """Whether the ground's colour is that of most of what no thing covers."""
    _, clear = picture.painted(things)
    free = clear[_INNER][..., 0] > 0.95
    off = np.linalg.norm(picture.pixels[_INNER] - PALETTE[picture.ground], axis=-1)
    return bool((off[free] < NEAR).sum() >= GROUND_SHARE * free.sum())


# ---------------------------------------------------------------------------- templates


@dataclass(frozen=True)
class _Templates:
    """Shapes in windows of `side` pixels, flat: opacities in [0, 1] (n, side * side) and their
    squares.

    what: of each, the radius, the shape and the offset (x, y) of the centre.
    rings: which are rings; holes: the opacities of their holes.
    """

    side: int
    opacities: Floats
    squares: Floats
    rings: NDArray[np.intp]
    holes: Floats
    what: tuple[tuple[float, str, float, float], ...]


@cache
def _templates(radius: float) -> _Templates:
    """Those of about that radius, in windows that hold them."""
    radii = [r for r in _RADII if radius / _NEAR_RADII < r < radius * _NEAR_RADII]
    side = 2 * int(max(radii) + 3)
    what = tuple((r, shape, dx, dy) for r in radii for shape in scenes.SHAPES for dx, dy in _SHIFTS)
    opacities = np.stack([_opacity(shape, r, dx, dy, side).ravel() for r, shape, dx, dy in what])
    rings = [i for i, (_, shape, _, _) in enumerate(what) if shape == "ring"]
    holes = [_hole(r, dx, dy, side).ravel() for r, shape, dx, dy in what if shape == "ring"]
    return _Templates(side, opacities, np.square(opacities), np.array(rings), np.stack(holes), what)


@cache
def _opacity(shape: str, radius: float, dx: float, dy: float, size: int = _WINDOW) -> Floats:
    drawn = np.asarray(scenes.silhouette(shape, radius, (dx, dy), size), dtype=np.float32)
    return drawn / np.float32(255)


def _hole(radius: float, dx: float, dy: float, size: int = _WINDOW) -> Floats:
    """Of a ring: there the ground is seen, whatever lies below."""
    return _opacity("circle", radius, dx, dy, size) - _opacity("ring", radius, dx, dy, size)


@cache
def _spectra() -> Spectrum:
    """Conjugated, of coarse templates around (0, 0) at half the size: (n, 1, ...)."""
    middle = _SIDE // 4
    drawn = [
        np.roll(_opacity(shape, radius / 2, 0, 0, _SIDE // 2), (-middle, -middle), (0, 1))
        for radius, shape in _COARSE
    ]
    return np.conj(np.fft.rfft2(np.stack(drawn)[:, None]))


# ---------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class Picture:
    """Pixels (_SIDE, _SIDE, 3), padded with the ground's colour, and that colour's index."""

    pixels: Floats
    ground: int

    @classmethod
    def of(cls, image: Image.Image) -> Picture:
        rgb = image.convert("RGB")
        if rgb.size != (CANVAS, CANVAS):
            rgb = rgb.resize((CANVAS, CANVAS), Image.Resampling.BOX)
        seen = np.asarray(rgb, dtype=np.float32)
        ground = int(_misses(seen).sum((0, 1)).argmin())
        pixels = np.full((_SIDE, _SIDE, 3), PALETTE[ground])
        pixels[_INNER] = seen
        return cls(pixels, ground)

    def painted(self, things: Sequence[Drawn], base: Floats | None = None) -> tuple[Floats, Floats]:
        """The things on a base, the ground if none is given, large ones first; and the share
        (H, W, 1) of the base that is still seen."""
        ground = PALETTE[self.ground]
        painted = np.full_like(self.pixels, ground) if base is None else base.copy()
        clear = np.ones((_SIDE, _SIDE, 1), dtype=np.float32)
        for thing in sorted(things, key=lambda thing: -thing.radius):
            opacity, hole = thing.opacity()
            left = 1 - opacity - hole
            painted[thing.window] *= left
            painted[thing.window] += opacity * PALETTE[thing.colour] + hole * ground
            clear[thing.window] *= left
        return painted, clear

    def gap(self, others: Sequence[Drawn], radius: float, at: Window) -> _Gap:
        """For a thing of that radius among others."""
        below, _ = self.painted([t for t in others if t.radius >= radius])
        over = [t for t in others if t.radius < radius]
        above, clear = self.painted(over, np.zeros_like(self.pixels))
        residual = self.pixels[at] - above[at] - clear[at] * below[at]
        return _Gap(residual, PALETTE[self.ground] - below[at], below[at], clear[at])


def _misses(pixels: Floats) -> Floats:
    """Squared distances (H, W, colours) to the palette, none larger than NEAR's."""
    return np.minimum(_apart(pixels), np.float32(NEAR**2))


def _apart(pixels: Floats) -> Floats:
    """Squared distances (H, W, colours) to the palette."""
    own: Floats = np.square(pixels).sum(-1, keepdims=True)
    apart: Floats = _LENGTHS - 2 * pixels @ PALETTE.T + own
    return apart


@dataclass(frozen=True)
class _Gap:
    """What is left of a window when everything but one thing is drawn.

    residual: picture less drawing (H, W, 3). below: what the thing is painted on; deep: from there
    to the ground. clear: the share of the thing that nothing above hides (H, W, 1).

    Painting a colour with an opacity, and a hole with the ground's, takes away this much squared
    error: opacity * linear - opacity² * square + what the hole does.
    """

    residual: Floats
    deep: Floats
    below: Floats
    clear: Floats

    def of_colours(self) -> tuple[Floats, Floats]:
        """`linear` and `square`, both (H, W, colours)."""
        across = self.residual @ PALETTE.T - (self.residual * self.below).sum(-1, keepdims=True)
        return 2 * self.clear * across, np.square(self.clear) * _apart(self.below)

    def of_holes(self, opacities: Floats, holes: Floats) -> Floats:
        """What the holes of rings do: (n, colours)."""
        if not self.deep.any():
            return np.zeros((len(holes), len(PALETTE)), dtype=np.float32)
        deep, clear = self.deep, np.square(self.clear)
        linear = 2 * (self.clear * self.residual * deep).sum(-1)
        square = (clear * np.square(deep)).sum(-1)
        both = 2 * clear * (deep @ PALETTE.T - (deep * self.below).sum(-1, keepdims=True))
        alone: Floats = holes @ linear.ravel() - np.square(holes) @ square.ravel()
        shared: Floats = (opacities * holes) @ both.reshape(-1, len(PALETTE))
        return alone[:, None] - shared


# ---------------------------------------------------------------------------- fitting


def _candidates(picture: Picture, things: Sequence[Drawn]) -> Iterator[Drawn]:
    """The best thing to draw on top by colour, those first that explain most pixels."""
    explained = _explained(picture, things)
    colours = np.argsort(-np.maximum(explained, 0).sum((1, 2)))[:_COLOURS]
    spectra = np.fft.rfft2(explained[colours])
    pixels = 4 * np.fft.irfft2(_spectra() * spectra, s=explained.shape[1:])
    for at in np.argsort(-pixels.max((0, 2, 3))):
        template, y, x = np.unravel_index(int(pixels[:, at].argmax()), pixels[:, at].shape)
        if pixels[template, at, y, x] >= _LEAST_HOPE:
            radius, shape = _COARSE[int(template)]
            start = Drawn(shape, int(colours[at]), radius, 2 * int(x) - _PAD, 2 * int(y) - _PAD)
            yield _fitted(picture, things, start, start.colour)


def _explained(picture: Picture, things: Sequence[Drawn]) -> Floats:
    """How far each colour explains each pixel better than what is drawn, from -1 to 1: (colours,
    _SIDE / 2, _SIDE / 2), at half the size."""
    painted, _ = picture.painted(things)
    drawn = np.square(picture.pixels - painted).sum(-1, keepdims=True)
    better = np.minimum(drawn, np.float32(NEAR**2)) - _misses(picture.pixels)
    rows = better[::2] + better[1::2]
    halved: Floats = (rows[:, ::2] + rows[:, 1::2]).transpose(2, 0, 1) / np.float32(4 * NEAR**2)
    return halved


def _settled(picture: Picture, things: Sequence[Drawn]) -> list[Drawn]:
    """All fitted again after the last was added. What has another in its middle is tried as every
    container, since the two were fitted to each other: a thing in a circle that is too large may
    pass for one in a ring."""
    best = _fitted_again(picture, things, things[-1])
    for outer in [t for t in best if any(_is_inside(other, t) for other in best)]:
        for shape in scenes.CONTAINERS:
            if shape != outer.shape and outer in best:
                swapped = replace(outer, shape=shape)
                rest = [thing for thing in best if thing != outer]
                tried = _fitted_again(picture, [*rest, swapped], swapped)
                best = min(best, tried, key=partial(_error, picture))
    return best


def _is_inside(inner: Drawn, outer: Drawn) -> bool:
    off = max(abs(inner.x - outer.x), abs(inner.y - outer.y))
    return inner.radius < outer.radius and off <= outer.radius / 2


def _error(picture: Picture, things: Sequence[Drawn]) -> float:
    return float(np.square(picture.pixels - picture.painted(things)[0]).sum())


def _fitted_again(picture: Picture, things: Sequence[Drawn], changed: Drawn) -> list[Drawn]:
    """Those that touch what has changed, in turn, until nothing changes, or _ROUNDS times."""
    things, moved = list(things), [changed]
    for _ in range(_ROUNDS):
        stale = [i for i, thing in enumerate(things) if any(_touch(thing, m) for m in moved)]
        moved = []
        for i in stale:
            before = things[i]
            things[i] = _fitted(picture, [*things[:i], *things[i + 1 :]], before)
            if things[i] != before:
                moved += [before, things[i]]
        if not moved:
            break
    return things


def _touch(one: Drawn, other: Drawn) -> bool:
    """Whether their surroundings overlap."""
    reach = one.radius + other.radius + 4
    return max(abs(one.x - other.x), abs(one.y - other.y)) < reach


def _fitted(
    picture: Picture, others: Sequence[Drawn], thing: Drawn, colour: int | None = None
) -> Drawn:
    """What takes away most error near `thing`, whatever its shape, and its colour if none is
    given."""
    x, y = (min(max(round(v), 2), CANVAS - 2) for v in (thing.x, thing.y))
    templates = _templates(thing.radius)
    gap = picture.gap(others, thing.radius, _window(x, y, templates.side))
    linear, square = gap.of_colours()
    hopes = np.maximum(linear - square, 0).sum((0, 1))
    colours = np.argsort(-hopes)[:_COLOURS] if colour is None else np.array([colour])
    linear, square = (each[..., colours].reshape(-1, len(colours)) for each in (linear, square))
    gains = templates.opacities @ linear - templates.squares @ square
    of_holes = gap.of_holes(templates.opacities[templates.rings], templates.holes)
    gains[templates.rings] += of_holes[:, colours]
    best, which = np.unravel_index(int(gains.argmax()), gains.shape)
    radius, shape, dx, dy = templates.what[int(best)]
    return Drawn(shape, int(colours[which]), radius, x + dx, y + dy)


@dataclass(frozen=True)
class _Worth:
    """What drawing a thing among others is good for: the squared error that its colour takes away,
    in pixels that it changes; and the share of the error around it that is taken away in all."""

    pixels: float
    fit: float

    @classmethod
    def of(cls, picture: Picture, things: Sequence[Drawn], thing: Drawn) -> _Worth:
        others = [other for other in things if other is not thing]
        gap = picture.gap(others, thing.radius, thing.window)
        opacity, hole = thing.opacity()
        step = gap.clear * opacity * (PALETTE[thing.colour] - gap.below)
        changed = np.square(step).sum(-1)
        gain = 2 * float((gap.residual * step).sum()) - float(changed.sum())
        pixels = gain * float(changed.sum()) / max(float(np.square(changed).sum()), 1.0)
        left = gap.residual - step - gap.clear * hole * gap.deep
        reach = int(thing.radius + 3)
        near = (slice(_PAD - reach, _PAD + reach),) * 2
        before, after = (float(np.square(each[near]).sum()) for each in (gap.residual, left))
        return cls(pixels, 1 - after / max(before, 1.0))

    @property
    def is_thing(self) -> bool:
        return self.pixels >= LEAST_GAIN and self.fit >= LEAST_FIT


# ---------------------------------------------------------------------------- against the caption


def compare(caption: Caption, ground: str | None, things: Sequence[Seen]) -> Report:
    """The report of the most favourable way to find the caption's things among those seen."""
    said = caption.things
    ways = itertools.permutations([*things, *[None] * len(said)], len(said))
    reports = [
        _report(caption, ground, way, len(things))
        for way in dict.fromkeys(ways)
        if all(seen is None or seen.colour == t.colour for t, seen in zip(said, way, strict=True))
    ]
    return max(reports, key=lambda report: (report.accuracy, -report.strangers))


def _report(caption: Caption, ground: str | None, way: Sequence[Seen | None], count: int) -> Report:
    return Report(
        background=ground == caption.background,
        things=tuple(map(_found, caption.things, way)),
        relations=tuple(map(_holds, caption.relations, way, way[1:])),
        strangers=count - sum(seen is not None for seen in way),
    )


def _found(thing: Thing, seen: Seen | None) -> Found:
    size = None if thing.size is None else seen is not None and seen.size == thing.size
    return Found(seen is not None, seen is not None and seen.shape == thing.shape, size)


def _holds(relation: str, first: Seen | None, second: Seen | None) -> bool:
    """Left and above: farther that way than aside, and farther than the larger one reaches.
    Inside: clearly smaller, and near the middle."""
    if first is None or second is None:
        return False
    right, down = (b - a for a, b in zip(first.centre, second.centre, strict=True))
    reach = max(first.radius, second.radius)
    match relation:
        case "left of":
            return right > max(abs(down), reach)
        case "above":
            return down > max(abs(right), reach)
        case _:
            within = max(abs(right), abs(down)) <= second.radius / 2
            return within and first.radius < 0.8 * second.radius
