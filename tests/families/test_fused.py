"""Every architecture with its modules fused: the same answers, and what fails is taken out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_edge.families import fused
from diffusion_edge.families.card import load_card
from diffusion_edge.families.fused import _relative, fuse, said
from diffusion_edge.families.load import load_family
from diffusion_edge.families.pipeline import Loading, PipelineFamily
from diffusion_edge.kernels.registry import VARIABLE
from diffusion_edge.kernels.swaps import RULES
from diffusion_edge.rounding import BOUND
from tests.architectures import TINY

PLACES = {
    "sd": {"group_norm_silu", "geglu"},
    "sdxl": {"group_norm_silu", "geglu"},
    "sd3": {"group_norm_silu", "gated_norm", "qk_norm_rotary"},
    "flux": {"group_norm_silu", "gated_norm", "qk_norm_rotary"},
    "pixart": {"group_norm_silu", "gated_norm"},
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    return {name: tiny.save(tmp_path_factory.mktemp(name)) for name, tiny in TINY.items()}


def stock(root: Path, stage: str = "cloud") -> PipelineFamily:
    family = load_family(load_card(root), stage, Loading(kernels="off"))
    assert isinstance(family, PipelineFamily)
    return family


@pytest.mark.parametrize(
    ("name", "stage"), [*((name, "cloud") for name in TINY), ("sd3", "device")]
)
def test_it_says_the_same(roots: dict[str, Path], name: str, stage: str) -> None:
    family = stock(roots[name], stage)
    known, keys = said(family, 0.0), list(family.denoiser.state_dict())
    found = fuse(family)
    assert set(found.places) == PLACES[TINY[name].architecture]
    assert list(family.denoiser.state_dict()) == keys
    for mine, theirs in zip(said(family, 0.0), known, strict=True):
        assert _relative(mine, theirs) <= BOUND


def test_every_operation_has_a_place_somewhere() -> None:
    assert set(RULES) == set.union(*PLACES.values())


def test_gradients_go_through_the_stock_modules(roots: dict[str, Path]) -> None:
    for name in ("sd", "flux-dev"):
        family = stock(roots[name])

        def gradient(of: PipelineFamily) -> tuple[Tensor, Any]:
            edge = of.sizes.smallest
            latent = torch.ones((1, *of.latent_shape(edge, edge))).requires_grad_()
            with torch.no_grad():
                text = of.encode_text(["a red circle"])
            output = of.predict(latent, torch.tensor([300.0]), torch.tensor([3.0]), text)
            output.square().sum().backward()
            return output, latent.grad

        before = gradient(family)
        fuse(family)
        assert all(torch.equal(x, y) for x, y in zip(before, gradient(family), strict=True))


def test_what_makes_a_difference_is_taken_out(
    roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    family = stock(roots["sd"])
    known = said(family, 0.0)
    wrong = "diffusion_edge.kernels.modules.geglu"
    monkeypatch.setattr(wrong, lambda x: x.chunk(2, -1)[0] * 1.5)
    found = fuse(family)
    assert set(found.places) == {"group_norm_silu"}
    assert "something else" in found.refused["geglu"]
    assert all(_relative(x, y) <= BOUND for x, y in zip(said(family, 0.0), known, strict=True))


def test_nothing_is_touched_where_nothing_is_faster(
    roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    monkeypatch.setattr(fused, "put", None)
    found = fuse(stock(roots["pixart"]))
    assert not found.places
    assert "off" in found.refused["gated_norm"]
    assert found.refused["geglu"] == "the models have no place for it"


def test_loading_fuses_unless_it_is_told_not_to(roots: dict[str, Path]) -> None:
    def kinds(loading: Loading) -> set[str]:
        family = load_family(load_card(roots["sd"]), "cloud", loading)
        assert isinstance(family, PipelineFamily)
        return {type(module).__name__ for module in family.denoiser.modules()}

    assert "Geglu" in kinds(Loading())
    assert "Geglu" not in kinds(Loading(kernels="off"))
