"""From a family card to a family that can run."""

from __future__ import annotations

from importlib import import_module

from diffusion_edge.families.attention import fitted
from diffusion_edge.families.base import Loaded
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.families.fused import fuse
from diffusion_edge.families.pipeline import Loading, PipelineFamily

AS_THE_CARD_SAYS = Loading()


def load_family(card: FamilyCard, stage: str, loading: Loading = AS_THE_CARD_SAYS) -> Loaded:
    """The family with the denoiser of `stage`, from safetensors on disk.

    An architecture is a module of this package with a class `Architecture`. Raises ConfigError
    for what is missing, or does not fit the architecture or the device, DoesNotFit for what memory
    cannot hold.
    """
    module = import_module(f"diffusion_edge.families.{card.architecture}")
    family: PipelineFamily = module.Architecture.load(card, stage, loading)
    if loading.kernels == "auto":
        fuse(family)
    return fitted(family, loading.attention, card.defaults.size)
