"""Scenes of coloured shapes: what can be in one, how it is said, how it is drawn.

A scene is one to three objects on a plain background. Its caption is a chain:

    a small blue star left of a large yellow square above a ring on a black background

means that the star is left of the square and the square is above the ring. Sizes may be left
unsaid. Lengths are in units of a 64 x 64 canvas, and centres lie on a grid of 16 units, which is
two cells of the latent; `draw` scales to any size.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations

from PIL import Image, ImageDraw

CANVAS = 64
GRID = 16

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (226, 32, 40),
    "orange": (255, 140, 0),
    "yellow": (255, 228, 30),
    "green": (30, 160, 60),
    "blue": (30, 80, 230),
    "purple": (145, 35, 180),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
RADII: dict[str, float] = {"small": 7.0, "large": 14.0}
RELATIONS = ("left of", "above", "inside")
CONTAINERS = ("circle", "square", "ring")
"""Shapes that can hold a small object whole."""

HELD_OUT = frozenset(
    {
        ("purple", "star"),
        ("orange", "ring"),
        ("green", "cross"),
        ("white", "triangle"),
        ("blue", "square"),
        ("yellow", "circle"),
    }
)
"""Pairs of colour and shape that no training scene contains."""

WORDS = tuple(
    sorted(
        {"a", "an", "on", "background", "small", "large", *COLOURS, *SHAPES}
        | {word for relation in RELATIONS for word in relation.split()}
    )
)
RING_HOLE = 0.6
_GAP = 1.0
_OVERSAMPLE = 4
_APART = 80.0
"""Least distance, in RGB, of the colours of a recoloured scene."""


@dataclass(frozen=True)
class Thing:
    """One object. `size` None means that the caption leaves it unsaid."""

    shape: str
    colour: str
    size: str | None = None


@dataclass(frozen=True)
class Caption:
    """What a sentence says: `relations[i]` holds between `things[i]` and `things[i + 1]`."""

    things: tuple[Thing, ...]
    relations: tuple[str, ...]
    background: str

    def __str__(self) -> str:
        words = [_noun_phrase(self.things[0])]
        for relation, thing in zip(self.relations, self.things[1:], strict=True):
            words += [relation, _noun_phrase(thing)]
        return " ".join(words) + f" on {_article(self.background)} {self.background} background"


@dataclass(frozen=True)
class Scene:
    """A caption with every size settled and a centre (x, y) for every object."""

    caption: Caption
    sizes: tuple[str, ...]
    centres: tuple[tuple[int, int], ...]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _noun_phrase(thing: Thing) -> str:
    words = [w for w in (thing.size, thing.colour, thing.shape) if w]
    return " ".join([_article(words[0]), *words])


def parse(text: str) -> Caption | None:
    """The caption that a sentence of the grammar states, or None for any other text."""
    body, separator, ground = text.lower().strip().rstrip(".").rpartition(" on ")
    ground_words = ground.split()
    if not separator or len(ground_words) != 3 or ground_words[2] != "background":
        return None
    things: list[Thing] = []
    relations: list[str] = []
    words = body.split()
    while words:
        if things:
            relation = next((r for r in RELATIONS if words[: len(r.split())] == r.split()), None)
            if relation is None:
                return None
            relations.append(relation)
            words = words[len(relation.split()) :]
        if not words or words.pop(0) not in ("a", "an"):
            return None
        size = words.pop(0) if words and words[0] in RADII else None
        if len(words) < 2 or words[0] not in COLOURS or words[1] not in SHAPES:
            return None
        things.append(Thing(words[1], words[0], size))
        words = words[2:]
    if not 1 <= len(things) <= 3 or ground_words[1] not in COLOURS:
        return None
    return Caption(tuple(things), tuple(relations), ground_words[1])


def sample(rng: random.Random, things: int, held_out: bool = False) -> Scene:
    """A random scene of `things` objects; `held_out` asks for at least one held-out pair.

    Objects and background all differ in colour, so that a picture can be read back.
    """
    while True:
        background, *colours = rng.sample(list(COLOURS), things + 1)
        pairs = [(colour, rng.choice(SHAPES)) for colour in colours]
        if held_out != any(pair in HELD_OUT for pair in pairs):
            continue
        relations = tuple(rng.choices(RELATIONS, weights=(2, 2, 3))[0] for _ in range(things - 1))
        sizes = tuple(rng.choice(("small", "large")) for _ in pairs)
        said = tuple(
            Thing(shape, colour, size if rng.random() < 0.8 else None)
            for (colour, shape), size in zip(pairs, sizes, strict=True)
        )
        scene = place(rng, Caption(said, relations, background), sizes)
        if scene is not None:
            return scene


def place(rng: random.Random, caption: Caption, sizes: Sequence[str]) -> Scene | None:
    """Centres that satisfy the caption's relations, or None where some relation cannot hold."""
    centres: list[tuple[int, int]] = []
    for index in range(len(caption.things)):
        free = [
            centre
            for centre in _cells(RADII[sizes[index]])
            if all(
                _agrees(caption, sizes, (other, centres[other]), (index, centre))
                for other in range(index)
            )
        ]
        if not free:
            return None
        centres.append(rng.choice(free))
    return Scene(caption, tuple(sizes), tuple(centres))


def _cells(radius: float) -> Iterator[tuple[int, int]]:
    span = [c for c in range(GRID, CANVAS, GRID) if radius < c < CANVAS - radius]
    yield from ((x, y) for y in span for x in span)


def _agrees(
    caption: Caption,
    sizes: Sequence[str],
    first: tuple[int, tuple[int, int]],
    second: tuple[int, tuple[int, int]],
) -> bool:
    (i, (ax, ay)), (j, (bx, by)) = first, second
    reach = RADII[sizes[i]] + RADII[sizes[j]] + _GAP
    if j != i + 1:
        return max(abs(ax - bx), abs(ay - by)) >= reach
    match caption.relations[i]:
        case "left of":
            return bx - ax >= reach and ay == by
        case "above":
            return by - ay >= reach and ax == bx
        case _:
            holds = (sizes[i], sizes[j]) == ("small", "large")
            return holds and caption.things[j].shape in CONTAINERS and (ax, ay) == (bx, by)


def draw(scene: Scene, size: int = CANVAS, colours: Mapping[str, Rgb] = COLOURS) -> Image.Image:
    """The scene as an RGB image of size x size pixels, antialiased; `colours` by name."""
    scale = size * _OVERSAMPLE / CANVAS
    ground = colours[scene.caption.background]
    image = Image.new("RGB", (size * _OVERSAMPLE, size * _OVERSAMPLE), ground)
    pen = ImageDraw.Draw(image)
    order = sorted(range(len(scene.sizes)), key=lambda i: -RADII[scene.sizes[i]])
    for i in order:
        thing, (x, y) = scene.caption.things[i], scene.centres[i]
        radius = RADII[scene.sizes[i]] * scale
        _stroke(pen, thing.shape, x * scale, y * scale, radius, colours[thing.colour], ground)
    return image.resize((size, size), Image.Resampling.BOX)


def recoloured(rng: random.Random, scene: Scene) -> dict[str, Rgb]:
    """Other colours for the scene's names: some of the family's, some around one that the thing's
    shape is held out of, the rest any; apart from each other, none that makes a held-out pair."""
    found: dict[str, Rgb] = {}
    shapes = {thing.colour: thing.shape for thing in scene.caption.things}
    for name in (scene.caption.background, *shapes):
        missed = [c for c, shape in sorted(HELD_OUT) if shape == shapes.get(name)]
        draws: list[Callable[[random.Random], Rgb]] = [_any_colour, _named_colour]
        draws += [partial(_around, name=colour) for colour in missed]
        while True:
            colour = rng.choice(draws)(rng)
            apart = all(math.dist(colour, other) > _APART for other in found.values())
            if apart and (name not in shapes or not _is_held_out(colour, shapes[name])):
                break
        found[name] = colour
    return found


def _any_colour(rng: random.Random) -> Rgb:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def _named_colour(rng: random.Random) -> Rgb:
    return rng.choice(list(COLOURS.values()))


def _around(rng: random.Random, name: str) -> Rgb:
    """Up to 120 from a named colour, in RGB."""
    away = [rng.gauss(0, 1) for _ in range(3)]
    scale = rng.uniform(0, 120) / math.hypot(*away)
    pairs = zip(COLOURS[name], away, strict=True)
    red, green, blue = (min(255, max(0, round(c + scale * d))) for c, d in pairs)
    return red, green, blue


def mixed(first: str, second: str, share: float) -> Rgb:
    """`share` of the second of two named colours, the rest of the first."""
    pairs = zip(COLOURS[first], COLOURS[second], strict=True)
    red, green, blue = (round(a + share * (b - a)) for a, b in pairs)
    return red, green, blue


def _is_held_out(colour: Rgb, shape: str) -> bool:
    """Whether the colour is one that `shape` is held out of, or near and like no other name's."""
    name = min(COLOURS, key=lambda name: math.dist(colour, COLOURS[name]))
    return (name, shape) in HELD_OUT and math.dist(colour, COLOURS[name]) <= _APART


def blended(rng: random.Random, scene: Scene) -> tuple[Caption, float, dict[str, Rgb]]:
    """The scene with some colours on the way to others: a caption of those others, how far it is,
    in [0, 0.5], and what the scene's names look like there. As `recoloured`, it keeps things apart
    and away from held-out pairs."""
    names = (scene.caption.background, *(thing.colour for thing in scene.caption.things))
    while True:
        share = rng.uniform(0, 0.5)
        others = {
            name: rng.choice(list(COLOURS) if rng.random() < 0.5 else [name]) for name in names
        }
        found = {name: mixed(name, other, share) for name, other in others.items()}
        pairs = combinations(found.values(), 2)
        things = scene.caption.things
        if all(math.dist(*pair) > _APART for pair in pairs) and not any(
            _is_held_out(found[thing.colour], thing.shape) for thing in things
        ):
            said = tuple(replace(thing, colour=others[thing.colour]) for thing in things)
            ground = others[scene.caption.background]
            return Caption(said, scene.caption.relations, ground), share, found


def silhouette(shape: str, radius: float, offset: tuple[float, float], size: int) -> Image.Image:
    """One shape in white on black, mode L, `offset` (x, y) off the middle of size x size pixels."""
    image = Image.new("RGB", (size * _OVERSAMPLE, size * _OVERSAMPLE), (0, 0, 0))
    x, y = ((size / 2 + shift) * _OVERSAMPLE for shift in offset)
    pen = ImageDraw.Draw(image)
    _stroke(pen, shape, x, y, radius * _OVERSAMPLE, (255, 255, 255), (0, 0, 0))
    return image.resize((size, size), Image.Resampling.BOX).convert("L")


def _stroke(
    pen: ImageDraw.ImageDraw,
    shape: str,
    x: float,
    y: float,
    r: float,
    colour: tuple[int, int, int],
    ground: tuple[int, int, int],
) -> None:
    match shape:
        case "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        case "ring":
            hole = r * RING_HOLE
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=ground)
        case "square":
            half = 0.88 * r
            pen.rectangle((x - half, y - half, x + half, y + half), fill=colour)
        case "cross":
            arm = 0.34 * r
            pen.rectangle((x - r, y - arm, x + r, y + arm), fill=colour)
            pen.rectangle((x - arm, y - r, x + arm, y + r), fill=colour)
        case "triangle":
            pen.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=colour)
        case "star":
            pen.polygon(
                [
                    (x + k * r * math.sin(a), y - k * r * math.cos(a))
                    for n in range(10)
                    for a, k in [(n * math.pi / 5, 1.0 if n % 2 == 0 else 0.45)]
                ],
                fill=colour,
            )
        case _:
            raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def fully_said(scene: Scene) -> Scene:
    """The same scene with every size spoken."""
    things = tuple(
        replace(t, size=s) for t, s in zip(scene.caption.things, scene.sizes, strict=True)
    )
    return replace(scene, caption=replace(scene.caption, things=things))
