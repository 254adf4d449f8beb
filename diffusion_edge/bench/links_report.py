"""What the replays of the link estimators found, as a page. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp
from statistics import fmean

from diffusion_edge.bench.links import (
    ARMS,
    CANDIDATES,
    CHANGE_S,
    CHANGING,
    CHOSEN,
    GAPS_S,
    MIXES,
    OFF,
    QUIET_GAP_S,
    Report,
    best,
    coverage,
    excess,
    mean_error,
)
from diffusion_edge.markdown import marks, table

COMMAND = "diffusion-edge bench links"
MARKS = marks(COMMAND)
MOST_EXCESS = 0.05
COVERED = (0.85, 0.95)


def targets(report: Report) -> Iterator[tuple[str, str, bool]]:
    """What is to be reached, the figure, and whether it is."""
    scores = report.scores
    worst = max(report.traces, key=lambda trace: excess(scores, trace=trace))
    over = excess(scores, trace=worst)
    yield (
        "on no trace more than 5 % worse than the best single candidate of that trace",
        f"at worst {100 * over:+.1f} % (`{worst}`)",
        over <= MOST_EXCESS,
    )
    name, _ = best(scores)
    ahead = sum(each.errors[CHOSEN] < each.errors[name] for each in scores)
    yield (
        "better than each candidate over all traces",
        f"{100 * excess(scores):+.1f} % against `{name}`, the best; better than it in {ahead} of "
        f"{len(scores)} replays",
        excess(scores) < 0.0,
    )
    shares = {trace: coverage(scores, trace)[0] for trace in report.traces}
    low, high = min(shares.values()), max(shares.values())
    yield (
        "the 90 % quantile covers 85 to 95 % on every trace",
        f"{100 * low:.1f} to {100 * high:.1f} %",
        COVERED[0] <= low and high <= COVERED[1],
    )
    most = max(each.share for each in report.quiet)
    yield "probes take at most 1 % of a link's rate", f"at most {100 * most:.2f} %", most <= 0.01


def page_lines(report: Report) -> Iterator[str]:
    hops = sum(each.hops for each in report.scores)
    yield (
        f"Measured on {report.measured} by `{report.command}`: {len(report.scores)} replays, "
        f"{hops} hops, over {len(report.traces)} recorded links."
    )
    goals = (
        (what, figure, "reached" if reached else "**not reached**")
        for what, figure, reached in targets(report)
    )
    yield from ("", *table(("target", "measured", ""), goals))
    yield from ("", *_by_trace(report), "", *_by_kind(report), "", *_large(report), "")
    yield from _quiet(report)


def _by_trace(report: Report) -> Iterator[str]:
    yield (
        "Error of the logarithm of a hop's seconds, mean over hops; the best single candidate is "
        "bold. `chosen` against that one, and what the 90 % quantile covers, with the lowest and "
        f"the highest replay. What is stated at first is off by a factor (log-normal, {OFF})."
    )
    rows = [*(_of_trace(report, trace) for trace in report.traces), *_of_traces(report)]
    yield from ("", *table(("trace", *ARMS, "against the best", "covered"), rows))
    yield from ("", "\\* chose nothing: neither weights nor a constant.")


def _of_trace(report: Report, trace: str) -> tuple[str, ...]:
    covered, low, high = (100 * share for share in coverage(report.scores, trace))
    mark = "" if trace in report.trained_on else " *"
    over = f"{100 * excess(report.scores, trace=trace):+.1f} %"
    shown = f"{covered:.1f} % ({low:.0f} to {high:.0f})"
    return f"`{trace}`{mark}", *_errors(report, trace=trace), over, shown


def _of_traces(report: Report) -> Iterator[tuple[str, ...]]:
    """Of those that chose nothing, and of all."""
    scores = report.scores
    unseen = [each for each in scores if each.trace not in report.trained_on]
    for name, some in (("traces with *", unseen), ("all traces", list(scores))):
        if some:
            means = (f"{mean_error(some, arm):.3f}" for arm in ARMS)
            covered = 100 * fmean(each.covered for each in some)
            excessive = 100 * excess(some)
            yield name, *means, f"{excessive:+.1f} %", f"{covered:.1f} %"
    relative = (f"{fmean(each.relative[arm] for each in scores):.3f}" for arm in ARMS)
    yield "all, mean relative error", *relative, "", ""


def _errors(report: Report, **where: object) -> Iterator[str]:
    name, _ = best(report.scores, **where)
    for arm in ARMS:
        shown = f"{mean_error(report.scores, arm, **where):.3f}"
        yield f"**{shown}**" if arm == name else shown


def _by_kind(report: Report) -> Iterator[str]:
    yield "The same by packets and by the mean gap between them, over all traces:"
    kinds: list[tuple[str, dict[str, object]]] = [
        (f"packets of `{mix.name}`", {"mix": mix.name}) for mix in MIXES
    ]
    kinds += [(f"every {gap_s:g} s", {"gap_s": gap_s}) for gap_s in GAPS_S]
    rows = (
        (name, *_errors(report, **where), f"{100 * excess(report.scores, **where):+.1f} %")
        for name, where in kinds
    )
    yield from ("", *table(("", *ARMS, "against the best"), rows))


def _large(report: Report) -> Iterator[str]:
    yield (
        "Packets larger than any that was seen: hops of 2 to 67 KB go over the link, and one of "
        "1 MB (FLUX, exact) is predicted. Beside the error, what is taken over what is predicted, "
        "geometric mean. `bytes over seconds` is the rate of the last 20 hops, with no delay."
    )
    rows = (
        (
            f"`{each.trace}`",
            *(f"{each.error:.3f}", f"{exp(each.leaning):.2f}"),
            *(f"{each.plain_error:.3f}", f"{exp(each.plain_leaning):.2f}"),
        )
        for each in sorted(report.large, key=lambda each: report.traces.index(each.trace))
    )
    taken = "taken / predicted"
    yield from ("", *table(("trace", "chosen", taken, "bytes over seconds", taken), rows))


def _quiet(report: Report) -> Iterator[str]:
    same = [each for each in report.quiet if each.trace != CHANGING]
    change = [each for each in report.quiet if each.trace == CHANGING]
    yield (
        f"Quiet links: a packet of `every` every {QUIET_GAP_S:g} s in the mean, with probes and "
        "without, and the probes' bytes as a share of what the link could have carried. Last, a "
        f"link that becomes another recording every {CHANGE_S:g} s."
    )
    rows: list[tuple[str, ...]] = [
        (
            each.trace if each in change else f"`{each.trace}`",
            *(f"{each.error:.3f}", f"{each.probed_error:.3f}", f"{100 * each.share:.2f} %"),
        )
        for each in sorted(same, key=lambda each: report.traces.index(each.trace)) + change
    ]
    means = (fmean(each.error for each in same), fmean(each.probed_error for each in same))
    rows.append(("all but the last", *(f"{mean:.3f}" for mean in means), ""))
    yield from ("", *table(("trace", "error without", "with probes", "share"), rows))


def summary(report: Report) -> Iterator[str]:
    """The same in a few lines of text."""
    for arm in (*CANDIDATES, CHOSEN):
        yield f"{arm}: error {mean_error(report.scores, arm):.3f} over all traces"
    for what, figure, reached in targets(report):
        yield f"{what}: {figure}, {'reached' if reached else 'not reached'}"
