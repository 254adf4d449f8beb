"""The in-process transport."""

from __future__ import annotations

import pytest

from diffusion_edge.errors import StageLost
from diffusion_edge.sites.local import LocalTransport


async def test_an_unknown_stage_is_named() -> None:
    with pytest.raises(StageLost, match="no stage 'attic' here") as caught:
        await anext(LocalTransport({}).run("attic", b""))
    assert caught.value.stage == "attic"
