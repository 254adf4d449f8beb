"""The HTTP API over a Service. `create_app` makes an ASGI app that knows nothing of Ray.

Every error has the form {"error": {"message", "type", "param", "code"}}.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffusion_edge import __version__
from diffusion_edge.api import answers
from diffusion_edge.api.png import Made, encode
from diffusion_edge.api.schema import (
    ImagesBody,
    OutputFormat,
    ThrottleBody,
    parse,
    parse_throttle,
)
from diffusion_edge.api.service import GenerationResult, Service
from diffusion_edge.errors import (
    BodyTimeout,
    BodyTooLarge,
    CannotBeInTime,
    EdgeError,
    MethodNotAllowed,
    NotFound,
    NotReady,
    QueueFull,
    UnknownModel,
    UnsupportedMediaType,
)

log = logging.getLogger(__name__)
MAX_BODY_BYTES = 64 * 1024
BODY_S = 10.0
JSON_TYPE = "application/json"
CLIENT_GONE = 499  # as some servers log it; nobody is left to read it
Result = TypeVar("Result")
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def create_app(service: Service) -> FastAPI:
    """The API of one service. Nothing is kept outside of it, so many may live side by side."""
    app = FastAPI(title="diffusion-edge", version=__version__)
    app.add_middleware(NoTraceback)
    app.add_exception_handler(EdgeError, _edge_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    takes = _takes(ImagesBody)
    get = partial(_get, app)

    @app.post("/v1/images/generations", openapi_extra=takes)
    async def generations(request: Request) -> Response:
        body = parse(await read_body(request))
        asked = service.request(body)
        result = await unless_client_leaves(request, service.generate(asked))
        return await asyncio.to_thread(_images, result, body.output_format or "png", service)

    @app.post("/v1/plan", openapi_extra=takes)
    async def plan(request: Request) -> Response:
        asked = service.request(parse(await read_body(request)))
        view = service.view(asked)
        choice = service.plan(asked, view)
        steps = choice.plan.steps
        asked, view = asked.in_steps(steps), view.of_steps(steps)
        why = await asyncio.to_thread(service.why, asked, view)
        return JSONResponse(answers.plan(asked, choice, view, why, service))

    if service.throttles:

        @app.post("/v1/throttle", openapi_extra=_takes(ThrottleBody))
        async def throttle(request: Request) -> Response:
            asked = parse_throttle(await read_body(request))
            return JSONResponse(answers.throttle(await service.throttle(asked), asked))

    @get("/v1/models")
    async def models() -> Response:
        return JSONResponse(answers.models(service))

    @get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name != service.card.name:
            known = service.card.name
            raise UnknownModel(f"there is no model {name[:100]!r} here; there is {known!r}")
        return JSONResponse(answers.model(service))

    @get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "live"})

    @get("/ready")
    async def ready() -> Response:
        missing = service.waiting_for()
        if missing:
            raise NotReady(f"waiting for {', '.join(missing)}")
        return JSONResponse({"status": "ready", "stages": answers.stages(service.board.statuses())})

    return app


def _get(app: FastAPI, path: str) -> Callable[[Endpoint], Endpoint]:
    """A route for GET, and for HEAD, of which the server sends no body."""

    def of(endpoint: Endpoint) -> Endpoint:
        app.head(path, include_in_schema=False)(endpoint)
        return app.get(path)(endpoint)

    return of


def _takes(body: type[BaseModel]) -> dict[str, Any]:
    content = {"application/json": {"schema": body.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def _images(result: GenerationResult, output_format: OutputFormat, service: Service) -> Response:
    """Writes the pictures into an answer: of large ones work for a thread, not for the loop."""
    files = [
        encode(image.picture, output_format, Made(result.request, result.choice.plan, i))
        for i, image in enumerate(result.images)
    ]
    answer = answers.images(result, files, output_format, service)
    return JSONResponse(answer, headers={"x-request-id": result.request.request_id})


# ---------------------------------------------------------------------------- one request


async def read_body(request: Request) -> bytes:
    """A body that says that it is JSON, within BODY_S.

    A browser asks before it sends that type to another site; all others, and none, any page may
    send anywhere. Raises UnsupportedMediaType, BodyTooLarge and BodyTimeout.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != JSON_TYPE:
        said = f"not {kind[:100]!r}" if kind else "and the request names none"
        raise UnsupportedMediaType(
            f"the body should be JSON, with the header content-type: {JSON_TYPE}, {said}"
        )
    try:
        async with asyncio.timeout(BODY_S):
            return await _at_most(MAX_BODY_BYTES, request)
    except TimeoutError:
        raise BodyTimeout(f"the body did not come to its end within {BODY_S:g} s") from None


async def _at_most(limit: int, request: Request) -> bytes:
    """Whatever the headers say."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise BodyTooLarge(f"the body has more than {limit} bytes")
    return bytes(data)


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled (and waited for) when the client goes.

    Raises ClientDisconnect then. Some servers cancel the handler instead; that ends the same.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# ---------------------------------------------------------------------------- errors


async def _edge_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, EdgeError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router of the framework refuses by itself."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == MethodNotAllowed.status:
        allowed = (error.headers or {}).get("Allow", "")
        told: EdgeError = MethodNotAllowed(f"{path} takes {allowed}, not {request.method}")
        return error_response(told, {"Allow": allowed})
    if error.status_code == NotFound.status:
        return error_response(NotFound(f"there is nothing at {path}"))
    other = EdgeError(str(error.detail))
    other.status = error.status_code
    return error_response(other)


async def _client_gone(request: Request, _: Exception) -> Response:
    log.info("the client of %s left", request.url.path)
    return Response(status_code=CLIENT_GONE)


def error_response(error: EdgeError, headers: dict[str, str] | None = None) -> Response:
    headers = dict(headers or {})
    if isinstance(error, QueueFull | CannotBeInTime) and error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, BodyTimeout):
        headers["Connection"] = "close"
    if error.status >= 500:
        log.warning("%s: %s", error.code, error.message)
    return JSONResponse(answers.error(error), error.status, headers)


class NoTraceback:
    """Turns what nobody foresaw into a plain 500, and the log gets the traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sent(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception:
            log.exception("unexpected error")
            if started or scope["type"] != "http":
                raise
            unforeseen = EdgeError("the server met an unexpected error; its log has the details")
            await error_response(unforeseen)(scope, receive, send)
