"""The command `plan`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from diffusion_edge.commands.arguments import CODECS, check_text
from diffusion_edge.commands.asking import URL, Url, ask

SHOWN = ("plan", "predicted_s", "predicted_90_s", "cost", "quality_bound", "reason", "why")
"""What is shown of an answer."""


def plan(
    prompt: str,
    url: Url = URL,
    deadline_ms: Annotated[float | None, typer.Option(min=1)] = None,
    quality_floor: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    policy: Annotated[str | None, typer.Option(help="Such as elastic or cloud-only.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=150)] = None,
    codec: Annotated[str | None, typer.Option(help=f"Of every hop: {CODECS}.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as it is.")] = False,
) -> None:
    """Ask a running server which plan it would choose now, and why."""
    options = {
        "deadline_ms": deadline_ms,
        "quality_floor": quality_floor,
        "policy": policy,
        "codec": codec,
    }
    body: dict[str, object] = {"prompt": prompt, "diffusion_edge": options}
    if steps is not None:
        body["num_inference_steps"] = steps
    check_text("prompt", prompt)
    answer = ask(url, "/v1/plan", body, () if as_json else SHOWN)
    if as_json:
        typer.echo(json.dumps(answer))
        return
    show(answer)


def show(answer: Mapping[str, Any]) -> None:
    """What would be done, and the best plan of every other kind."""
    from rich.console import Console

    console, why = Console(), answer["why"]
    for line in _chosen(answer):
        console.print(line, markup=False, highlight=False)
    if why:
        console.print(_table(why))
        if why["kinds_left_out"]:
            console.print(f"and {why['kinds_left_out']} kinds more that need a larger change")


def _chosen(answer: Mapping[str, Any]) -> list[str]:
    bound = answer["quality_bound"]
    quality = "unknown quality" if bound is None else f"quality at least {bound:.3g}"
    seconds, nine_in_ten = f"{answer['predicted_s']:.2f} s", answer["predicted_90_s"]
    if nine_in_ten is not None:
        seconds += f" (nine in ten within {nine_in_ten:.2f} s)"
    return [
        f"{answer['plan']}: {seconds}, cost {answer['cost']:.3g}, {quality}",
        str(answer["reason"]),
    ]


def _table(why: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title=f"other kinds than {why['kind']}", title_justify="left")
    for name in ("kind", "its best plan", "not taken"):
        table.add_column(name, overflow="fold")
    for name in ("s", "cost", "quality"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("would come first with", overflow="fold")
    for each in why["alternatives"]:
        table.add_row(
            each["kind"],
            each["plan"],
            each["not_taken"],
            f"{each['predicted_s']:.2f}",
            f"{each['cost']:.3g}",
            f"{each['quality_bound']:.3g}",
            _change(each["comes_first_with"]),
        )
    return table


def _change(change: Mapping[str, Any] | None) -> str:
    if change is None:
        return "no change of one thing"
    ((what, to),) = change.items()
    if what == "deadline_ms":
        return f"a deadline of {to / 1000:.3g} s"
    if what == "quality_floor":
        return f"a floor of {to:.3g}"
    if what == "predicted_s":
        return f"done within {to:.3g} s"
    ((tier, price),) = to.items()
    return f"{tier} at {price:.3g} a second"
