"""The command `plan`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from diffusion_edge.commands.arguments import CODECS, check_text
from diffusion_edge.commands.asking import URL, Url, ask


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
    answer = ask(url, "/v1/plan", body)
    if as_json:
        typer.echo(json.dumps(answer))
        return
    from rich.console import Console

    Console().print_json(data=answer)
