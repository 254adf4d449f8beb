"""What architectures over a diffusers folder share: loading, the schedule, the VAE.

An architecture says which models its folder holds, how text becomes conditioning, and how its
denoiser is called.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import psutil
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor
from transformers import AutoTokenizer

from diffusion_edge.config import Attention
from diffusion_edge.errors import ConfigError, DoesNotFit
from diffusion_edge.families.base import Conditioning, to_pictures
from diffusion_edge.families.card import Dtype, FamilyCard
from diffusion_edge.families.hub import INDEX
from diffusion_edge.families.sizes import Sizes
from diffusion_edge.families.weights import (
    dtype_of,
    human,
    json_object,
    model_config,
    model_files,
    needed_bytes,
    only,
    tokenizer_files,
)
from diffusion_edge.offer import Offer
from diffusion_edge.plan import Guiding
from diffusion_edge.request import Picture
from diffusion_edge.schedule import Bounds, Schedule, bounds, fitting, resolve

log = logging.getLogger(__name__)

ROOM = 1.1
"""Memory that must be free, in shares of the weights: what a forward pass holds beside them."""


@dataclass(frozen=True)
class Loading:
    """How a stage's models are held.

    dtype: None takes the card's. device: `auto` is a GPU where there is one. offload: keep only
    the model that is at work on the GPU, the others in main memory. kernels: `off` leaves the
    modules of diffusers as they are. attention: see `families.attention`.
    """

    dtype: Dtype | None = None
    device: str = "auto"
    offload: bool = False
    kernels: Literal["auto", "off"] = "auto"
    attention: Attention = "auto"

    def torch_device(self) -> torch.device:
        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class PipelineFamily:
    """`Family` over a diffusers folder; see `families.base` for the contract.

    parts: models and tokenizers by their name in the folder; a part that the folder leaves out is
        not there.
    noise: the scheduler config that the family was trained with, and the bounds of its levels.
    index: the folder's `model_index.json`, which also has options of the stock pipeline.
    """

    MODELS: ClassVar[Mapping[str, type]] = {}
    """Text encoders and the denoiser, by name in the folder; the denoiser comes last."""
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Models that a folder may leave out."""

    name: str
    stage: str
    latent_space: str
    noise: Mapping[str, Any]
    bounds: Bounds
    index: Mapping[str, Any]
    sizes: Sizes
    channels: int
    factor: int
    max_tokens: int
    knows_all_words: bool
    device: torch.device
    parts: Mapping[str, Any] = field(repr=False)
    attention: str = "sdpa"

    # ------------------------------------------------------------------ loading

    @classmethod
    def load(cls, card: FamilyCard, stage: str, loading: Loading) -> Self:
        """From the stage's folder; text encoders and VAE from others', if the card names them."""
        own, shared = card.folder(stage), card.folder(card.shared or stage)
        painter = card.folder(card.vae or stage)
        *texts, denoiser = cls.MODELS
        card.check_noise(stage)
        at = {name: shared / name for name in texts}
        at |= {denoiser: own / denoiser, "vae": painter / "vae"}
        at = {n: folder for n, folder in at.items() if n not in cls.OPTIONAL or folder.is_dir()}
        kinds = {n: cls._vae_class(painter) if n == "vae" else cls.MODELS[n] for n in at}
        device = loading.torch_device()
        dtype = loading.dtype or card.stages[stage].dtype_on(device.type)
        for name, folder in at.items():
            _check_folder(kinds[name], folder)
        _check_memory(at, dtype, device, loading.offload, stage)
        parts = {name: _model(kinds[name], folder, dtype) for name, folder in at.items()}
        for name in texts:
            tokenizer = name.replace("text_encoder", "tokenizer")
            if name in parts:
                parts[tokenizer] = _tokenizer(shared / tokenizer)
        parts["vae"].to(memory_format=torch.channels_last)  # convolutions like it
        models = [parts[name] for name in at]
        if loading.offload:
            offload(models, device)
        else:
            for model in models:
                model.to(device)
        return cls(
            name=card.name,
            stage=stage,
            latent_space=card.latent_space(stage),
            noise=card.noise(),
            bounds=bounds(card.noise()),
            index=json_object(own / INDEX),
            sizes=card.sizes,
            channels=card.latent_channels,
            factor=card.factor,
            max_tokens=card.max_tokens,
            knows_all_words=not card.vocabulary,
            device=device,
            parts=parts,
        )

    @classmethod
    def _vae_class(cls, folder: Path) -> type:
        found = json_object(folder / INDEX).get("vae")
        name = found[1] if isinstance(found, list) and len(found) == 2 else None
        for kind in (AutoencoderKL, AutoencoderTiny):
            if kind.__name__ == name:
                known: type = kind
                return known
        raise ConfigError(
            f"the VAE is a {name}; AutoencoderKL and AutoencoderTiny are supported",
            file=str(folder / INDEX),
            key="vae",
        )

    # ------------------------------------------------------------------ the contract

    @property
    def denoiser(self) -> Any:
        return self.parts[list(self.MODELS)[-1]]

    @property
    def text_encoders(self) -> Sequence[Any]:
        *texts, _ = self.MODELS
        return [self.parts[name] for name in texts if name in self.parts]

    @property
    def vae(self) -> Any:
        return self.parts["vae"]

    @property
    def offer(self) -> Offer:
        return Offer(
            latent_space=self.latent_space,
            allows=self.sizes.allows,
            latent_shape=self.latent_shape,
            solvers=fitting(self.noise),
            prediction=self.bounds.prediction,
            timestep=self.bounds.timestep,
            sigma=self.bounds.sigma,
        )

    @property
    def guiding(self) -> Guiding:
        return "doubled"

    @property
    def execution(self) -> str:
        return "eager"

    def with_denoiser(self, denoiser: Any) -> Self:
        return replace(self, parts={**self.parts, list(self.MODELS)[-1]: denoiser})

    @property
    def patch(self) -> int:
        """Edge of a token in latent cells."""
        return int(self.denoiser.config.patch_size)

    def schedule(self, solver: str, steps: int, width: int, height: int) -> Schedule:
        return _resolved(json.dumps(self.noise), solver, steps, self.tokens(width, height))

    def tokens(self, width: int, height: int) -> int:
        """What the denoiser makes of a picture of this size; the shift of a flow depends on it."""
        edge = self.factor * self.patch
        return (width // edge) * (height // edge)

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        return (self.channels, height // self.factor, width // self.factor)

    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        return self.encode(self.words(prompts))

    def words(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        raise NotImplementedError(f"{type(self)} does not say how")

    def encode(self, words: Mapping[str, Tensor]) -> Conditioning:
        raise NotImplementedError(f"{type(self)} does not say how")

    def predict(
        self, latent: Tensor, timestep: Tensor, guidance: Tensor, conditioning: Conditioning
    ) -> Tensor:
        raise NotImplementedError(f"{type(self)} does not say how")

    def decode(self, latent: Tensor) -> list[Picture]:
        return to_pictures(self.images(latent))

    def images(self, latent: Tensor) -> Tensor:
        config = self.vae.config
        scaled = latent / config.scaling_factor + (config.get("shift_factor") or 0.0)
        made: Tensor = self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0]
        return made

    def unknown_words(self, prompt: str) -> list[str]:
        """Words that a family with a vocabulary does not have."""
        if self.knows_all_words:
            return []
        tokenizer = self.parts["tokenizer"]
        pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(prompt.lower().strip())
        vocabulary = tokenizer.get_vocab()
        return [piece for piece, _ in pieces if piece not in vocabulary]

    # ------------------------------------------------------------------ for architectures

    @property
    def dtype(self) -> torch.dtype:
        """Of the denoiser and of conditioning."""
        found: torch.dtype = self.denoiser.dtype
        return found

    @staticmethod
    def here(model: Any) -> Any:
        """The model; one that stays off the device until it is called comes to it."""
        hook = getattr(model, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(model)
        return model

    def tokenize(self, tokenizer: str, prompts: Sequence[str], length: int) -> Any:
        """Token ids and mask (B, length) on the device; longer prompts are cut."""
        return self.parts[tokenizer](
            list(prompts),
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)

    def clip_length(self, tokenizer: str) -> int:
        """Tokens that a CLIP text encoder reads."""
        return int(self.parts[tokenizer].model_max_length)


@lru_cache(maxsize=256)
def _resolved(noise: str, solver: str, steps: int, tokens: int) -> Schedule:
    """`resolve`, which takes a millisecond; the noise config as JSON."""
    return resolve(json.loads(noise), solver, steps, tokens=tokens)


def _check_folder(kind: Any, folder: Path) -> None:
    """ConfigError, before anything is loaded, for a model's folder that is unfit or of another
    model."""
    model_files(folder)
    said = model_config(folder)
    architecture = said.get("_class_name") or (said.get("architectures") or [""])[0]
    if architecture and architecture != kind.__name__:
        raise ConfigError(
            f"{folder / 'config.json'} is of a {architecture}; this architecture needs a "
            f"{kind.__name__}",
            file=str(folder / "config.json"),
        )


def _model(kind: Any, folder: Path, dtype: str) -> Any:
    """A model for inference, from the files that were looked at and no others."""
    held = getattr(torch, dtype_of(model_config(folder), dtype))
    with only(model_files(folder)) as shown, _errors_for_people(folder):
        model = kind.from_pretrained(shown, dtype=held, local_files_only=True, use_safetensors=True)
    return model.eval().requires_grad_(False)


def _tokenizer(folder: Path) -> Any:
    with only(tokenizer_files(folder)) as shown, _errors_for_people(folder):
        return AutoTokenizer.from_pretrained(shown, local_files_only=True, trust_remote_code=False)


@contextmanager
def _errors_for_people(folder: Path) -> Iterator[None]:
    """The libraries' many errors about a folder's content as one; the cause is kept."""
    try:
        yield
    except Exception as error:
        told = " ".join(str(error).split())[:300]
        raise ConfigError(f"{folder} cannot be loaded: {told}", file=str(folder)) from error


def offload(models: Sequence[Any], device: torch.device) -> None:
    """Each model comes to the device when it is called and sends the one before it away."""
    from accelerate import cpu_offload_with_hook

    hook = None
    for model in models:
        _, hook = cpu_offload_with_hook(model, device, prev_module_hook=hook)


# ---------------------------------------------------------------------------- memory


def _check_memory(
    folders: Mapping[str, Path], dtype: str, device: torch.device, offload: bool, stage: str
) -> None:
    """DoesNotFit, told from the checkpoints' headers, before anything is loaded."""
    if offload and device.type != "cuda":
        raise ConfigError("offload moves models between a GPU and main memory; there is no GPU")
    try:
        total = needed_bytes(folders.values(), dtype)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{error}; fetch it again") from None
    log.info("the stage %s needs %s in %s", stage, human(total), dtype)
    if device.type == "cuda":
        largest = max(needed_bytes([folder], dtype) for folder in folders.values())
        free, _ = torch.cuda.mem_get_info(device)
        _refuse(largest if offload else total, free, f"the GPU {device}", dtype, stage)
    if device.type == "cpu" or offload:
        _refuse(total, psutil.virtual_memory().available, "main memory", dtype, stage)


def _refuse(needed: int, free: int, place: str, dtype: str, stage: str) -> None:
    if needed * ROOM <= free:
        return
    smaller = "" if dtype != "float32" else "; dtype bfloat16 or float16 needs half of it"
    raise DoesNotFit(
        f"the stage {stage!r} needs {human(needed)} for its weights in {dtype} and "
        f"{human(int(needed * (ROOM - 1)))} to work with; {place} has {human(free)} free{smaller}"
    )
