"""Plots of policies side by side, and of one run over time. Matplotlib is imported when it is
needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_edge.bench.proof.figures import OURS, Point
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.plan import Plan
from diffusion_edge.profile.plots import BLACK, BLUE, GREY, VERMILLION
from diffusion_edge.sim.tally import Tally

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OTHERS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", BLUE, GREY)
"""Of the palette of Okabe and Ito; dashes and markers tell apart what shares a colour."""
DASHES, MARKERS = ("-", "--", ":", "-."), "osD^vPX*<>hp"


def draw_all(
    points: Sequence[Point], by_load: Sequence[Point], folder: Path, stem: str = ""
) -> list[Path]:
    """The files. stem: that their names begin with."""
    drawn = misses(by_load, folder / f"{stem}misses.png")
    return [*drawn, *frontier(points, folder / f"{stem}frontier.png")]


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidRequest("plots need matplotlib: pip install 'diffusion-edge[docs]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def _saved(figure: Figure, file: Path) -> Path:
    figure.savefig(file, dpi=110, metadata={"Software": None})
    return file


def _styles(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """By policy, always the same for as many."""
    styles: dict[str, dict[str, Any]] = {}
    names = dict.fromkeys(point.policy for point in points)
    for k, name in enumerate(name for name in names if name != OURS):
        line = DASHES[k // len(OTHERS) % len(DASHES)]
        colour, marker = OTHERS[k % len(OTHERS)], MARKERS[k % len(MARKERS)]
        styles[name] = {"color": colour, "linestyle": line, "marker": marker, "linewidth": 1.2}
    if OURS not in names:
        return styles
    return {OURS: {"color": VERMILLION, "marker": "o", "linewidth": 2.4}} | styles


# ---------------------------------------------------------------------------- policies


def misses(by_load: Sequence[Point], file: Path) -> Iterator[Path]:
    """Misses against load, of every policy; nothing of one load."""
    known = [point for point in by_load if point.load is not None]
    if len({point.load for point in known}) < 2:
        return
    figure = _figure(8.0, 4.8)
    panel = figure.subplots()
    for name, style in _styles(known).items():
        own = sorted((p.load or 0.0, 100 * p.misses) for p in known if p.policy == name)
        panel.plot(*zip(*own, strict=True), label=name, markersize=4, **style)
    panel.set_xlabel("load")
    panel.set_ylabel("deadline misses (% of all requests)")
    panel.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize="small")
    yield _saved(figure, file)


def frontier(points: Sequence[Point], file: Path) -> Iterator[Path]:
    """Quality against latency and against cost, both over cloud-only's; policies without a picture
    or a cloud-only beside them are not on it."""
    known = [p for p in points if None not in (p.latency, p.cost, p.quality)]
    if not known:
        return
    figure = _figure(9.6, 4.8)
    left, right = figure.subplots(1, 2, sharey=True)
    for panel, what in ((left, "latency"), (right, "cost")):
        _panel(panel, known, what)
        panel.set_xlabel(f"{what} (over that of cloud-only)")
        panel.grid(alpha=0.25)
    left.set_ylabel("quality (% of the reference)")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    yield _saved(figure, file)


def _panel(panel: Axes, points: Sequence[Point], what: str) -> None:
    """The frontier itself: nothing is both cheaper (or faster) and better than what is on it."""
    styles = _styles(points)
    for point in points:
        style = {key: styles[point.policy][key] for key in ("color", "marker")}
        at = getattr(point, what), 100 * (point.quality or 0.0)
        panel.plot(*at, linestyle="", label=point.policy, markersize=8, **style)
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (getattr(p, what), -(p.quality or 0.0))):
        if not front or 100 * (point.quality or 0.0) > front[-1][1]:
            front.append((getattr(point, what), 100 * (point.quality or 0.0)))
    panel.step(*zip(*front, strict=True), where="post", color=GREY, linewidth=0.8, zorder=0)


# ---------------------------------------------------------------------------- one run


def timeline(told: Tally, title: str, file: Path, events: Sequence[tuple[float, str]] = ()) -> Path:
    """Of every request, when it came: the steps by stage, and its seconds as predicted and as they
    were. events: moments, and what happened then."""
    figure = _figure(9.6, 6.4)
    above, below = figure.subplots(2, 1, sharex=True)
    at_s = np.array(told.at_s)
    _handoffs(above, told, at_s)
    above.set_ylabel("steps on each stage")
    below.plot(at_s, told.latency_s, "o", markersize=3, color=BLACK, label="actual")
    below.plot(at_s, told.predicted_s, "_", markersize=6, color=VERMILLION, label="predicted")
    below.plot(at_s, told.deadline_s, ":", color=GREY, label="deadline")
    below.set_ylabel("seconds")
    below.set_xlabel("when it came (s)")
    below.set_ylim(bottom=0.0)
    for time_s, what in events:
        for panel in (above, below):
            panel.axvline(time_s, color=GREY, linestyle="--", linewidth=0.8)
        above.annotate(what, (time_s, 1.02), xycoords=("data", "axes fraction"), fontsize="small")
    for panel in (above, below):
        panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
        panel.grid(alpha=0.25)
    figure.suptitle(title)
    return _saved(figure, file)


def _handoffs(panel: Axes, told: Tally, at_s: Any) -> None:
    """A bar for every request until the next one, from its first step upwards: where colours meet
    is a hand-off step. Nothing where it was refused."""
    texts = [told.plan(number) for number in range(len(told))]
    plans = [Plan.parse(text, reason="").spans if text else () for text in texts]
    widths = np.diff(at_s, append=2 * at_s[-1] - at_s[-2] if len(at_s) > 1 else 1.0)
    bars = [
        (span.stage, at, width, span.start, span.steps)
        for at, width, spans in zip(at_s, widths, plans, strict=True)
        for span in spans
    ]
    stages = sorted({bar[0] for bar in bars})
    for colour, stage in zip((BLUE, *OTHERS), stages, strict=False):
        own = [bar[1:] for bar in bars if bar[0] == stage]
        xs, wide, starts, heights = zip(*own, strict=True)
        panel.bar(xs, heights, wide, starts, align="edge", color=colour, label=stage)
