"""From a family card to a family that can run."""

from __future__ import annotations

from diffusion_edge.families.base import Family
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.families.pixart import PixArtFamily

_ARCHITECTURES = {"pixart": PixArtFamily}


def load_family(card: FamilyCard, stage: str) -> Family:
    """The family with the denoiser of `stage`, from safetensors on disk, float32 on the CPU."""
    return _ARCHITECTURES[card.architecture].load(card, stage)
