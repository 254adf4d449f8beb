"""Plots of a quality table, and a page that says what they show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffusion_edge.config import read_text
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.routing.quality import Interval, OrderRow, QualityRow, QualityTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = ("<!-- written by diffusion-edge plots -->", "<!-- end of what it wrote -->")
BLUE, VERMILLION, BLACK, GREY = "#0072B2", "#D55E00", "#000000", "#666666"
"""Of the palette of Okabe and Ito, which people with any colour vision can tell apart."""


def write_page(table: QualityTable, page: Path, command: str) -> list[Path]:
    """Writes between the marks of `page`, which is begun if it is not there, and draws a plot for
    every pair of stages beside it. `command` is what measured the table. Returns the files."""
    if not page.exists():
        page.write_text(f"# Quality of {table.family}\n\n" + "\n".join(MARKS) + "\n")
    text = read_text(page)
    plots = {pair: page.with_name(f"{page.stem}-{'-'.join(pair)}.png") for pair in _pairs(table)}
    written = between(text, MARKS, "\n".join(_lines(table, plots, command)), page)
    for pair, file in plots.items():
        draw(table, *pair, file)
    page.write_text(written)
    return [page, *plots.values()]


def between(page: str, marks: tuple[str, str], text: str, where: Path) -> str:
    """The page with `text` in place of what stands between its marks. Raises InvalidRequest."""
    head, first, rest = page.partition(marks[0])
    _, last, tail = rest.partition(marks[1])
    if not first or not last:
        raise InvalidRequest(f"{where} lacks the lines {marks[0]!r} and {marks[1]!r}")
    return f"{head}{first}\n{text}\n{last}{tail}"


def _pairs(table: QualityTable) -> list[tuple[str, str]]:
    """Every two stages, the smaller one first."""
    return list(dict.fromkeys((row.small, row.large) for row in table.orders))


# ---------------------------------------------------------------------------- plots


def draw(table: QualityTable, small: str, large: str, file: Path) -> None:
    """Quality against the hand-off step in both orders of two stages, to a PNG file."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidRequest("plots need matplotlib: pip install 'diffusion-edge[docs]'") from None
    counts = sorted({row.steps for row in table.orders})
    figure = Figure(figsize=(1.0 + 4.6 * len(counts), 4.6), layout="constrained")
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for panel, steps in zip(panels, counts, strict=True):
        _panel(panel, table, small, large, steps)
        panel.set_title(f"{steps} steps")
        panel.set_xlabel(f"hand-off step: steps on the first stage, of {steps}")
    panels[0].set_ylabel(f"quality (% of {table.reference} alone)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=1 + len(counts), fontsize="small"
    )
    figure.suptitle(f"{table.family}: {small} and {large}")
    figure.savefig(file, dpi=110, metadata={"Software": None})


def _panel(panel: Axes, table: QualityTable, small: str, large: str, steps: int) -> None:
    handoffs = np.arange(1, steps)
    for order, colour, marker in (((small, large), VERMILLION, "^"), ((large, small), BLUE, "o")):
        rows = sorted(_rows(table, order, steps), key=lambda row: row.steps)
        at = [row.steps[0] for row in rows]
        low, high = ([100 * row.relative_interval[side] for row in rows] for side in (0, 1))
        name = f"{order[0]} first"
        panel.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
        means = [100 * row.relative for row in rows]
        panel.plot(at, means, marker, color=colour, label=f"{name}, measured with 95 % band")
        curve = 100 * table.relative_all(order, (handoffs, steps - handoffs))
        panel.plot(handoffs, curve, color=colour, linewidth=1.2, label=f"{name}, the model")
    for stage, colour, dashes in ((large, BLACK, "--"), (small, GREY, ":")):
        (alone,) = _rows(table, (stage,), steps)
        panel.axhline(100 * alone.relative, color=colour, linestyle=dashes, label=f"{stage} alone")
    panel.set_xlim(0, steps)
    panel.locator_params(axis="x", integer=True)
    panel.grid(alpha=0.25)


def _rows(table: QualityTable, order: tuple[str, ...], steps: int) -> list[QualityRow]:
    return [row for row in table.rows if row.stages == order and sum(row.steps) == steps]


# ---------------------------------------------------------------------------- the page


def _lines(table: QualityTable, plots: dict[tuple[str, str], Path], command: str) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in table.versions.items())
    yield (
        f"Measured on {table.measured} by `{command}`: metric `{table.metric}`, {table.captions} "
        f"prompts (from {table.prompts}), prompt i drawn with seed {table.seed} + i, "
        f"{table.solver}, guidance {table.guidance:g}, {table.size} pixels; weights "
        f"`{table.weights[:12]}`; {versions}. All plans draw the same prompts with the same seeds, "
        "so they are compared picture by picture."
    )
    yield from ("", "| alone | steps | score, 95 % | quality, 95 % |", "|---|---|---|---|")
    for row in table.rows:
        if len(row.stages) == 1:
            score = f"{row.score:.3f} ({row.interval[0]:.3f} to {row.interval[1]:.3f})"
            quality = _percent(row.relative, row.relative_interval)
            yield f"| `{row.stages[0]}` | {row.steps[0]} | {score} | {quality} |"
    yield ""
    for (small, large), file in plots.items():
        yield f"![quality of {small} and {large} against the hand-off step]({file.name})"
    yield from ("", "**Which order is better**, with as many steps on each stage:", "")
    yield from (
        "| stages | steps | quality, smaller first less larger first, 95 % | better first |",
        "|---|---|---|---|",
    )
    for order in table.orders:
        difference = _points(order.difference, order.interval)
        pair = f"`{order.small}`, `{order.large}`"
        yield f"| {pair} | {order.steps} | {difference} | {_better(order)} |"
    yield from ("", *_best(table), "", _model(table))


def _percent(value: float, interval: Interval) -> str:
    low, high = interval
    return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _points(value: float, interval: Interval) -> str:
    low, high = interval
    return f"{100 * value:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"


def _better(order: OrderRow) -> str:
    low, high = order.interval
    if low > 0:
        return f"`{order.small}`"
    return f"`{order.large}`" if high < 0 else "neither is shown to be"


def _best(table: QualityTable) -> Iterator[str]:
    """The best measured plans with little of the reference."""
    yield f"**The best plan with at most a third of its steps on `{table.reference}`**:"
    yield from ("", "| steps | plan | quality, 95 % |", "|---|---|---|")
    for steps in sorted({sum(row.steps) for row in table.rows}):
        rows = [row for row in table.rows if sum(row.steps) == steps]
        few = [row for row in rows if 3 * _steps_on(row, table.reference) <= steps]
        best = max(few, key=lambda row: row.relative, default=None)
        if best is not None:
            quality = _percent(best.relative, best.relative_interval)
            yield f"| {steps} | `{best.plan}` | {quality} |"
    yield ""
    yield (
        "It is the best of many on the same pictures, and so looks a little better than it is; "
        "its interval does not know that."
    )


def _steps_on(row: QualityRow, stage: str) -> int:
    return sum(n for name, n in zip(row.stages, row.steps, strict=True) if name == stage)


def _model(table: QualityTable) -> str:
    left = table.model.left_out
    known: Sequence[QualityRow] = [row for row in table.rows if row.stages != (table.reference,)]
    width = np.mean([row.relative_interval[1] - row.relative for row in known]) if known else 0.0
    if left is None:
        return "The model between the rows could not be tested: there are too few rows."
    return (
        f"**Between the rows** the router uses the model's curves (power {table.model.power:.2f}). "
        f"Fitted without a row, it is off there by {100 * left.mean:.1f} points of quality on "
        f"average and {100 * left.largest:.1f} at most ({left.rows} rows); a row's own 95 % "
        f"interval reaches {100 * width:.1f} points to either side on average."
    )
