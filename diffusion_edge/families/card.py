"""A family's card: `family.yaml`, read strictly. No torch.

card = load_card(Path("stage_models/shapes"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffusion_edge.config import Settings
from diffusion_edge.errors import ConfigError, UnsupportedSolver
from diffusion_edge.families import hub
from diffusion_edge.families.sizes import GivenSizes
from diffusion_edge.families.space import space
from diffusion_edge.families.weights import json_object
from diffusion_edge.places import family_folder
from diffusion_edge.plan import MAX_GUIDANCE, MAX_STEPS, Tier
from diffusion_edge.request import ImageRequest
from diffusion_edge.schedule import fitting, trained_unlike
from diffusion_edge.strict import Disagreement, nearest, read_yaml, validate

NOISE = Path("scheduler") / "scheduler_config.json"
_NO_ARCHITECTURE = (
    "__init__",
    "attention",
    "base",
    "card",
    "fused",
    "hub",
    "load",
    "pipeline",
    "quiet",
    "sizes",
    "space",
    "weights",
)


def architectures() -> tuple[str, ...]:
    """Every other module of this package is one; see `families.load`."""
    modules = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return tuple(sorted(set(modules).difference(_NO_ARCHITECTURE)))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Dtype = Literal["float32", "bfloat16", "float16"]


class StageCard(_Strict):
    """One denoiser, and the tier it is meant for.

    folder: a diffusers folder, relative to the card's; or else hub and revision: a repository of
        the Hugging Face hub that has one.
    dtype: what it runs in unless the config says otherwise.
    guidance: this model's own, where the request's would not suit it; None takes the request's.
    licence: of these weights, where it is not the family's.
    """

    tier: Tier
    folder: str | None = None
    hub: str | None = None
    revision: str = "main"
    dtype: Dtype = "float32"
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] | None = None
    licence: str | None = None
    parameters_millions: float | None = None

    @model_validator(mode="after")
    def _one_place(self) -> StageCard:
        if (self.folder is None) == (self.hub is None):
            raise ValueError("a stage model needs either a folder or a hub repository")
        return self

    def dtype_on(self, device: str) -> Dtype:
        """What the model runs in on a device of this type, unless the config says otherwise.

        CPUs have no arithmetic for halves: in float16 a 3x3 convolution of 320 channels over 32x32
        cells took 150 times as long as in float32.
        """
        return "float32" if device == "cpu" and self.dtype == "float16" else self.dtype


class Defaults(_Strict):
    """`size` is the edge of a square picture."""

    size: int
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)]
    solver: str


class FamilyCard(_Strict):
    """What is known of a family without loading it.

    stages: from the smallest denoiser to the largest.
    shared: the stage whose text encoders all stages use; None if each has its own.
    vae: the stage whose VAE stands for all; None if each has its own. For siblings that were
        trained in its space, but whose folders hold a copy with other weights.
    factor: pixels per latent cell. max_tokens: of a prompt, for the longest of the text encoders.
    vocabulary: the words that the text encoder knows; empty if it takes any text.
    metric: what judges pictures when quality is measured; see `profile.metric`.
    """

    name: str
    title: str
    architecture: str
    licence: str
    stages: dict[str, StageCard] = Field(min_length=1)
    shared: str | None = None
    vae: str | None = None
    sizes: GivenSizes
    latent_channels: int
    factor: int
    max_tokens: int
    defaults: Defaults
    vocabulary: tuple[str, ...] = ()
    metric: str = "distance"
    root: Path = Path()

    @model_validator(mode="after")
    def _names_agree(self) -> FamilyCard:
        if self.architecture not in architectures():
            known, near = ", ".join(architectures()), nearest(self.architecture, architectures())
            message = f"there is no architecture {self.architecture!r}; there are {known}{near}"
            raise Disagreement(("architecture",), message)
        for key, stage in (("shared", self.shared), ("vae", self.vae)):
            if stage is not None and stage not in self.stages:
                near = nearest(stage, self.stages)
                raise Disagreement((key,), f"there is no stage {stage!r}{near}")
        return self

    @property
    def reference(self) -> str:
        """The stage that quality is relative to: `cloud`, or else the largest."""
        return "cloud" if "cloud" in self.stages else list(self.stages)[-1]

    def folder(self, stage: str) -> Path:
        """The diffusers folder of a stage's model.

        Raises ConfigError for an unknown stage, and for a hub model that is not on disk.
        """
        if stage not in self.stages:
            known = ", ".join(self.stages)
            raise ConfigError(
                f"family {self.name!r} has no stage model {stage!r}; it has {known}",
                file=str(self.root / "family.yaml"),
                key="stages",
            )
        at = self.stages[stage]
        if at.folder is not None:
            return self.root / at.folder
        assert at.hub is not None
        found = hub.cached(at.hub, at.revision, self.encodes(stage))
        if found is None:
            raise ConfigError(
                f"the model {at.hub} of the stage {stage!r} is not on disk; "
                f"`diffusion-edge models pull {self.name}` fetches it",
                file=str(self.root / "family.yaml"),
                key=f"stages.{stage}",
            )
        return found

    def encodes(self, stage: str) -> bool:
        """Whether the text encoders of this stage's own folder are used."""
        return self.shared in (None, stage)

    def request(self, prompt: str, seed: int) -> ImageRequest:
        """One image with the defaults; the steps are those asked for, before they are resolved."""
        return ImageRequest(
            prompt=prompt,
            family=self.name,
            steps=self.defaults.steps,
            seed=seed,
            solver=self.defaults.solver,
            guidance=self.defaults.guidance,
            width=self.defaults.size,
            height=self.defaults.size,
        )

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return self.latent_channels, height // self.factor, width // self.factor

    def shape_in(self, other: FamilyCard, width: int, height: int) -> tuple[int, int, int]:
        """The latent shape in another family of a picture that is as much larger or smaller than
        its default size as one of `width` x `height` is here."""
        cells = other.defaults.size / other.factor / self.defaults.size
        return other.latent_channels, round(height * cells), round(width * cells)

    def latent_space(self, stage: str | None = None) -> str:
        """Fingerprint of the space that a stage's latents live in; the reference stage's for None.

        It covers the VAE's weights and its factors; see `families.space`. Stages with one VAE
        for all have the same.
        """
        return space(self.folder(self.vae or stage or self.reference) / "vae").fingerprint

    def noise(self, stage: str | None = None) -> Mapping[str, Any]:
        """The scheduler config of a stage's folder; for None the reference's, which is the
        family's: by it the levels of a trajectory are chosen."""
        return json_object(self.folder(stage or self.reference) / NOISE)

    def check_noise(self, stage: str) -> None:
        """ConfigError for a stage whose model learned another noise than the family's."""
        own = self.folder(stage) / NOISE
        try:
            unlike = trained_unlike(self.noise(stage), self.noise())
        except UnsupportedSolver as error:
            raise ConfigError(f"{own}: {error.message}", file=str(own)) from None
        if unlike:
            raise ConfigError(
                f"the model of the stage {stage!r} was trained otherwise than that of "
                f"{self.reference!r}: {'; '.join(unlike)}. They cannot hand off to each other",
                file=str(own),
                key=unlike[0].partition(" ")[0],
            )

    def solvers(self) -> tuple[str, ...]:
        """Those that fit the family's noise config."""
        return fitting(self.noise())


LatentShape = Callable[[int, int], tuple[int, int, int]]
"""By width and height of a picture."""


def charged_shape(card: FamilyCard, settings: Settings) -> LatentShape | None:
    """The latents that emulated links take a packet's for, if the settings state a family for that.

    Raises ConfigError if that family is not known or its card is wrong.
    """
    if settings.emulate is None:
        return None
    return partial(card.shape_in, load_card(family_folder(settings.emulate.packet_bytes)))


def load_card(folder: Path) -> FamilyCard:
    """The card in `folder`, or a ConfigError that says where it is wrong."""
    path = folder / "family.yaml"
    if not path.is_file():
        raise ConfigError(f"there is no family card at {path}", file=str(path))
    data, document = read_yaml(path)
    if isinstance(data, dict):
        if "root" in data:
            raise ConfigError(f"{path}: root: unknown key", file=str(path), key="root")
        data |= {"root": folder}
    return validate(FamilyCard, data, str(path), document)
