"""The command line. Torch and Ray are imported by the commands that need them, not here."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from diffusion_edge import models_command
from diffusion_edge.bench import command as bench_command
from diffusion_edge.errors import EdgeError, InvalidPlan, InvalidRequest
from diffusion_edge.profile.codecs_command import codecs
from diffusion_edge.profile.command import plots, profile
from diffusion_edge.schedule import SOLVERS, resolved_steps
from diffusion_edge.schedule import check as check_schedule
from diffusion_edge.types import EXACT, AskedCodec, ImageRequest, Plan

if TYPE_CHECKING:
    import httpx

    from diffusion_edge.families.card import FamilyCard
    from diffusion_edge.serve.schema import OutputFormat

app = typer.Typer(
    help="Images from a diffusion model whose steps run on device, edge and cloud.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
FAMILY = Path("stage_models/shapes")
CODECS = ", ".join(get_args(AskedCodec))
SOLVER_NAMES = ", ".join(SOLVERS)


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


@app.command()
def serve(
    config: Annotated[Path, typer.Argument(help="A file of serve_configs/.")] = Path(
        "serve_configs/local.yaml"
    ),
    port: Annotated[int | None, typer.Option(help="Instead of the config's port.")] = None,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; without it an own one is started.")
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(help="Instead of the config's: a folder, or a name of stage_models/."),
    ] = None,
) -> None:
    """Serve the tiers of CONFIG behind one endpoint, until SIGINT or SIGTERM."""
    from diffusion_edge.serve.launch import serve as launch

    with errors_for_people():
        raise typer.Exit(launch(config, port, address, family))


@app.command()
def check(config: Annotated[Path, typer.Argument(help="A file of serve_configs/.")]) -> None:
    """Check a config file strictly: unknown keys, names and values, parts that do not agree."""
    from diffusion_edge.config import family_folder, load_config
    from diffusion_edge.families.card import load_card
    from diffusion_edge.serve.launch import with_stages
    from diffusion_edge.serve.names import check_names

    with errors_for_people():
        given = load_config(config).settings
        check_names(given, load_card(family_folder(given.family)), config)
        stages = with_stages(given).stages
    source = "" if given.stages else f", one for each model of {given.family}"
    typer.echo(f"{config}: good; stages {', '.join(stages)}{source}")


@app.command()
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
    family: Annotated[Path, typer.Option(help="The family's folder.")] = FAMILY,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line.")] = False,
) -> None:
    """Make one image in this process, without Ray."""
    with errors_for_people():
        _generate(
            prompt, plan, steps, seed, out, negative_prompt, guidance_scale, solver, size, codec,
            family, as_json,
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
    size: str | None,
    codec: str,
    folder: Path,
    as_json: bool,
) -> None:
    from diffusion_edge.config import Defaults
    from diffusion_edge.families.card import load_card
    from diffusion_edge.routing.codecs import codec_table, codecs_by_step

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
    if out.is_dir():
        raise InvalidRequest(f"{out}: this is a folder; name a file")
    _check_text("prompt", prompt)
    _check_text("negative prompt", negative_prompt or "none")
    card = load_card(folder)
    solver = solver or card.defaults.solver
    plan = _plan_of(card, plan_text, steps, solver)
    check_schedule(card.noise(), solver, plan.steps)
    width, height = _size(card, size)
    request = ImageRequest(
        prompt=prompt,
        negative_prompt=negative_prompt,
        family=card.name,
        steps=plan.steps,
        seed=secrets.randbelow(2**32) if seed is None else seed,
        solver=solver,
        guidance=card.defaults.guidance if guidance is None else guidance,
        width=width,
        height=height,
        policy="fixed",
        plan=plan,
        codec=_codec(codec),
    )
    by_step = codecs_by_step(request, codec_table(folder), Defaults().codec_loss)
    own = {name: m.guidance for name, m in card.stages.items() if m.guidance is not None}
    plan = plan.with_codecs(by_step).with_guidance(own)
    made = _with_progress(card, request, plan)

    from diffusion_edge.serve.png import Made, encode

    out.write_bytes(encode(made.picture, formats[out.suffix.lower()], Made(request, plan)))
    for warning in made.warnings:
        typer.secho(f"warning: {warning}", fg="yellow", err=True)
    if as_json:
        spans = [vars(span) for span in made.spans]
        report = {
            "out": str(out),
            "plan": str(plan),
            "codecs": plan.codecs,
            "seed": request.seed,
            "spans": spans,
        }
        typer.echo(json.dumps(report | {"warnings": list(made.warnings)}))
    else:
        typer.echo(f"{out}: plan {plan}, seed {request.seed}")


def _check_text(name: str, text: str) -> None:
    if not text.strip():
        raise InvalidRequest(f"the {name} is empty; say what the image shows")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"the {name} is not UTF-8 text") from None


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


@app.command()
def plan(
    prompt: str,
    url: Annotated[str, typer.Option(help="A running server.")] = "http://127.0.0.1:8000",
    deadline_ms: Annotated[float | None, typer.Option(min=1)] = None,
    quality_floor: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    policy: Annotated[str | None, typer.Option(help="Such as elastic or cloud-only.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=150)] = None,
    codec: Annotated[str | None, typer.Option(help=f"Of every hop: {CODECS}.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as it is.")] = False,
) -> None:
    """Ask a running server which plan it would choose now, and why."""
    import httpx

    from diffusion_edge.urls import is_this_machine

    options = {
        "deadline_ms": deadline_ms,
        "quality_floor": quality_floor,
        "policy": policy,
        "codec": codec,
    }
    body: dict[str, object] = {"prompt": prompt, "diffusion_edge": options}
    if steps is not None:
        body["num_inference_steps"] = steps
    with errors_for_people():
        _check_text("prompt", prompt)
        try:
            response = httpx.post(
                f"{url.rstrip('/')}/v1/plan",
                json=body,
                timeout=30,
                trust_env=not is_this_machine(url),
            )
        except httpx.HTTPError as error:
            raise InvalidRequest(f"{url} does not answer: {error}") from None
        except (httpx.InvalidURL, ValueError) as error:
            raise InvalidRequest(f"{url} cannot be asked this: {error}") from None
        answer = _answer(response, url)
    if as_json:
        typer.echo(json.dumps(answer))
        return
    from rich.console import Console

    Console().print_json(data=answer)


def _answer(response: httpx.Response, url: str) -> dict[str, Any]:
    """The object of a good answer. Raises InvalidRequest with what any other one says."""
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise InvalidRequest(f"{url} did not answer with a JSON object; is it this server?")
    if response.status_code != 200:
        error = answer.get("error")
        said = error.get("message", answer) if isinstance(error, dict) else answer
        raise InvalidRequest(str(said))
    return answer


for command in (profile, plots, codecs):
    app.command()(errors_for_people()(command))

models = typer.Typer(help="The models of a family: list, check, pull.", no_args_is_help=True)
models.command("list")(errors_for_people()(models_command.listing))
models.command()(errors_for_people()(models_command.check))
models.command()(errors_for_people()(models_command.pull))
app.add_typer(models, name="models")

bench = typer.Typer(help="Measure speed against the stock pipeline.", no_args_is_help=True)
bench.callback()(lambda: None)
bench.command()(errors_for_people()(bench_command.engine))
bench.command()(errors_for_people()(bench_command.serve))
app.add_typer(bench, name="bench")


if __name__ == "__main__":
    app()
