"""The ingress deployment: the HTTP application, the board it looks at, the gate before it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray import serve

from diffusion_edge.api.board import Board
from diffusion_edge.api.carriage import carriage
from diffusion_edge.api.gate import App, Gate
from diffusion_edge.api.prober import Prober
from diffusion_edge.api.schema import ImagesBody
from diffusion_edge.config import Settings
from diffusion_edge.families.card import FamilyCard, charged_shape, load_card
from diffusion_edge.places import family_folder
from diffusion_edge.routing.codecs import codec_table
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.schedule import resolved_steps
from diffusion_edge.sites.ray import RayTransport
from diffusion_edge.view import StageStatus


@serve.ingress()
class Ingress:
    """One replica; `handles` reach the stages by name."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: Settings, handles: Mapping[str, Any]
    ) -> None:
        # Here and not above: the process that deploys has no need of torch.
        from diffusion_edge.api.http import create_app
        from diffusion_edge.api.service import Service
        from diffusion_edge.api.watch import Watcher

        folder = family_folder(settings.family)
        card = load_card(folder)
        carried = partial(
            carriage,
            card,
            codec_table(folder),
            settings.defaults.codec_loss,
            charged=charged_shape(card, settings),
        )
        self._board = Board(
            {name: partial(_status, handle) for name, handle in handles.items()},
            settings.first_guesses(),
            settings.prices_per_s,
            carried,
            measure_links=settings.measure_links,
        )
        transport = RayTransport(handles)
        quality = _quality(folder, card)
        service = Service(
            card=card,
            settings=settings,
            quality=quality,
            board=self._board,
            transport=transport,
            throttle=transport.throttle,
            tells=transport,
            watcher=Watcher(settings.watch, settings, quality) if settings.watch else None,
        )
        links = self._board.links
        links.expect(max(carried(service.request(ImagesBody(prompt="a picture"))).packet_bytes))
        self._prober = Prober(links, self._board.open_pairs, transport.probe)
        self._board.start()
        if settings.measure_links:
            self._prober.start()
        self._gate = Gate(create_app(service))

    def __serve_build_asgi_app__(self) -> App:
        """Called by Serve when the replica starts."""
        return self._gate

    async def drain(self, limit_s: float) -> int:
        """Turns new requests away; ends, and counts, those that still run after `limit_s`."""
        await self._prober.stop()
        return await self._gate.drain(limit_s)


def _quality(folder: Path, card: FamilyCard) -> QualityTable:
    path = folder / "quality.json"
    if path.exists():
        return QualityTable.read(path)
    steps = resolved_steps(card.defaults.solver, card.defaults.steps)
    return QualityTable.unknown(card.name, card.reference, steps)


async def _status(handle: Any) -> StageStatus:
    status: StageStatus = await handle.status.remote()
    return status
