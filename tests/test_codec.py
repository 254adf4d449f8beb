from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion_edge.codec import decode, encode, part_names
from diffusion_edge.errors import InvalidTensor, NotFinite
from diffusion_edge.plan import Codec

CODECS: tuple[Codec, ...] = ("exact", "bf16", "int8")
TINY = 2.0**-126  # the smallest normal float32
LARGEST = torch.finfo(torch.float32).max


@st.composite
def tensors(draw: st.DrawFn, largest: float = 2.0**120) -> Tensor:
    """Finite float32 (1, C, ...) of rank 2 to 6, some channels all zero, scales far apart."""
    shape = (1, *draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    finite = st.floats(-largest, largest, width=32)
    near = st.floats(-2.0, 2.0, width=32)
    values = st.lists(finite | near, min_size=math.prod(shape), max_size=math.prod(shape))
    tensor = torch.tensor(draw(values)).view(shape)
    keep = torch.tensor(draw(st.lists(st.booleans(), min_size=shape[1], max_size=shape[1])))
    return torch.where(keep.view(1, -1, *(1,) * (len(shape) - 2)), tensor, 0.0)


def carried(tensor: Tensor, codec: Codec) -> Tensor:
    parts = encode("latent", tensor, codec)
    assert set(parts) == set(part_names("latent", codec))
    result = decode("latent", parts, codec)
    assert (result.dtype, result.shape) == (torch.float32, tensor.shape)
    return result


def channel_max(tensor: Tensor) -> Tensor:
    """max |x| of each value's channel, in the tensor's shape."""
    return tensor.abs().amax(dim=tuple(range(2, tensor.ndim)), keepdim=True).expand_as(tensor)


@given(tensors(largest=LARGEST))
@settings(deadline=None)
def test_exact_gives_every_bit_back(tensor: Tensor) -> None:
    assert torch.equal(carried(tensor, "exact").view(torch.int32), tensor.view(torch.int32))


@given(tensors())
@settings(deadline=None)
def test_bf16_errs_by_a_256th_of_the_value_at_most(tensor: Tensor) -> None:
    error = (carried(tensor, "bf16").double() - tensor.double()).abs()
    assert (error <= 2.0**-8 * tensor.double().abs() + TINY).all()


@given(tensors())
@settings(deadline=None)
def test_int8_errs_by_half_a_level_of_the_channel_at_most(tensor: Tensor) -> None:
    largest = channel_max(tensor).double()
    error = (carried(tensor, "int8").double() - tensor.double()).abs()
    rounding = 2.0**-22 * largest  # of the scale, the division and the product
    assert (error <= largest / 254 + rounding + TINY).all()


@pytest.mark.parametrize("codec", ["bf16", "int8"])
@given(tensors())
@settings(deadline=None)
def test_what_was_carried_once_stays_as_it_is(codec: Codec, tensor: Tensor) -> None:
    once = carried(tensor, codec)
    again = carried(once, codec)
    assert ((again - once).double().abs() <= 2.0**-22 * channel_max(once).double() + TINY).all()


@pytest.mark.parametrize("codec", CODECS)
def test_zeros_stay_zeros(codec: Codec) -> None:
    assert torch.equal(carried(torch.zeros(1, 3, 4, 4), codec), torch.zeros(1, 3, 4, 4))
    beside = torch.zeros(1, 2, 3)
    beside[0, 1] = torch.tensor([1.0, -0.5, 0.25])
    assert torch.equal(carried(beside, codec)[0, 0], torch.zeros(3))


def test_int8_takes_each_channel_by_itself() -> None:
    tensor = torch.tensor([[[127.0, -64.0], [0.0127, 0.0064]]])
    parts = encode("latent", tensor, "int8")
    assert parts["latent"].tolist() == [[[127, -64], [127, 64]]]
    assert parts["latent.scale"].tolist() == pytest.approx([1.0, 0.0001])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_not_sent(codec: Codec, bad: float) -> None:
    tensor = torch.ones(1, 2, 2)
    tensor[0, 1, 1] = bad
    with pytest.raises(NotFinite, match="the latent has NaN or infinite values"):
        encode("latent", tensor, codec)


@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_values_that_a_codec_would_make_infinite_are_not_sent(codec: Codec) -> None:
    with pytest.raises(NotFinite, match=f"{codec} cannot carry the latent: its largest value is"):
        encode("latent", torch.full((1, 2, 2), LARGEST), codec)


WRONG = {
    "half precision": torch.zeros(1, 2, 2).half(),
    "one dimension": torch.zeros(4),
    "a batch of two": torch.zeros(2, 2, 2),
    "no values": torch.zeros(1, 2, 0),
    "no channels": torch.zeros(1, 0, 2),
    "nine dimensions": torch.zeros((1,) * 9),
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", WRONG)
def test_only_float32_of_one_sample_is_sent(name: str, codec: Codec) -> None:
    with pytest.raises(InvalidTensor):
        encode("latent", WRONG[name], codec)


LEVELS, SCALE = torch.ones(1, 2, 3, dtype=torch.int8), torch.ones(2)
UNFIT = {
    "float32 for bf16": ("bf16", {"latent": torch.ones(1, 2)}, InvalidTensor),
    "bf16 for exact": ("exact", {"latent": torch.ones(1, 2).bfloat16()}, InvalidTensor),
    "float64": ("exact", {"latent": torch.ones(1, 2).double()}, InvalidTensor),
    "unsigned levels": (
        "int8",
        {"latent": LEVELS.to(torch.uint8), "latent.scale": SCALE},
        InvalidTensor,
    ),
    "too few scales": ("int8", {"latent": LEVELS, "latent.scale": SCALE[:1]}, InvalidTensor),
    "a scale of all": (
        "int8",
        {"latent": LEVELS, "latent.scale": torch.tensor(1.0)},
        InvalidTensor,
    ),
    "scales of another dtype": (
        "int8",
        {"latent": LEVELS, "latent.scale": SCALE.half()},
        InvalidTensor,
    ),
    "a negative scale": (
        "int8",
        {"latent": LEVELS, "latent.scale": torch.tensor([1.0, -1.0])},
        InvalidTensor,
    ),
    "a NaN scale of zeros": (
        "int8",
        {"latent": LEVELS * 0, "latent.scale": torch.tensor([1.0, math.nan])},
        NotFinite,
    ),
    "an infinite scale": (
        "int8",
        {"latent": LEVELS, "latent.scale": torch.tensor([math.inf, 1.0])},
        NotFinite,
    ),
    "a scale that makes infinity": (
        "int8",
        {"latent": LEVELS * 100, "latent.scale": torch.tensor([LARGEST, 1.0])},
        NotFinite,
    ),
    "bf16 infinity": ("bf16", {"latent": torch.full((1, 2), math.inf).bfloat16()}, NotFinite),
    "bf16 NaN": ("bf16", {"latent": torch.full((1, 2), math.nan).bfloat16()}, NotFinite),
    "one dimension": ("int8", {"latent": LEVELS[0, 0], "latent.scale": SCALE}, InvalidTensor),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_the_codec_is_refused(name: str) -> None:
    codec, parts, kind = UNFIT[name]
    with pytest.raises(kind):
        decode("latent", parts, codec)  # type: ignore[arg-type]  # any codec
