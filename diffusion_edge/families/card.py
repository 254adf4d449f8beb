"""A family's card: `family.yaml`, read strictly. No torch.

card = load_card(Path("stage_models/shapes"))
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffusion_edge.errors import ConfigError
from diffusion_edge.schedule import fitting
from diffusion_edge.types import Tier


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageCard(_Strict):
    """One denoiser: a diffusers folder, relative to the card's, and the tier it is meant for."""

    folder: str
    tier: Tier
    parameters_millions: float | None = None


class Defaults(_Strict):
    size: int
    steps: int
    guidance: float
    solver: str


class FamilyCard(_Strict):
    """What is known of a family without loading it.

    stages: from the smallest denoiser to the largest.
    sizes: edge lengths in pixels that images may have. factor: pixels per latent cell.
    vocabulary: the words that the text encoder knows; empty if it takes any text.
    metric: what judges pictures when quality is measured; see `profile.metric`.
    """

    name: str
    title: str
    architecture: Literal["pixart"]
    licence: str
    stages: dict[str, StageCard] = Field(min_length=1)
    sizes: tuple[int, ...] = Field(min_length=1)
    latent_channels: int
    factor: int
    max_tokens: int
    defaults: Defaults
    vocabulary: tuple[str, ...] = ()
    metric: str = "distance"
    root: Path = Path()

    @property
    def reference(self) -> str:
        """The stage that quality is relative to: `cloud`, or else the largest."""
        return "cloud" if "cloud" in self.stages else list(self.stages)[-1]

    def folder(self, stage: str) -> Path:
        """The diffusers folder of a stage's model. Raises ConfigError for an unknown one."""
        if stage not in self.stages:
            known = ", ".join(self.stages)
            raise ConfigError(
                f"family {self.name!r} has no stage model {stage!r}; it has {known}",
                file=str(self.root / "family.yaml"),
                key="stages",
            )
        return self.root / self.stages[stage].folder

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return self.latent_channels, height // self.factor, width // self.factor

    def latent_space(self) -> str:
        """Fingerprint of the space the latents live in: the VAE's weights and its factors."""
        vae = self.folder(next(iter(self.stages))) / "vae"
        return latent_space(vae)

    def noise(self) -> Mapping[str, Any]:
        """The scheduler config that the family was trained with."""
        path = self.folder(next(iter(self.stages))) / "scheduler" / "scheduler_config.json"
        config: dict[str, Any] = json.loads(path.read_text())
        return config

    def solvers(self) -> tuple[str, ...]:
        """Those that fit the family's noise config."""
        return fitting(self.noise())


def latent_space(vae: Path) -> str:
    """Hex digest over a VAE folder's safetensors and the config values that scale its latents."""
    try:
        config = json.loads((vae / "config.json").read_text())
        digest = hashlib.blake2b(digest_size=16)
        for key in ("latent_channels", "scaling_factor", "shift_factor"):
            digest.update(f"{key}={config.get(key)};".encode())
        for weights in sorted(vae.glob("*.safetensors")):
            digest.update(weights.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"the VAE lacks {error.filename}", file=str(vae)) from None
    return digest.hexdigest()


def load_card(folder: Path) -> FamilyCard:
    """The card in `folder`, or a ConfigError that says where it is wrong."""
    path = folder / "family.yaml"
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"there is no family card at {path}", file=str(path)) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}", file=str(path)) from None
    if not isinstance(data, dict) or "root" in data:
        raise ConfigError(f"{path} is not a family card", file=str(path))
    try:
        return FamilyCard.model_validate(data | {"root": folder})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {key}: {first['msg']}", file=str(path), key=key) from None
