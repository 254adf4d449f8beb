"""The command line. Torch and Ray are imported by the commands that need them, not here."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusion_edge.errors import EdgeError, InvalidPlan, InvalidRequest
from diffusion_edge.types import ImageRequest, Plan

if TYPE_CHECKING:
    from diffusion_edge.serve.schema import OutputFormat

app = typer.Typer(
    help="Images from a diffusion model whose steps run on device, edge and cloud.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
FAMILY = Path("stage_models/shapes")


@contextmanager
def errors_for_people() -> Iterator[None]:
    """An EdgeError ends the command with its message and status 1; anything else is a bug."""
    try:
        yield
    except EdgeError as error:
        typer.secho(f"error: {error.message}", fg="red", err=True)
        raise typer.Exit(1) from None


@app.command()
def serve(
    config: Annotated[Path, typer.Argument(help="A file of serve_configs/.")] = Path(
        "serve_configs/local.yaml"
    ),
    port: Annotated[int | None, typer.Option(help="Instead of the config's port.")] = None,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; without it an own one is started.")
    ] = None,
) -> None:
    """Serve the tiers of CONFIG behind one endpoint, until SIGINT or SIGTERM."""
    from diffusion_edge.serve.launch import serve as launch

    with errors_for_people():
        raise typer.Exit(launch(config, port, address))


@app.command()
def check(config: Annotated[Path, typer.Argument(help="A file of serve_configs/.")]) -> None:
    """Check a config file strictly: unknown keys, wrong values, parts that do not agree."""
    from diffusion_edge.config import load_config

    with errors_for_people():
        stages = load_config(config).settings.stages
    typer.echo(f"{config}: good; stages {', '.join(stages)}")


@app.command()
def generate(
    prompt: str,
    plan: Annotated[str | None, typer.Option(help="Such as cloud:8,edge:6,device:6.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Of a plan not given.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Drawn if not given.")] = None,
    out: Annotated[Path, typer.Option(help="A .png, .jpg or .webp file.")] = Path("image.png"),
    negative_prompt: str = "",
    guidance_scale: Annotated[float | None, typer.Option(min=0, max=50)] = None,
    solver: Annotated[str | None, typer.Option(help="ddim, euler or dpmpp-2m.")] = None,
    size: Annotated[int | None, typer.Option(help="Edge length in pixels.")] = None,
    family: Annotated[Path, typer.Option(help="The family's folder.")] = FAMILY,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line.")] = False,
) -> None:
    """Make one image in this process, without Ray."""
    with errors_for_people():
        _generate(
            prompt, plan, steps, seed, out, negative_prompt, guidance_scale, solver, size, family,
            as_json,
        )  # fmt: skip


def _generate(
    prompt: str,
    plan_text: str | None,
    steps: int | None,
    seed: int | None,
    out: Path,
    negative_prompt: str,
    guidance: float | None,
    solver: str | None,
    size: int | None,
    folder: Path,
    as_json: bool,
) -> None:
    from diffusion_edge.families.card import load_card

    formats: dict[str, OutputFormat] = {
        ".png": "png",
        ".jpg": "jpeg",
        ".jpeg": "jpeg",
        ".webp": "webp",
    }
    if out.suffix.lower() not in formats:
        raise InvalidRequest(f"{out}: the file's ending should be one of {', '.join(formats)}")
    if not out.parent.is_dir():
        raise InvalidRequest(f"{out}: there is no folder {out.parent}")
    card = load_card(folder)
    plan = _plan_of(card, plan_text, steps)
    edge = size or card.defaults.size
    if edge not in card.sizes:
        raise InvalidRequest(f"size {edge} is not one of {', '.join(map(str, card.sizes))}")
    request = ImageRequest(
        prompt=prompt,
        negative_prompt=negative_prompt,
        family=card.name,
        steps=plan.steps,
        seed=secrets.randbelow(2**32) if seed is None else seed,
        solver=solver or card.defaults.solver,
        guidance=card.defaults.guidance if guidance is None else guidance,
        width=edge,
        height=edge,
        policy="fixed",
        plan=plan,
    )
    made = _with_progress(card, request, plan)

    from diffusion_edge.serve.png import Made, encode

    out.write_bytes(encode(made.picture, formats[out.suffix.lower()], Made(request, plan)))
    for warning in made.warnings:
        typer.secho(f"warning: {warning}", fg="yellow", err=True)
    if as_json:
        spans = [vars(span) for span in made.spans]
        report = {"out": str(out), "plan": str(plan), "seed": request.seed, "spans": spans}
        typer.echo(json.dumps(report | {"warnings": list(made.warnings)}))
    else:
        typer.echo(f"{out}: plan {plan}, seed {request.seed}")


def _plan_of(card: Any, text: str | None, steps: int | None) -> Plan:
    """The plan asked for, or the largest model alone."""
    if text is None:
        names = list(card.stages)
        alone = "cloud" if "cloud" in names else names[-1]
        return Plan.of(((alone, steps or card.defaults.steps),), "the default")
    plan = Plan.parse(text)
    for span in plan.spans:
        if span.stage not in card.stages:
            known = ", ".join(card.stages)
            raise InvalidPlan(f"plan {plan}: there is no stage {span.stage!r}; there are {known}")
    if steps not in (None, plan.steps):
        raise InvalidPlan(f"plan {plan} has {plan.steps} steps, but --steps is {steps}")
    return plan


def _with_progress(card: Any, request: ImageRequest, plan: Plan) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=sys.stderr)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("loading models", total=plan.steps)
        _quiet_libraries()
        from diffusion_edge.generate import generate as run

        progress.update(task, description="denoising")
        return run(card, request, plan, lambda: progress.advance(task))


def _quiet_libraries() -> None:
    """The libraries' own progress bars and notices would drown ours."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


@app.command()
def plan(
    prompt: str,
    url: Annotated[str, typer.Option(help="A running server.")] = "http://127.0.0.1:8000",
    deadline_ms: Annotated[float | None, typer.Option(min=1)] = None,
    quality_floor: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    policy: Annotated[str | None, typer.Option(help="Such as elastic or cloud-only.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=150)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as it is.")] = False,
) -> None:
    """Ask a running server which plan it would choose now, and why."""
    import httpx

    options = {"deadline_ms": deadline_ms, "quality_floor": quality_floor, "policy": policy}
    body: dict[str, object] = {"prompt": prompt, "diffusion_edge": options}
    if steps is not None:
        body["num_inference_steps"] = steps
    with errors_for_people():
        try:
            response = httpx.post(f"{url.rstrip('/')}/v1/plan", json=body, timeout=30)
            answer = response.json()
        except httpx.HTTPError as error:
            raise InvalidRequest(f"{url} does not answer: {error}") from None
        except ValueError:
            raise InvalidRequest(f"{url} did not answer with JSON; is it this server?") from None
        if response.status_code != 200:
            raise InvalidRequest(str(answer.get("error", {}).get("message", answer)))
    if as_json:
        typer.echo(json.dumps(answer))
        return
    from rich.console import Console

    Console().print_json(data=answer)


if __name__ == "__main__":
    app()
