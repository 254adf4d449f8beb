"""The command `generate`. Torch is imported when it is needed."""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from diffusion_edge.commands.arguments import (
    CODECS,
    FAMILY,
    SOLVER_NAMES,
    card_of,
    check_text,
    check_writable,
)
from diffusion_edge.errors import InvalidPlan, InvalidRequest
from diffusion_edge.plan import EXACT, Plan
from diffusion_edge.request import AskedCodec, ImageRequest
from diffusion_edge.schedule import check as check_schedule
from diffusion_edge.schedule import resolved_steps

if TYPE_CHECKING:
    from diffusion_edge.api.schema import OutputFormat
    from diffusion_edge.families.card import FamilyCard


def generate(
    prompt: str,
    plan: Annotated[str | None, typer.Option(help="Such as cloud:8,edge:6,device:6@1.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Of a plan not given.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**64 - 1, help="Drawn if not given.")
    ] = None,
    out: Annotated[Path, typer.Option(help="A .png, .jpg or .webp file.")] = Path("image.png"),
    negative_prompt: str = "",
    guidance_scale: Annotated[float | None, typer.Option(min=0, max=50)] = None,
    solver: Annotated[str | None, typer.Option(help=f"One of {SOLVER_NAMES}.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    codec: Annotated[str, typer.Option(help=f"Of every hop: {CODECS}.")] = EXACT,
    family: Annotated[
        Path, typer.Option(help="The family's folder, or its name in stage_models.")
    ] = FAMILY,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line.")] = False,
) -> None:
    """Make one image in this process, without Ray."""

    from diffusion_edge.config import Defaults
    from diffusion_edge.routing.codecs import codec_table, codecs_by_step

    formats: dict[str, OutputFormat] = {
        ".png": "png",
        ".jpg": "jpeg",
        ".jpeg": "jpeg",
        ".webp": "webp",
    }
    if out.suffix.lower() not in formats:
        raise InvalidRequest(f"{out}: the file's ending should be one of {', '.join(formats)}")
    check_writable(out)
    check_text("prompt", prompt)
    check_text("negative prompt", negative_prompt or "none")
    card = card_of(family)
    solver = solver or card.defaults.solver
    asked = _plan_of(card, plan, steps, solver)
    check_schedule(card.noise(), solver, asked.steps)
    width, height = _size(card, size)
    request = ImageRequest(
        prompt=prompt,
        negative_prompt=negative_prompt,
        family=card.name,
        steps=asked.steps,
        seed=secrets.randbelow(2**32) if seed is None else seed,
        solver=solver,
        guidance=card.defaults.guidance if guidance_scale is None else guidance_scale,
        width=width,
        height=height,
        policy="fixed",
        plan=asked,
        codec=_codec(codec),
    )
    by_step = codecs_by_step(request, codec_table(card.root), Defaults().codec_loss)
    own = {name: m.guidance for name, m in card.stages.items() if m.guidance is not None}
    carried = asked.with_codecs(by_step).with_guidance(own)
    made = _with_progress(card, request, carried)

    from diffusion_edge.api.png import Made, encode

    out.write_bytes(encode(made.picture, formats[out.suffix.lower()], Made(request, carried)))
    for warning in made.warnings:
        typer.secho(f"warning: {warning}", fg="yellow", err=True)
    if as_json:
        spans = [vars(span) for span in made.spans]
        report = {
            "out": str(out),
            "plan": str(carried),
            "codecs": carried.codecs,
            "seed": request.seed,
            "spans": spans,
        }
        typer.echo(json.dumps(report | {"warnings": list(made.warnings)}))
    else:
        typer.echo(f"{out}: plan {carried}, seed {request.seed}")


def _size(card: FamilyCard, text: str | None) -> tuple[int, int]:
    from diffusion_edge.families.sizes import parse_size

    default = card.defaults.size
    size = (default, default) if text is None else parse_size(text)
    if size is None or not card.sizes.allows(*size):
        raise InvalidRequest(f"size {text!r} is not one of this model's: {card.sizes}")
    return size


def _codec(name: str) -> AskedCodec:
    for known in get_args(AskedCodec):
        if name == known:
            found: AskedCodec = known
            return found
    raise InvalidRequest(f"codec {name!r} is not one of {CODECS}")


def _plan_of(card: Any, text: str | None, asked: int | None, solver: str) -> Plan:
    """The plan asked for, or the reference stage alone."""
    if text is None:
        steps = resolved_steps(solver, asked or card.defaults.steps)
        return Plan.of(((card.reference, steps),), "the default")
    plan = Plan.parse(text)
    for span in plan.spans:
        if span.stage not in card.stages:
            known = ", ".join(card.stages)
            raise InvalidPlan(f"plan {plan}: there is no stage {span.stage!r}; there are {known}")
    if asked is not None and plan.steps != resolved_steps(solver, asked):
        raise InvalidPlan(
            f"plan {plan} has {plan.steps} steps, but --steps {asked} of {solver} comes to "
            f"{resolved_steps(solver, asked)}"
        )
    return plan


def _with_progress(card: Any, request: ImageRequest, plan: Plan) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    from diffusion_edge.families.quiet import quiet_libraries

    console = Console(file=sys.stderr)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("loading models", total=plan.steps)
        quiet_libraries()
        from diffusion_edge.generate import generate as run

        progress.update(task, description="denoising")
        return run(card, request, plan, lambda: progress.advance(task))
