"""Small views and tables for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping

from diffusion_edge.routing.quality import QualityRow, QualityTable
from diffusion_edge.types import ImageRequest, Link, StageStatus, Tier, View

TIER: Mapping[str, Tier] = {"device": "device", "edge": "edge", "cloud": "cloud"}


def stage(name: str, step_s: float, queue_s: float = 0.0, **kw: float) -> StageStatus:
    return StageStatus(
        stage=name,
        tier=TIER[name],
        model=name,
        queue_s=queue_s,
        queued=int(kw.get("queued", 0)),
        capacity=int(kw.get("capacity", 32)),
        step_s={1: step_s, 2: kw.get("guided_s", step_s)},
        encode_s=kw.get("encode_s", 0.0),
        decode_s=kw.get("decode_s", 0.0),
        resident_bytes=0,
    )


def view(
    *stages: StageStatus,
    bytes_per_s: float = 1e9,
    delay_s: float = 0.0,
    prices: Mapping[Tier, float] | None = None,
    nbytes: int = 10_000,
) -> View:
    """Every two stages are linked alike."""
    names = [s.stage for s in stages]
    links = {(a, b): Link(bytes_per_s, delay_s) for a in names for b in names if a != b}
    prices = prices or {"device": 0.0, "edge": 1.0, "cloud": 4.0}
    return View({s.stage: s for s in stages}, links, prices, nbytes)


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


def row(accuracy: float, **shares: float) -> QualityRow:
    return QualityRow(stages=tuple(shares), shares=tuple(shares.values()), accuracy=accuracy, n=64)


def table(*rows: QualityRow) -> QualityTable:
    return QualityTable(
        family="shapes",
        metric="attribute accuracy",
        steps=20,
        solver="ddim",
        guidance=3.0,
        seed=0,
        captions=64,
        versions={},
        measured="2026-01-01",
        rows=rows,
    )


def symmetric(device: float = 0.4, edge: float = 0.7, cloud: float = 1.0) -> QualityTable:
    """Quality that depends on the shares alone, not on the order of the stages."""
    alone = {"device": device, "edge": edge, "cloud": cloud}
    pairs = [(a, b) for a in alone for b in alone if a != b]
    return table(
        *(row(value, **{name: 1.0}) for name, value in alone.items()),
        *(row((alone[a] + alone[b]) / 2, **{a: 0.5, b: 0.5}) for a, b in pairs),
    )
