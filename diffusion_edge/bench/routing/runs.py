"""One server after another, and a ledger of what arms did on them. No torch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_edge.bench.routing.live import Live, Wanted
from diffusion_edge.bench.routing.records import MOST_OVERRUNS, Arm, Ran
from diffusion_edge.profile.ledger import open_ledger

START_S = 40.0
"""About what a server takes to start."""

Opens = Callable[[Mapping[str, Any]], AbstractAsyncContextManager[Live]]
"""A server with some settings changed."""
Tell = Callable[[str], None]


@dataclass
class Server:
    """The one that runs, and with what settings. Starts another when others are wanted, once the
    first has ended, and warms it up with pictures of so many steps."""

    opens: Opens
    steps: int
    tell: Tell
    closing: AsyncExitStack = field(default_factory=AsyncExitStack)
    settings: Mapping[str, Any] | None = None
    live: Live | None = None

    async def with_settings(self, settings: Mapping[str, Any]) -> Live:
        if self.live is None or self.settings != settings:
            await self.closing.aclose()
            self.live = await self.closing.enter_async_context(self.opens(settings))
            self.settings = settings
            share = await self.live.warm(self.steps)
            if share > MOST_OVERRUNS:
                self.tell(
                    f"{100 * share:.1f} % of parts overran with one picture at a time, so rows "
                    "will be void: the machine has other work, or the scale is too small"
                )
        return self.live


@asynccontextmanager
async def serving(opens: Opens, steps: int, tell: Tell) -> AsyncIterator[Server]:
    server = Server(opens, steps, tell)
    try:
        yield server
    finally:
        await server.closing.aclose()


class Runs:
    """Runs of arms, from the ledger where it has them."""

    def __init__(self, server: Server, ledger: Path, settings: Any, tell: Tell) -> None:
        self._server, self._tell = server, tell
        self._ledger, entries = open_ledger(ledger, settings)
        self._known = {entry["key"]: entry["found"] for entry in entries}

    async def of(
        self,
        part: str,
        arm: Arm,
        due: Sequence[float],
        rate_per_s: float,
        wanted: Wanted,
        seed: int,
        turn: int = 0,
    ) -> Ran:
        key = f"{part}, {arm.name}, {rate_per_s:.6g} a second, round {turn + 1}"
        if key not in self._known:
            self._tell(f"{key}: {len(due)} requests")
            live = await self._server.with_settings(arm.settings)
            ran = await live.run(arm, due, rate_per_s, wanted, seed)
            self._keep(key, ran.entry())
        return Ran.read(self._known[key])

    async def planned(self, steps: int) -> dict[str, Any]:
        """What /v1/plan said of a quiet server when the ledger was begun."""
        key = f"planned, {steps} steps"
        if key not in self._known:
            live = await self._server.with_settings({})
            await live.quiet()
            self._keep(key, await live.plan(Wanted(steps, 60.0, 0.0), {"policy": "in-turn"}))
        planned: dict[str, Any] = self._known[key]
        return planned

    def _keep(self, key: str, found: Any) -> None:
        self._ledger.append({"key": key, "found": found})
        self._known[key] = found
