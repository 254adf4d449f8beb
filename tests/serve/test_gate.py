"""Draining: running requests finish, new ones are turned away in words."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from diffusion_edge.serve.gate import Gate


class SlowApp:
    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            self.entered.set()
            await self.go_on.wait()
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
        assert (await http.get("/health")).status_code == 200
        assert not draining.done()
        app.go_on.set()
        assert (await running).text == "done"
        assert await draining == 0


async def test_draining_ends_at_its_limit() -> None:
    app = SlowApp()
    gate = Gate(app)
    async with client(gate) as http:
        running = asyncio.create_task(http.get("/slow"))
        await app.entered.wait()
        assert await gate.drain(0.01) == 1
        app.go_on.set()
        await running
