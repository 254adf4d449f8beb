"""The command `profile`. Torch is imported when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffusion_edge.commands.arguments import (
    FamilyArgument,
    FirstSeed,
    MetricName,
    PromptsFile,
    card_of,
    check_writable,
    prompts_of,
)
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.plan import MAX_STEPS

if TYPE_CHECKING:
    from diffusion_edge.families.card import FamilyCard
    from diffusion_edge.profile.measure import Following, Task
    from diffusion_edge.profile.metric import Metric
    from diffusion_edge.profile.wanted import Where
    from diffusion_edge.routing.quality import QualityTable

MANY = 4000
"""Prompts that a plan draws at most where neither the number nor a file is given."""
FRESH = 2000
"""Of them for a verification."""
SIGNALS = 400
"""Of them for a recording of signals."""


def profile(
    family: FamilyArgument,
    size: Annotated[
        int | None, typer.Option(min=1, help="Of a square in pixels; the family's default.")
    ] = None,
    captions: Annotated[
        int | None,
        typer.Option(
            min=2,
            help=f"Prompts at most; {MANY} ({FRESH} to verify, {SIGNALS} for signals), or all of "
            "the file.",
        ),
    ] = None,
    coarse: Annotated[
        int, typer.Option(min=2, help="Prompts that all plans draw, before the decisive ones.")
    ] = 96,
    pictures: Annotated[
        int, typer.Option(min=1, help="No more decisive ones are drawn after so many pictures.")
    ] = 50_000,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=MAX_STEPS, help="Steps beside the default ones; may be repeated; half."
        ),
    ] = None,
    seed: FirstSeed = 1000,
    metric: MetricName = None,
    prompts: PromptsFile = None,
    out: Annotated[Path | None, typer.Option(help="Instead of the family's quality.json.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hold the table's promises against fresh prompts.")
    ] = False,
    signals: Annotated[
        Path | None,
        typer.Option(help="Record here what policies that choose again look at; no table is made."),
    ] = None,
    execution: Annotated[
        str, typer.Option(help="How models are run: eager, openvino, compiled, or auto.")
    ] = "eager",
    watch: Annotated[
        Path | None, typer.Option(help="A folder of served requests: is the table still true?")
    ] = None,
) -> None:
    """Measure the quality of a family's plans, for the router. An interrupted run goes on.

    With --verify: draw what the router would take on prompts that the table has not seen (give
    another seed), and fail where a floor is broken by more than a point. With --watch: judge what
    a server kept, as its config's `watch` says, and fail where it is worse than was promised.
    With --signals: every model alone, how its output changes from step to step and what its
    pictures score, for simulations.
    """
    from diffusion_edge.families.quiet import quiet_libraries
    from diffusion_edge.profile.measure import Task, fingerprint, of_size, reference_of
    from diffusion_edge.profile.metric import load_metric
    from diffusion_edge.profile.wanted import Where

    card = card_of(family)
    card = of_size(card, size or card.defaults.size)
    if not card.sizes.allows(card.defaults.size, card.defaults.size):
        raise InvalidRequest(
            f"{card.name!r} makes no squares of {card.defaults.size} pixels: {card.sizes}"
        )
    found = load_metric(metric or card.metric)
    if watch is not None:
        quiet_libraries()
        _watch(card, found, watch)
        return
    most = SIGNALS if signals else FRESH if verify else MANY
    lines, source = prompts_of(found, prompts, captions, seed, most)
    written = signals or out or card.root / "quality.json"
    check_writable(written)
    quiet_libraries()
    task = Task(
        card, fingerprint(card), found, lines, source, (reference_of(card),), seed, execution
    )
    counts = steps or [card.defaults.steps // 2 or 1]
    if signals:
        _record(task, written, counts)
    elif verify:
        _verify(task, written)
    else:
        _measure(task, written, counts, Where(coarse, pictures))


# ---------------------------------------------------------------------------- measuring


def _measure(task: Task, written: Path, steps: list[int], where: Where) -> None:
    from diffusion_edge.profile import table
    from diffusion_edge.profile.measure import with_plans
    from diffusion_edge.profile.wanted import reach, wide

    edge = task.card.defaults.size
    task = with_plans(task, steps)
    kept = written.with_name(f"{written.stem}-{edge}.part.jsonl")
    coarse = min(where.coarse, len(task.prompts))
    typer.echo(
        f"{edge} pixels: {coarse} prompts by {len(task.plans)} plans; then more by those that "
        f"decide, up to {len(task.prompts)} prompts each and {where.pictures} pictures in all"
    )
    total = max(coarse * len(task.plans), where.pictures)
    scores = _drawn(task, kept, total, where.following)
    found = table.table(task, scores)
    whole, gone = table.with_others(found, written)
    table.write(whole, written)
    count = sum(map(len, scores.values()))
    typer.echo(f"{written}: {len(task.plans)} plans of {edge} pixels, {count} pictures")
    if gone:
        edges = ", ".join(map(str, gone))
        typer.echo(f"measured of other weights or otherwise, so dropped: {edges} pixels")
    for line in summary(found):
        typer.echo(line)
    for row in wide(task, found):
        left = f"{row.plan} decides and is known to {100 * reach(row):.1f} points only"
        typer.echo(f"{left}, by {row.n} prompts")
    kept.unlink()


def _drawn(task: Task, kept: Path, total: int, following: Following) -> dict[str, list[float]]:
    """The scores by plan, behind a bar of so many pictures."""
    from diffusion_edge.profile.measure import measure
    from diffusion_edge.profile.progress import pictures_bar

    try:
        with pictures_bar(total) as advance:
            return measure(task, kept, advance, following)
    except KeyboardInterrupt:
        typer.secho(f"what is done is in {kept}; the same command goes on from there", err=True)
        raise typer.Exit(130) from None


def summary(table: QualityTable) -> list[str]:
    """What the table says in a few lines."""
    lines = []
    for each in table.sizes:
        for row in each.rows:
            if len(row.stages) == 1:
                bound = table.bound(row.plan, (each.size, each.size))
                low, high = row.interval
                lines.append(
                    f"{row.plan}: score {row.score:.3f} ({low:.3f} to {high:.3f}), quality "
                    f"{row.relative:.3f}, at least {bound:.3f}"
                )
        left = each.left_out
        if left is not None:
            lines.append(
                f"the model that fills the gaps is off by {left.mean:.3f} on average and "
                f"{left.largest:.3f} at most, on each of {left.rows} rows when fitted without it"
            )
    return lines


# ---------------------------------------------------------------------------- recording


def _record(task: Task, written: Path, steps: list[int]) -> None:
    from diffusion_edge.profile.measure import alone
    from diffusion_edge.profile.progress import pictures_bar
    from diffusion_edge.profile.signals import record
    from diffusion_edge.profile.table import write

    task = alone(task, steps)
    total = len(task.plans) * len(task.prompts)
    typer.echo(f"{task.card.defaults.size} pixels: {len(task.prompts)} prompts, {total} pictures")
    with pictures_bar(total) as advance:
        found = record(task, advance)
    write(found, written)
    typer.echo(f"{written}: {len(found.rows)} rows of {found.pictures} pictures")


# ---------------------------------------------------------------------------- verifying


def _verify(task: Task, written: Path) -> None:
    """Exits with 1 where a floor is broken."""
    from diffusion_edge.profile.measure import evenly
    from diffusion_edge.profile.picks import picks
    from diffusion_edge.profile.verify import check_fresh, lines, of_picks, verdicts
    from diffusion_edge.routing.quality import QualityTable

    edge = task.card.defaults.size
    known = QualityTable.read(written)
    size = known.at((edge, edge))
    if size is None:
        raise InvalidRequest(f"{written} knows nothing of {edge} pixels", param="size")
    if known.weights != task.weights:
        raise InvalidRequest(f"{written} was measured of other weights; measure it anew")
    check_fresh(task, size)
    picked = picks(task.card, known, [task.default])
    task = of_picks(task, picked)
    kept = written.with_name(f"verify-{edge}.part.jsonl")
    typer.echo(
        f"{edge} pixels, {task.default} steps: {len(picked)} picks, {len(task.plans)} plans, "
        f"{len(task.prompts)} fresh prompts"
    )
    scores = _drawn(task, kept, len(task.plans) * len(task.prompts), evenly)
    found = verdicts(task, picked, scores)
    for line in lines(found):
        typer.echo(line)
    kept.unlink()
    broken = sum(each.broken for each in found)
    if broken:
        typer.secho(f"{broken} of {len(found)} break their floor by more than a point", err=True)
        raise typer.Exit(1)


# ---------------------------------------------------------------------------- watching


def _watch(card: FamilyCard, metric: Metric, folder: Path) -> None:
    """Exits with 1 where the table is no longer true."""
    from diffusion_edge.profile.measure import fingerprint
    from diffusion_edge.profile.progress import pictures_bar
    from diffusion_edge.profile.watch import judge, kept

    watched = kept(folder)
    with pictures_bar(len(watched)) as advance:
        seen = judge(card, metric, fingerprint(card), watched, advance)
    low, high = seen.interval
    typer.echo(
        f"{seen.n} served requests: quality {seen.quality:.3f} ({low:.3f} to {high:.3f}, three "
        f"standard errors); promised {seen.promised:.3f}, at least {seen.bound:.3f}; "
        f"{seen.passed} could not be judged"
    )
    if not seen.is_true:
        typer.secho("worse than was promised: the quality table is no longer true", err=True)
        raise typer.Exit(1)
