"""Plots of a quality table, and a page that says what they show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffusion_edge import markdown
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.routing.quality import (
    Interval,
    OrderRow,
    QualityRow,
    QualityTable,
    SizeQuality,
)
from diffusion_edge.strict import read_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = markdown.marks("diffusion-edge plots")
BLUE, VERMILLION, BLACK, GREY = "#0072B2", "#D55E00", "#000000", "#666666"
"""Of the palette of Okabe and Ito, which people with any colour vision can tell apart."""


def write_page(table: QualityTable, page: Path, commands: Mapping[int, str]) -> list[Path]:
    """Writes between the marks of `page`, which is begun if it is not there, and draws a plot for
    every size and pair of stages beside it. `commands` has by size what measured it. Returns the
    files."""
    if not page.exists():
        page.write_text(f"# Quality of {table.family}\n\n" + "\n".join(MARKS) + "\n")
    text, files, lines = read_text(page), [page], []
    for each in table.sizes:
        plots = {pair: _file(page, each, pair) for pair in _pairs(each)}
        for pair, file in plots.items():
            draw(table, each, *pair, file)
        files += plots.values()
        lines += ["", f"### {each.size} pixels", "", *_lines(table, each, plots, commands)]
    page.write_text(markdown.between(text, MARKS, "\n".join(lines[1:]), page))
    return files


def _file(page: Path, each: SizeQuality, pair: tuple[str, str]) -> Path:
    return page.with_name(f"{page.stem}-{each.size}-{'-'.join(pair)}.png")


def _pairs(each: SizeQuality) -> list[tuple[str, str]]:
    """Every two stages, the smaller one first."""
    return list(dict.fromkeys((row.small, row.large) for row in each.orders))


# ---------------------------------------------------------------------------- plots


def draw(table: QualityTable, each: SizeQuality, small: str, large: str, file: Path) -> None:
    """Quality against the hand-off step in both orders of two stages, to a PNG file."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidRequest("plots need matplotlib: pip install 'diffusion-edge[docs]'") from None
    counts = sorted({row.steps for row in each.orders})
    figure = Figure(figsize=(1.0 + 4.6 * len(counts), 4.6), layout="constrained")
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for panel, steps in zip(panels, counts, strict=True):
        _panel(panel, each, small, large, steps)
        panel.set_title(f"{steps} steps")
        panel.set_xlabel(f"hand-off step: steps on the first stage, of {steps}")
    panels[0].set_ylabel(f"quality (% of {table.reference}:{table.steps})")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=1 + len(counts), fontsize="small"
    )
    figure.suptitle(f"{table.family}, {each.size} pixels: {small} and {large}")
    figure.savefig(file, dpi=110, metadata={"Software": None})


def _panel(panel: Axes, each: SizeQuality, small: str, large: str, steps: int) -> None:
    handoffs = np.arange(1, steps)
    for order, colour, marker in (((small, large), VERMILLION, "^"), ((large, small), BLUE, "o")):
        rows = sorted(_rows(each, order, steps), key=lambda row: row.steps)
        at = [row.steps[0] for row in rows]
        low, high = ([100 * row.relative_interval[side] for row in rows] for side in (0, 1))
        name = f"{order[0]} first"
        panel.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
        means = [100 * row.relative for row in rows]
        panel.plot(at, means, marker, color=colour, label=f"{name}, measured with 95 % band")
        told = order, (handoffs, steps - handoffs)
        curve, bound = 100 * each.model.quality(*told), 100 * each.low.quality(*told)
        panel.plot(handoffs, curve, color=colour, linewidth=1.2, label=f"{name}, the model")
        panel.plot(handoffs, bound, "-.", color=colour, linewidth=0.8, label=f"{name}, the bound")
    for stage, colour, dashes in ((large, BLACK, "--"), (small, GREY, ":")):
        (alone,) = _rows(each, (stage,), steps)
        panel.axhline(100 * alone.relative, color=colour, linestyle=dashes, label=f"{stage} alone")
    panel.set_xlim(0, steps)
    panel.locator_params(axis="x", integer=True)
    panel.grid(alpha=0.25)


def _rows(each: SizeQuality, order: tuple[str, ...], steps: int) -> list[QualityRow]:
    return [row for row in each.rows if row.stages == order and row.total == steps]


# ---------------------------------------------------------------------------- the page


ALONE = ("alone", "steps", "pictures", "score, 95 %", "quality, 95 %", "bound")
ORDERS = ("stages", "steps", "quality, smaller first less larger first, 95 %", "better first")


def _lines(
    table: QualityTable,
    each: SizeQuality,
    plots: Mapping[tuple[str, str], Path],
    commands: Mapping[int, str],
) -> Iterator[str]:
    yield (
        f"Measured on {each.measured} by `{commands[each.size]}`: metric `{table.metric}`, "
        f"{each.captions} prompts at most (from {each.prompts}), prompt i drawn with seed "
        f"{each.seed} + i, {table.solver}, guidance {table.guidance:g}; weights "
        f"`{table.weights[:12]}`; {markdown.listed(table.versions)}. All plans draw the same "
        "prompts with the same seeds, so they are compared picture by picture, with "
        f"`{table.reference}:{table.steps}`."
    )
    yield from ("", *markdown.table(ALONE, _alone(table, each)))
    yield ""
    for (small, large), file in plots.items():
        yield f"![quality of {small} and {large} against the hand-off step]({file.name})"
    yield from ("", "**Which order is better**, with as many steps on each stage:", "")
    yield from markdown.table(ORDERS, map(_order, each.orders))
    yield from ("", *_best(table, each), "", _model(table, each))


def _alone(table: QualityTable, each: SizeQuality) -> Iterator[tuple[str, ...]]:
    for row in each.rows:
        if len(row.stages) == 1:
            yield (
                f"`{row.stages[0]}`",
                f"{row.total}",
                f"{row.n}",
                f"{row.score:.3f} ({row.interval[0]:.3f} to {row.interval[1]:.3f})",
                _percent(row.relative, row.relative_interval),
                f"{100 * table.bound(row.plan, (each.size, each.size)):.1f} %",
            )


def _order(row: OrderRow) -> tuple[str, ...]:
    difference = _points(row.difference, row.interval)
    return f"`{row.small}`, `{row.large}`", f"{row.steps}", difference, _better(row)


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


def _best(table: QualityTable, each: SizeQuality) -> Iterator[str]:
    """The best measured plans with little of the reference."""
    yield f"**The best plan with at most a third of its steps on `{table.reference}`**:"
    rows = filter(None, (_best_of(table, each, steps) for steps in each.steps))
    yield from ("", *markdown.table(("steps", "plan", "quality, 95 %", "bound"), rows))
    yield ""
    yield (
        "It is the best of many on the same pictures, and so looks better than it is; its interval "
        "does not know that, its bound does."
    )


def _best_of(table: QualityTable, each: SizeQuality, steps: int) -> tuple[str, ...] | None:
    rows = [row for row in each.rows if row.total == steps]
    few = [row for row in rows if 3 * _steps_on(row, table.reference) <= steps]
    if not few:
        return None
    best = max(few, key=lambda row: row.relative)
    quality = _percent(best.relative, best.relative_interval)
    bound = 100 * table.bound(best.plan, (each.size, each.size))
    return f"{steps}", f"`{best.plan}`", quality, f"{bound:.1f} %"


def _steps_on(row: QualityRow, stage: str) -> int:
    return sum(n for name, n in zip(row.stages, row.steps, strict=True) if name == stage)


def _model(table: QualityTable, each: SizeQuality) -> str:
    left = each.left_out
    known = [row for row in each.rows if row.stages != (table.reference,)]
    width = np.mean([row.relative_interval[1] - row.relative for row in known]) if known else 0.0
    if left is None:
        return "The model between the rows could not be tested: there are too few rows."
    return (
        f"**Between the rows** the router uses the model's curves (power {each.model.power:.2f}). "
        f"Fitted without a row, it is off there by {100 * left.mean:.1f} points of quality on "
        f"average and {100 * left.largest:.1f} at most ({left.rows} rows); a row's own 95 % "
        f"interval reaches {100 * width:.1f} points to either side on average."
    )
