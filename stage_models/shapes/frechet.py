"""Fréchet distance between pictures, on the features of a small classifier of scenes.

    python -m stage_models.shapes.frechet train     # writes classifier/model.safetensors
    python -m stage_models.shapes.frechet check     # how often it is right on fresh scenes

The classifier says of a picture its background and which colours, shapes and sizes are in it. It
is trained on drawn scenes of one to three things, held-out pairs included: it is a judge, not one
of the models that are judged. Its last hidden layer, 64 numbers, is what pictures are compared by:

    |m - n|^2 + tr(C + D - 2 (C D)^(1/2))

with the means m, n and the covariances C, D of two sets of pictures (Heusel et al. 2017, with
Inception's features). The unit is the classifier's own, so a distance means something only
beside others of it: the least is that of drawn scenes from other drawn scenes. It depends on the
number of pictures too; compare equal numbers.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stage_models.shapes import scenes
from stage_models.shapes.scenes import Scene

Floats = NDArray[np.float64]

WEIGHTS = Path(__file__).parent / "classifier" / "model.safetensors"
FEATURES = 64
CHECK_SEED = 10**6
"""Of scenes that the classifier was not trained on."""
_COLOURS, _SHAPES, _SIZES = tuple(scenes.COLOURS), scenes.SHAPES, tuple(scenes.RADII)
GROUPS = ("colours", "shapes", "sizes")
_GROUP_SIZES = [len(_COLOURS), len(_SHAPES), len(_SIZES)]
_HEADS = [len(_COLOURS), sum(_GROUP_SIZES)]


# ---------------------------------------------------------------------------- the classifier


class Classifier(nn.Module):
    """Pictures (B, 3, 64, 64) in [-1, 1] to scores (B, 24): background, then what is there."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = (3, 24, 48, 96, FEATURES)
        for before, after in pairwise(channels):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.SiLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.out = nn.Linear(FEATURES, sum(_HEADS))

    def features(self, pictures: Tensor) -> Tensor:
        """(B, FEATURES)."""
        hidden: Tensor = self.body(pictures)
        return hidden.mean((2, 3))

    def forward(self, pictures: Tensor) -> Tensor:
        scores: Tensor = self.out(self.features(pictures))
        return scores


def labels(scene: Scene) -> tuple[int, list[float]]:
    """The background's number, and 1.0 for every colour, shape and size that is there."""
    things = scene.caption.things
    colours, shapes = {t.colour for t in things}, {t.shape for t in things}
    present = [
        *(colour in colours for colour in _COLOURS),
        *(shape in shapes for shape in _SHAPES),
        *(size in scene.sizes for size in _SIZES),
    ]
    return _COLOURS.index(scene.caption.background), [float(p) for p in present]


def pixels(image: Image.Image) -> Tensor:
    """float32 (3, 64, 64) in [-1, 1]; other sizes are resized."""
    rgb = image.convert("RGB")
    if rgb.size != (scenes.CANVAS, scenes.CANVAS):
        rgb = rgb.resize((scenes.CANVAS, scenes.CANVAS), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(rgb, np.float32) / 127.5 - 1).permute(2, 0, 1)


@cache
def classifier() -> Classifier:
    model = Classifier()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


@torch.inference_mode()
def features(images: Sequence[Image.Image]) -> Floats:
    """(n, FEATURES), float64."""
    pictures = torch.stack([pixels(image) for image in images])
    found = torch.cat([classifier().features(part) for part in torch.split(pictures, 64)])
    return np.asarray(found.double().numpy())


# ---------------------------------------------------------------------------- the distance


def distance(first: Floats, second: Floats) -> float:
    """Fréchet distance of two sets of features (n, FEATURES) and (m, FEATURES), taken as normal.

    (C D)^(1/2) has the trace of (R D R)^(1/2) with R = C^(1/2), which is symmetric.
    """
    root = _root(np.cov(first, rowvar=False))
    second_cov = np.cov(second, rowvar=False)
    shared = np.linalg.eigvalsh(root @ second_cov @ root).clip(0)
    apart = np.square(first.mean(0) - second.mean(0)).sum()
    spread = np.square(root).sum() + np.trace(second_cov) - 2 * np.sqrt(shared).sum()
    return max(0.0, float(apart + spread))


def _root(covariance: Floats) -> Floats:
    """The symmetric square root."""
    values, vectors = np.linalg.eigh(covariance)
    root: Floats = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root


# ---------------------------------------------------------------------------- training


def drawn(rng: random.Random, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, backgrounds (count,), what is there (count, 16), half of them held-out scenes."""
    some = [scenes.sample(rng, 1 + i % 3, held_out=i % 2 == 0) for i in range(count)]
    marks = [labels(scene) for scene in some]
    return (
        torch.stack([pixels(scenes.draw(scene)) for scene in some]),
        torch.tensor([ground for ground, _ in marks]),
        torch.tensor([present for _, present in marks]),
    )


def train(updates: int, seed: int) -> Classifier:
    """Batches of 64 from a pool of scenes, 64 of which are drawn anew after every fourth update."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = Classifier().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=updates)
    pool = drawn(rng, min(4096, 64 * updates))
    for update in range(updates):
        if update % 4 == 0:
            at = rng.randrange(len(pool[0]) - 64)
            for kept, fresh in zip(pool, drawn(rng, 64), strict=True):
                kept[at : at + 64] = fresh
        chosen = torch.randint(len(pool[0]), (64,))
        pictures, grounds, present = (kept[chosen] for kept in pool)
        ground_scores, scores = torch.split(model(pictures), _HEADS, dim=1)
        loss = F.cross_entropy(ground_scores, grounds)
        loss = loss + F.binary_cross_entropy_with_logits(scores, present) * len(GROUPS)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        optimizer.step()
        rate.step()
        if update % 500 == 499:
            print(f"update {update + 1} of {updates}: loss {loss.item():.4f}", flush=True)
    return model.eval()


@torch.inference_mode()
def right(model: Classifier, count: int, seed: int) -> dict[str, float]:
    """Share of fresh scenes with the right background; with all colours right, and so on."""
    pictures, grounds, present = drawn(random.Random(seed), count)
    scores = torch.cat([model(part) for part in torch.split(pictures, 64)])
    ground_scores, rest = torch.split(scores, _HEADS, dim=1)
    good = (rest > 0) == (present > 0)
    groups = zip(GROUPS, torch.split(good, _GROUP_SIZES, dim=1), strict=True)
    found = {"background": (ground_scores.argmax(1) == grounds).float().mean().item()}
    return found | {name: each.all(1).float().mean().item() for name, each in groups}


def told(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("train", "check"))
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--scenes", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    args = parser.parse_args(argv)
    if args.part == "train":
        start = time.monotonic()
        model = train(args.updates, args.seed)
        WEIGHTS.parent.mkdir(exist_ok=True)
        save_file(model.state_dict(), WEIGHTS)
        print(f"{WEIGHTS.stat().st_size} bytes, {time.monotonic() - start:.0f} s")
        classifier.cache_clear()
    shares = right(classifier(), args.scenes, CHECK_SEED)
    print(f"right on {args.scenes} fresh scenes: {told(shares)}")


if __name__ == "__main__":
    main()
