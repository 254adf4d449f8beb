"""The command `plan`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusion_edge.commands.arguments import CODECS, check_text
from diffusion_edge.errors import InvalidRequest

if TYPE_CHECKING:
    import httpx


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
    check_text("prompt", prompt)
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
