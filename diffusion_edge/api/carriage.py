"""How a request's packet would be carried at each hand-off step."""

from __future__ import annotations

from diffusion_edge.curves import cells_of
from diffusion_edge.families.card import FamilyCard, LatentShape
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.board import Carriage
from diffusion_edge.routing.codecs import CodecTable, codecs_by_step


def carriage(
    card: FamilyCard,
    table: CodecTable | None,
    codec_loss: float,
    request: ImageRequest,
    charged: LatentShape | None = None,
) -> Carriage:
    """By the request's codec; `auto` takes what the table knows to lose at most `codec_loss`.

    charged: the latents that packets are taken for, where links are emulated for those of another
    family.
    """
    from diffusion_edge.packet import predicted_bytes  # torch, which tests of the API do without
    from diffusion_edge.solver import history_length

    codecs = codecs_by_step(request, table, codec_loss)
    shape = card.latent_shape(request.width, request.height)
    history = history_length(request.solver)
    sent = charged(request.width, request.height) if charged else shape
    sizes = {c: predicted_bytes(sent, history, request, c) for c in set(codecs)}
    return Carriage(codecs, tuple(sizes[codec] for codec in codecs), cells_of(shape))
