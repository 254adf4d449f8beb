"""How commands ask a running server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusion_edge.errors import InvalidRequest

if TYPE_CHECKING:
    import httpx

URL = "http://127.0.0.1:8000"
Url = Annotated[str, typer.Option(help="A running server.")]


def ask(
    url: str, path: str, body: Mapping[str, object], needed: Sequence[str] = ()
) -> dict[str, Any]:
    """The object of a good answer, which has what is needed. Raises InvalidRequest with what any
    other one says."""
    import httpx

    from diffusion_edge.urls import is_this_machine

    try:
        response = httpx.post(
            f"{url.rstrip('/')}{path}",
            json=body,
            timeout=30,
            trust_env=not is_this_machine(url),
        )
    except httpx.HTTPError as error:
        raise InvalidRequest(f"{url} does not answer: {error}") from None
    except (httpx.InvalidURL, ValueError) as error:
        raise InvalidRequest(f"{url} cannot be asked this: {error}") from None
    answer = _answer(response, url)
    missing = [name for name in needed if name not in answer]
    if missing:
        raise InvalidRequest(
            f"{url} answered without {', '.join(missing)}; is it this server, of this version?"
        )
    return answer


def _answer(response: httpx.Response, url: str) -> dict[str, Any]:
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
