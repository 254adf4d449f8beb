"""Small views and tables for the tests of this folder.

Stages are called otherwise than their models, so that neither passes for the other: the table and
the prices know models and tiers, plans and links know stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from diffusion_edge.plan import MAX_STEPS, Tier
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.losses import Model, StageCurve
from diffusion_edge.routing.quality import QualityRow, QualityTable, SizeQuality
from diffusion_edge.view import Held, Link, StageStatus, View

CELLS = 64
"""Of the latent of a picture of 64 pixels: what stages know and requests ask for."""

MODEL: Mapping[str, Tier] = {"phone": "device", "tower": "edge", "hall": "cloud"}
"""By stage. Every model has the name of the tier that it runs on."""


def stage(name: str, step_s: float, queue_s: float = 0.0, **kw: float) -> StageStatus:
    """It has one image to do first, which takes `queue_s`, in one step."""
    guided_s = kw.get("guided_s", step_s)
    # Beyond the two rows that are known all goes with cells.
    cells = round(2 * CELLS * queue_s / guided_s) if queue_s else 0
    held = (Held("before", 0, 1, 1, cells, -1.0, encodes=False, decodes=False),) if cells else ()
    return StageStatus(
        stage=name,
        tier=MODEL[name],
        model=MODEL[name],
        queue_s=queue_s,
        queued=int(kw.get("queued", 0)),
        capacity=int(kw.get("capacity", 32)),
        step_s={CELLS: {1: step_s, 2: guided_s}},
        encode_s=kw.get("encode_s", 0.0),
        decode_s={CELLS: kw.get("decode_s", 0.0)},
        resident_bytes=0,
        held=held,
    )


def view(
    *stages: StageStatus,
    bytes_per_s: float = 1e9,
    delay_s: float = 0.0,
    prices: Mapping[Tier, float] | None = None,
    nbytes: int = 10_000,
) -> View:
    """`bytes_per_s` and `delay_s` are those of the way from a stage to one that is given after it;
    the way back is half as good. A packet has `nbytes` at step 0 and grows with every step."""
    ways = list(combinations([s.stage for s in stages], 2))
    links = {(a, b): Link(bytes_per_s, delay_s) for a, b in ways}
    links |= {(b, a): Link(bytes_per_s / 2, 2 * delay_s) for a, b in ways}
    prices = prices or {"device": 0.0, "edge": 1.0, "cloud": 4.0}
    steps = range(MAX_STEPS + 1)
    sizes = tuple(nbytes + nbytes * step // 1000 for step in steps)
    codecs = tuple("exact" for _ in steps)
    return View({s.stage: s for s in stages}, links, prices, sizes, codecs, CELLS)


def request(**kw: object) -> ImageRequest:
    settled: dict[str, object] = {
        "prompt": "a red circle on a white background",
        "family": "shapes",
        "steps": 20,
        "seed": 1,
        "solver": "ddim",
        "guidance": 3.0,
        "width": 64,
        "height": 64,
        "quality_floor": 0.9,
        "deadline_s": 10.0,
    }
    return ImageRequest(**(settled | kw))  # type: ignore[arg-type]


def row(score: float, **steps: int) -> QualityRow:
    around = (score - 0.01, score + 0.01)
    return QualityRow(
        stages=tuple(steps),
        steps=tuple(steps.values()),
        score=score,
        interval=around,
        relative=score,
        relative_interval=around,
        n=64,
    )


def table(
    *rows: QualityRow, model: Model | None = None, low: Model | None = None, size: int = 64
) -> QualityTable:
    """Of one size, relative to the cloud in 20 steps. Without `low`, bounds are as estimates."""
    found = model or Model(power=1.0, curves=())
    return QualityTable(
        family="shapes",
        metric="attribute accuracy",
        steps=20,
        solver="ddim",
        guidance=3.0,
        confidence=0.95,
        weights="",
        versions={},
        sizes=(
            SizeQuality(
                size=size,
                seed=0,
                prompts="nowhere",
                captions=64,
                measured="2026-01-01",
                model=found,
                low=low or found,
                rows=rows,
            ),
        ),
    )


def with_model(known: QualityTable, model: Model, low: Model | None = None) -> QualityTable:
    """The same rows; other models of what is between them."""
    sizes = [e.model_copy(update={"model": model, "low": low or model}) for e in known.sizes]
    return known.model_copy(update={"sizes": tuple(sizes)})


def symmetric(device: float = 0.4, edge: float = 0.7, cloud: float = 1.0) -> QualityTable:
    """Quality that depends on the shares alone, not on the order of the stages."""
    alone = {"device": device, "edge": edge, "cloud": cloud}
    pairs = [(a, b) for a in alone for b in alone if a != b]
    curves = tuple(
        StageCurve(stage=name, steps=20, loss=(0.0, 1 - value / cloud))
        for name, value in alone.items()
        if name != "cloud"
    )
    return table(
        *(row(value, **{name: 20}) for name, value in alone.items()),
        *(row((alone[a] + alone[b]) / 2, **{a: 10, b: 10}) for a, b in pairs),
        model=Model(power=1.0, curves=curves),
    )


def late() -> QualityTable:
    """As `symmetric`, but what the smaller models lose they lose in the last steps."""
    curves = tuple(
        curve.model_copy(update={"loss": (0.0, 0.1 * curve.loss[-1], curve.loss[-1])})
        for curve in symmetric().sizes[0].model.curves
    )
    return with_model(symmetric(), Model(power=1.0, curves=curves))
