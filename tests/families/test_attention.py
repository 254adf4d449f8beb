"""By what a denoiser attends: what cannot is refused with its reason, and what is put in says the
same. xformers has a stand-in that runs on a CPU; that it runs itself is for a GPU to see."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from diffusers.models import attention_dispatch, attention_processor
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from diffusion_edge import config
from diffusion_edge.errors import ConfigError
from diffusion_edge.families import attention
from diffusion_edge.families.attention import GAIN, KINDS, Kind, choose, fitted, probed, told
from diffusion_edge.families.card import load_card
from diffusion_edge.families.fused import _relative, said
from diffusion_edge.families.load import load_family
from diffusion_edge.families.pipeline import Loading, PipelineFamily
from diffusion_edge.kernels.swaps import Swap, put
from diffusion_edge.rounding import BOUND
from tests.architectures import TINY

EDGE = 64
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    return {name: tiny.save(tmp_path_factory.mktemp(name)) for name, tiny in TINY.items()}


def loaded(root: Path, asked: config.Attention = "sdpa") -> PipelineFamily:
    family = load_family(load_card(root), "cloud", Loading(attention=asked))
    assert isinstance(family, PipelineFamily)
    return family


class Stretched:
    """A processor that attends as another one does, and stretches what comes of it."""

    def __init__(self, processor: Any, factor: float) -> None:
        self._processor, self._factor = processor, factor

    def __call__(self, *inputs: Any, **named: Any) -> Tensor:
        made: Tensor = self._processor(*inputs, **named) * self._factor
        return made


def kind(factor: float = 1.0, probe: Callable[[Tensor], object] = lambda token: None) -> Kind:
    def swaps(denoiser: nn.Module) -> Iterator[Swap]:
        for module in denoiser.modules():
            if hasattr(module, "processor"):
                yield module, "processor", Stretched(module.processor, factor)

    return Kind(probe, swaps)


@pytest.fixture
def one_other(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """There is `xformers` beside torch's own, of this kind and so many seconds to torch's 1."""

    def put_in(other: Kind, takes_s: float = 0.5) -> None:
        kinds = {"sdpa": KINDS["sdpa"], "xformers": other}
        seconds = {"sdpa": 1.0, "xformers": takes_s}
        monkeypatch.setattr(attention, "KINDS", kinds)
        monkeypatch.setattr(
            attention, "_seconds", lambda _, names, __: {n: seconds[n] for n in names}
        )

    return put_in


def test_the_config_names_the_kinds() -> None:
    assert (
        set(get_args(config.Attention)) == {"auto", *KINDS} == {"auto", *get_args(attention.Name)}
    )


def test_on_a_cpu_torch_s_own_is_taken_and_the_others_say_why_not(
    roots: dict[str, Path],
) -> None:
    family = loaded(roots["sd"])
    known = said(family, 0.0)
    chosen = choose(family, EDGE)
    assert chosen.taken == "sdpa"
    assert chosen.refused.keys() == {"cudnn", "fa3", "xformers"}
    assert all(chosen.refused.values())
    assert all(torch.equal(x, y) for x, y in zip(said(family, 0.0), known, strict=True))
    assert told(chosen).startswith("sdpa. cudnn: ")


@pytest.mark.parametrize("name", ["cudnn", "fa3", "xformers"])
def test_what_is_asked_for_and_cannot_be_is_an_error(roots: dict[str, Path], name: Any) -> None:
    reason = probed(name, CPU, torch.float32)
    assert reason
    with pytest.raises(ConfigError) as error:
        loaded(roots["sd"], name)
    assert f"'cloud' cannot attend by {name}: {reason}" in str(error.value)


def test_a_stage_on_a_cpu_attends_by_torch_s_own(roots: dict[str, Path]) -> None:
    assert loaded(roots["sd"], "auto").attention == loaded(roots["sd"]).attention == "sdpa"


def test_what_is_faster_and_says_the_same_is_put_in(
    roots: dict[str, Path], one_other: Callable[..., None]
) -> None:
    family = loaded(roots["sd"])
    one_other(kind(1 + 1e-7))
    own = fitted(family, "auto", EDGE)
    assert own.attention == "xformers"
    assert any(isinstance(getattr(m, "processor", 0), Stretched) for m in own.denoiser.modules())


@pytest.mark.parametrize(
    ("factor", "takes_s", "why"),
    [
        (1.01, 0.5, "says something else"),
        (float("nan"), 0.5, "says something else"),
        (1.0, 0.99 * 1.0, "slower"),
        (1.0, 1.01 / GAIN, "slower"),
    ],
)
def test_what_says_something_else_or_gains_nothing_is_left_out(
    roots: dict[str, Path],
    one_other: Callable[..., None],
    factor: float,
    takes_s: float,
    why: str,
) -> None:
    family = loaded(roots["sd"])
    known = said(family, 0.0)
    one_other(kind(factor), takes_s)
    chosen = choose(family, EDGE)
    assert chosen.taken == "sdpa"
    assert why in chosen.refused["xformers"]
    assert all(torch.equal(x, y) for x, y in zip(said(family, 0.0), known, strict=True))


def test_what_fails_in_the_model_is_left_out(
    roots: dict[str, Path], one_other: Callable[..., None]
) -> None:
    def broken(denoiser: nn.Module) -> Iterator[Swap]:
        for module in denoiser.modules():
            if hasattr(module, "processor"):
                yield module, "processor", None

    family = loaded(roots["sd"])
    known = said(family, 0.0)
    one_other(Kind(lambda token: None, broken))
    assert "'NoneType' object" in choose(family, EDGE).refused["xformers"]
    assert all(torch.equal(x, y) for x, y in zip(said(family, 0.0), known, strict=True))
    one_other(Kind(lambda token: None, lambda denoiser: iter(())))
    assert "no place" in choose(family, EDGE).refused["xformers"]


def test_seconds_are_of_each_and_leave_nothing_behind(roots: dict[str, Path]) -> None:
    family = loaded(roots["sd"])
    known = said(family, 0.0)
    seconds = attention._seconds(family, ["sdpa"], EDGE)
    assert seconds.keys() == {"sdpa"}
    assert seconds["sdpa"] > 0
    assert all(torch.equal(x, y) for x, y in zip(said(family, 0.0), known, strict=True))


# ---------------------------------------------------------------------------- what is put in


class Ops:
    """`xformers.ops` by torch: (B, S, D), or (B, S, heads, D)."""

    def __init__(self) -> None:
        self.calls = 0

    def memory_efficient_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_bias: Tensor | None = None,
        p: float = 0.0,
        scale: float | None = None,
        *,
        op: Any = None,
    ) -> Tensor:
        self.calls += 1
        if query.ndim == 3:
            return F.scaled_dot_product_attention(query, key, value, attn_bias, p, scale=scale)
        turned = (each.transpose(1, 2) for each in (query, key, value))
        return F.scaled_dot_product_attention(*turned, attn_bias, p, scale=scale).transpose(1, 2)


@pytest.fixture
def ops(monkeypatch: pytest.MonkeyPatch) -> Ops:
    class Package:
        ops = Ops()

    monkeypatch.setattr(attention_processor, "xformers", Package, raising=False)
    monkeypatch.setattr(attention_dispatch, "xops", Package.ops, raising=False)
    return Package.ops


@pytest.mark.parametrize("name", TINY)
def test_xformers_is_called_in_every_architecture_and_says_the_same(
    roots: dict[str, Path], ops: Ops, name: str
) -> None:
    family = loaded(roots[name])
    known = said(family, 0.0)
    assert ops.calls == 0
    undo = put(KINDS["xformers"].swaps(family.denoiser))
    for own, stock in zip(said(family, 0.0), known, strict=True):
        assert _relative(own, stock) <= BOUND
    assert ops.calls > 0
    put(undo)
    calls = ops.calls
    assert all(torch.equal(x, y) for x, y in zip(said(family, 0.0), known, strict=True))
    assert ops.calls == calls


@pytest.mark.parametrize("name", TINY)
def test_cudnn_is_asked_for_around_the_whole_denoiser_and_its_copies(
    roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    family = loaded(roots[name])
    put(KINDS["cudnn"].swaps(family.denoiser))
    twin = family.with_denoiser(copy.deepcopy(family.denoiser))
    for each in (family, twin):
        with pytest.raises(RuntimeError, match="No viable backend"):
            said(each, 0.0)
    monkeypatch.setattr(attention, "CUDNN", SDPBackend.MATH)
    known = said(loaded(roots[name]), 0.0)
    for each in (family, twin):
        assert type(each.denoiser).__name__ == type(loaded(roots[name]).denoiser).__name__
        for own, stock in zip(said(each, 0.0), known, strict=True):
            assert _relative(own, stock) <= BOUND


def test_fa3_is_for_what_diffusers_dispatches(roots: dict[str, Path]) -> None:
    assert list(KINDS["fa3"].swaps(loaded(roots["flux-schnell"]).denoiser))
    assert not list(KINDS["fa3"].swaps(loaded(roots["sd"]).denoiser))
