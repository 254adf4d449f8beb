"""The committed preview decoder, on latents of drawn scenes."""

from __future__ import annotations

import random

import pytest
import torch
from diffusers import AutoencoderTiny

from stage_models.shapes.data import draw_many, encode_many
from stage_models.shapes.models import SHARED


@pytest.mark.parametrize("size", [64, 128])
def test_a_preview_shows_what_the_latent_holds(size: int) -> None:
    """Nearer to the picture than the best picture of one colour, and not what another latent
    gives."""
    vae = AutoencoderTiny.from_pretrained(SHARED / "vae", torch_dtype=torch.float32).eval()
    preview = AutoencoderTiny.from_pretrained(SHARED / "preview", torch_dtype=torch.float32).eval()
    _, pixels = draw_many(random.Random(3), 16, size)
    wanted = pixels.float() / 127.5 - 1
    latent = encode_many(vae, pixels, "cpu", torch.float32)
    with torch.inference_mode():
        shown = preview.decode(latent).sample
    error = (shown - wanted).square().mean()
    assert shown.shape == wanted.shape
    assert error < (wanted - wanted.mean((2, 3), keepdim=True)).square().mean() / 2
    assert error < (shown.roll(1, 0) - wanted).square().mean() / 5


def test_a_preview_is_small() -> None:
    vae, preview = (
        AutoencoderTiny.from_pretrained(SHARED / part, torch_dtype=torch.float32)
        for part in ("vae", "preview")
    )
    assert (
        sum(p.numel() for p in preview.parameters()) < sum(p.numel() for p in vae.parameters()) / 20
    )
