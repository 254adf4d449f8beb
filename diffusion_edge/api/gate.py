"""In front of the application: counts requests, and turns new ones away while draining."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_NO_MORE = "the server is shutting down and takes no new requests"
_NO_LONGER = "the server was shut down before this request was done"
_LIVENESS = "/health"


class Gate:
    """An ASGI application around another one."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._draining = False
        self._running: set[asyncio.Timeout] = set()
        self._arriving: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == _LIVENESS:
            await self._app(scope, receive, send)
        elif self._draining:
            await _refuse(send, _NO_MORE)
        else:
            await self._counted(scope, receive, send)

    async def _counted(self, scope: Message, receive: Receive, send: Send) -> None:
        answered = False

        async def sent(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        end = asyncio.timeout(None)
        self._running.add(end)
        self._idle.clear()
        try:
            async with end:
                await self._app(scope, self._whole(receive, end), sent)
        except TimeoutError:
            if not end.expired():
                raise
        finally:
            self._running.discard(end)
            if not self._running:
                self._idle.set()
        if end.expired() and not answered:
            await _refuse(send, _NO_LONGER)

    def _whole(self, receive: Receive, end: asyncio.Timeout) -> Receive:
        """The same messages; while parts of the body are to come, the request is arriving."""
        more = True

        async def received() -> Message:
            nonlocal more
            if not more:
                return await receive()
            self._arriving.add(end)
            if self._draining:
                _now(end)
            try:
                message = await receive()
            finally:
                self._arriving.discard(end)
            more = message.get("more_body", False)
            return message

        return received

    async def drain(self, limit_s: float) -> int:
        """Refuses what comes from now on, also what has not come in whole; ends what still runs
        after `limit_s`, and returns how many that were."""
        self._draining = True
        for end in self._arriving:
            _now(end)
        try:
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        late = list(self._running)
        for end in late:
            _now(end)
        await self._idle.wait()
        return len(late)


def _now(end: asyncio.Timeout) -> None:
    """Ends a request, unless it is ending already."""
    if not end.expired():
        end.reschedule(0.0)


async def _refuse(send: Send, message: str) -> None:
    error = {"message": message, "type": "server_error", "param": None, "code": "shutting_down"}
    body = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", b"10"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
