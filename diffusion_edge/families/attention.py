"""By what a denoiser attends: all compute the same, and what is fastest differs by GPU and size.

probe of one token -> the model says the same -> seconds, in turns -> the fastest
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
    XFormersAttnProcessor,
    XFormersJointAttnProcessor,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion_edge.errors import ConfigError
from diffusion_edge.families.fused import said, same
from diffusion_edge.families.pipeline import PipelineFamily
from diffusion_edge.kernels.swaps import Swap, put

log = logging.getLogger(__name__)

Name = Literal["sdpa", "cudnn", "fa3", "xformers"]
CUDNN = SDPBackend.CUDNN_ATTENTION
HEAD = 64
"""Values of the one token that a probe attends to."""
ROWS = 2
REPEATS = 5
GAIN = 1.03
"""Times as fast as torch's own choice that another one has to make the denoiser."""


@dataclass(frozen=True)
class Kind:
    """One way to attend.

    probe: attends to one token (1, 1, 1, HEAD), and raises what is wrong. swaps: what it changes in
    a denoiser; nothing if that does not let it.
    """

    probe: Callable[[Tensor], object]
    swaps: Callable[[nn.Module], Iterator[Swap]]


@dataclass(frozen=True)
class Chosen:
    """refused: by each of the others, why not. seconds: of a forward pass of ROWS, of what ran."""

    taken: Name
    refused: Mapping[Name, str]
    seconds: Mapping[Name, float]


def fitted(family: PipelineFamily, asked: Name | Literal["auto"], edge: int) -> PipelineFamily:
    """The family, attending as it is asked for; `auto` takes what is fastest for squares of `edge`
    pixels.

    Raises ConfigError, with the reason, where what is asked for cannot be.
    """
    chosen = choose(family, edge) if asked == "auto" else _asked(family, asked)
    log.info("%s: attention by %s", family.stage, told(chosen))
    return replace(family, attention=chosen.taken)


def choose(family: PipelineFamily, edge: int) -> Chosen:
    """Tries all, and leaves the fastest in the denoiser."""
    refused = {name: reason for name in KINDS if (reason := _refuses(family, name)) is not None}
    able = [name for name in KINDS if name not in refused]
    seconds: dict[Name, float] = _seconds(family, able, edge) if len(able) > 1 else {}
    best = min(seconds, key=seconds.__getitem__, default=able[0])
    if seconds and seconds["sdpa"] < GAIN * seconds[best]:
        best = "sdpa"
    put(KINDS[best].swaps(family.denoiser))
    refused |= {name: "slower" for name in able if name != best}
    return Chosen(best, refused, seconds)


def _asked(family: PipelineFamily, name: Name) -> Chosen:
    reason = _refuses(family, name)
    if reason is not None:
        message = f"the model {family.stage!r} cannot attend by {name}: {reason}"
        raise ConfigError(message, key="attention")
    put(KINDS[name].swaps(family.denoiser))
    return Chosen(name, {}, {})


def probed(name: Name, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why it cannot attend to one token on this device; None if it can."""
    try:
        KINDS[name].probe(torch.ones(1, 1, 1, HEAD, device=device, dtype=dtype))
    except Exception as error:  # whatever a library for other machines raises
        return " ".join(str(error).split())[:150] or type(error).__name__
    return None


def told(chosen: Chosen) -> str:
    """In one line."""
    others = "; ".join(f"{name}: {why}" for name, why in chosen.refused.items())
    return f"{chosen.taken}. {others}"


# ---------------------------------------------------------------------------- trying one


def _refuses(family: PipelineFamily, name: Name) -> str | None:
    """None too for what the denoiser attends by anyway. Leaves the denoiser as it was."""
    if name == "sdpa":
        return None
    reason = probed(name, family.device, family.dtype)
    if reason is not None:
        return reason
    wanted = list(KINDS[name].swaps(family.denoiser))
    if not wanted:
        return "the denoiser has no place for it"
    known = said(family, 0.0)
    undo = put(wanted)
    try:
        return None if same(family, known) else "the denoiser says something else with it"
    except Exception as error:
        return " ".join(str(error).split())[:150] or type(error).__name__
    finally:
        put(undo)


@torch.inference_mode()
def _seconds(family: PipelineFamily, names: list[Name], edge: int) -> dict[Name, float]:
    """The least of REPEATS, for what disturbs only adds; in turns, without the first of each."""
    latent = torch.randn(ROWS, *family.latent_shape(edge, edge), device=family.device)
    timestep, guidance = (torch.full((ROWS,), v, device=family.device) for v in (500.0, 3.5))
    texts = family.encode_text([""] * ROWS)
    found: dict[Name, list[float]] = {name: [] for name in names}
    for _ in range(1 + REPEATS):
        for name in names:
            undo = put(KINDS[name].swaps(family.denoiser))
            _wait(family.device)
            began = time.perf_counter()
            family.predict(latent, timestep, guidance, texts)
            _wait(family.device)
            found[name].append(time.perf_counter() - began)
            put(undo)
    return {name: min(seconds[1:]) for name, seconds in found.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---------------------------------------------------------------------------- the kinds


def _sdpa(token: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(token, token, token)


def _cudnn(token: Tensor) -> Tensor:
    with sdpa_kernel(CUDNN):
        return _sdpa(token)


def _fa3(token: Tensor) -> Any:
    import flash_attn_interface

    return flash_attn_interface.flash_attn_func(token, token, token)


def _xformers(token: Tensor) -> Any:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(token, token, token)


def _by_cudnn(denoiser: Any) -> Iterator[Swap]:
    """All that torch attends by. What comes to its device when it is called has a forward of its
    own."""
    if not hasattr(denoiser, "_hf_hook"):
        yield denoiser, "__class__", _under_cudnn(type(denoiser))


def _under_cudnn(denoiser: Any) -> type:
    """A subclass of this class of a denoiser, and not a closure: it is copied with the module."""

    def forward(self: Any, *inputs: Any, **named: Any) -> Any:
        with sdpa_kernel(CUDNN):
            return denoiser.forward(self, *inputs, **named)

    return type(denoiser.__name__, (denoiser,), {"forward": forward})


def _dispatched(backend: AttentionBackendName, denoiser: nn.Module) -> Iterator[Swap]:
    """Where diffusers' dispatcher is asked."""
    for module in denoiser.modules():
        processor = getattr(module, "processor", None)
        if hasattr(processor, "_attention_backend"):
            yield processor, "_attention_backend", backend


def _by_fa3(denoiser: nn.Module) -> Iterator[Swap]:
    yield from _dispatched(AttentionBackendName._FLASH_3, denoiser)


def _by_xformers(denoiser: nn.Module) -> Iterator[Swap]:
    yield from _dispatched(AttentionBackendName.XFORMERS, denoiser)
    for module in denoiser.modules():
        if type(module) is not Attention:
            continue
        if type(module.processor) is AttnProcessor2_0:
            yield module, "processor", XFormersAttnProcessor()
        elif isinstance(module.processor, JointAttnProcessor2_0):
            yield module, "processor", XFormersJointAttnProcessor()


KINDS: Mapping[Name, Kind] = {
    "sdpa": Kind(_sdpa, lambda denoiser: iter(())),
    "cudnn": Kind(_cudnn, _by_cudnn),
    "fa3": Kind(_fa3, _by_fa3),
    "xformers": Kind(_xformers, _by_xformers),
}
