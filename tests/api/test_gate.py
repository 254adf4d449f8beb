"""Draining: running requests finish, new ones are turned away in words."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from diffusion_edge.api.gate import Gate


class SlowApp:
    """Reads the body, then waits on one path."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            while (await receive()).get("more_body", False):
                pass
            if scope["path"] == "/slow":
                self.entered.set()
                await self.go_on.wait()
        finally:
            self.ended.set()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


def client(gate: Gate) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://test")


async def test_running_requests_finish_and_new_ones_are_refused() -> None:
    app = SlowApp()
    gate = Gate(app)
    async with client(gate) as http:
        running = asyncio.create_task(http.get("/slow"))
        await app.entered.wait()
        draining = asyncio.create_task(gate.drain(30.0))
        await asyncio.sleep(0)
        refused = await http.get("/v1/models")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert refused.headers["content-type"] == "application/json"
        assert (refused.headers["retry-after"], refused.headers["connection"]) == ("10", "close")
        assert int(refused.headers["content-length"]) == len(refused.content)
        assert (await http.get("/health")).status_code == 200
        assert not draining.done()
        app.go_on.set()
        assert (await running).text == "done"
        assert await draining == 0


async def test_at_the_limit_what_still_runs_is_ended_and_told() -> None:
    app = SlowApp()
    gate = Gate(app)
    async with client(gate) as http:
        running = asyncio.create_task(http.get("/slow"))
        await app.entered.wait()
        assert await gate.drain(0.01) == 1
        assert app.ended.is_set()
        assert (await running).json()["error"]["code"] == "shutting_down"
        assert await gate.drain(30.0) == 0


async def test_at_the_limit_an_answer_that_has_begun_is_not_followed_by_another_one() -> None:
    begun, sent = asyncio.Event(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        begun.set()
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    gate = Gate(app)
    scope = {"type": "http", "path": "/v1/images/generations"}
    running = asyncio.create_task(gate(scope, asyncio.Event().wait, send))  # type: ignore[arg-type]
    await begun.wait()
    assert await gate.drain(0.01) == 1
    await running
    assert [message["status"] for message in sent] == [200]


async def test_who_holds_back_half_a_body_holds_up_no_end() -> None:
    app, sent = SlowApp(), []
    gate = Gate(app)
    held = asyncio.Event()
    parts = iter([{"type": "http.request", "body": b"{", "more_body": True}])

    async def receive() -> Any:
        for part in parts:
            return part
        held.set()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/plan", "headers": []}
    serving = asyncio.create_task(gate(scope, receive, send))
    await held.wait()
    async with asyncio.timeout(10):
        assert await gate.drain(3600.0) == 0
    await serving
    assert sent[0]["status"] == 503
    assert b"shutting_down" in sent[1]["body"]


async def test_a_request_that_is_cancelled_is_not_kept() -> None:
    app = SlowApp()
    gate = Gate(app)
    async with client(gate) as http:
        running = asyncio.create_task(http.get("/slow"))
        await app.entered.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert await gate.drain(30.0) == 0
