"""How a tensor is carried between two stages.

    codec  carried as                                bytes a value   error of a value
    exact  float32                                   4               none
    bf16   bfloat16, rounded to nearest              2               at most 2^-8 of the value
    int8   round(x / scale), scale = max |x| / 127   1, and 4 for    at most max |x| / 254
           over the channel; the scales in float32   each channel    over the channel

A tensor is float32 (1, C, ...), C channels, of 2 to 8 dimensions; it goes in and comes out as such.
Below the smallest normal float32 the bounds end. What a codec would turn into infinity is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from diffusion_edge.errors import InvalidTensor, NotFinite
from diffusion_edge.kernels.quantise import dequantise, quantise
from diffusion_edge.plan import Codec

MAX_RANK = 8
_DTYPES: Mapping[Codec, torch.dtype] = {
    "exact": torch.float32,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}


def part_names(name: str, codec: Codec) -> tuple[str, ...]:
    """The names of the tensors that carry the tensor `name`."""
    return (name, f"{name}.scale") if codec == "int8" else (name,)


def encode(name: str, tensor: Tensor, codec: Codec) -> dict[str, Tensor]:
    """The tensors that carry `tensor`, by name, all new. Raises InvalidTensor and NotFinite."""
    check(name, tensor)
    if codec == "int8":
        levels, scale = quantise(tensor)
        parts = {name: levels, f"{name}.scale": scale}
    else:
        parts = {name: tensor.to(_DTYPES[codec], copy=True)}
    if not torch.isfinite(_value(name, parts)).all():
        largest = float(tensor.abs().max())
        raise NotFinite(f"{codec} cannot carry the {name}: its largest value is {largest:g}")
    return parts


def decode(name: str, parts: Mapping[str, Tensor], codec: Codec) -> Tensor:
    """The tensor that `parts` carry, whatever they hold. Raises InvalidTensor and NotFinite."""
    carried = parts[name]
    if carried.dtype != _DTYPES[codec]:
        raise InvalidTensor(f"the {name} is {carried.dtype}; {codec} carries {_DTYPES[codec]}")
    check_shape(name, carried)
    if codec == "int8":
        scale, channels = parts[f"{name}.scale"], carried.shape[1]
        if scale.dtype != torch.float32 or tuple(scale.shape) != (channels,):
            raise InvalidTensor(
                f"the scales of the {name} are {scale.dtype} of shape {tuple(scale.shape)}; "
                f"{channels} channels need float32 of shape ({channels},)"
            )
        if (scale < 0).any():
            raise InvalidTensor(f"a scale of the {name} is negative")
    value = _value(name, parts)
    check(name, value)
    return value


def check(name: str, tensor: Tensor) -> None:
    """Raises InvalidTensor or NotFinite for what no codec carries."""
    if tensor.dtype != torch.float32:
        raise InvalidTensor(f"the {name} is {tensor.dtype}, not float32")
    check_shape(name, tensor)
    if not torch.isfinite(tensor).all():
        raise NotFinite(f"the {name} has NaN or infinite values")


def check_shape(name: str, tensor: Tensor) -> None:
    shape = tuple(tensor.shape)
    if not 2 <= len(shape) <= MAX_RANK or shape[0] != 1 or 0 in shape:
        shown = str(shape) if len(shape) <= MAX_RANK else f"with {len(shape)} dimensions"
        raise InvalidTensor(f"the {name} has the shape {shown}; it should be (1, channels, ...)")


def _value(name: str, parts: Mapping[str, Tensor]) -> Tensor:
    scale = parts.get(f"{name}.scale")
    return parts[name].float() if scale is None else dequantise(parts[name], scale)
