"""The command line. Torch and Ray are imported by the commands that need them, not here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any

import typer

from diffusion_edge.commands import (
    bench,
    check,
    codecs,
    generate,
    kernels,
    models,
    plan,
    plots,
    profile,
    serve,
    simulate,
    throttle,
)
from diffusion_edge.errors import EdgeError


@contextmanager
def errors_for_people() -> Iterator[None]:
    """An EdgeError, or a file that cannot be read or written, ends the command with a sentence and
    status 1; anything else is a bug."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of files may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except EdgeError as error:
        typer.secho(f"error: {error.message}", fg="red", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        if error.filename is None:
            raise
        typer.secho(f"error: {error.filename}: {error.strerror}", fg="red", err=True)
        raise typer.Exit(1) from None


def add(group: typer.Typer, name: str, command: Callable[..., Any]) -> None:
    group.command(name)(errors_for_people()(command))


def group(text: str) -> typer.Typer:
    return typer.Typer(
        help=text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )


app = group("Images from a diffusion model whose steps run on device, edge and cloud.")
COMMANDS: dict[str, Callable[..., Any]] = {
    "serve": serve.serve,
    "check": check.check,
    "generate": generate.generate,
    "plan": plan.plan,
    "throttle": throttle.throttle,
    "simulate": simulate.simulate,
    "profile": profile.profile,
    "plots": plots.plots,
    "codecs": codecs.codecs,
    "kernels": kernels.kernels,
}
for name, command in COMMANDS.items():
    add(app, name, command)

of_models = group("The models of a family: list, check, pull.")
add(of_models, "list", models.listing)
add(of_models, "check", models.check)
add(of_models, "pull", models.pull)
app.add_typer(of_models, name="models")

of_bench = group(
    "Measure speed against the stock pipeline, and judge the router and the link estimators."
)
add(of_bench, "engine", bench.engine)
add(of_bench, "execution", bench.execution)
add(of_bench, "serve", bench.serve)
add(of_bench, "links", bench.links)
add(of_bench, "routing", bench.routing)
add(of_bench, "agree", bench.agree)
add(of_bench, "proof", bench.proof)
add(of_bench, "kernels", bench.kernels)
app.add_typer(of_bench, name="bench")
