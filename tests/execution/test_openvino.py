"""What OpenVINO is told, and what it must not be given. That it keeps the latents is in
`test_theorem`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_edge.engine.lanes import Lanes
from diffusion_edge.engine.measure import probe
from diffusion_edge.engine.run import begin, step
from diffusion_edge.execution import openvino
from diffusion_edge.execution.check import relative
from diffusion_edge.execution.way import running
from diffusion_edge.families.base import Conditioning
from diffusion_edge.families.card import load_card
from diffusion_edge.families.load import load_family
from diffusion_edge.rounding import BOUND

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(openvino.EXTRA) is None, reason="the extra `openvino` is not installed"
)


def a_family(predict: Any) -> Any:
    """A model that is a function."""
    return SimpleNamespace(
        predict=predict,
        denoiser=torch.nn.Linear(1, 1),  # no two have the same weights
        device=torch.device("cpu"),
        latent_shape=lambda width, height: (4, height // 4, width // 4),
        encode_text=lambda texts: Conditioning({"value": torch.ones(len(texts), 1)}),
    )


def test_a_model_whose_rows_became_a_constant_is_refused() -> None:
    def sound(latent: Tensor, t: Tensor, guidance: Tensor, c: Conditioning) -> Tensor:
        return latent * c.tensors["value"][:, :, None, None] + t[:, None, None, None]

    def constant(latent: Tensor, t: Tensor, guidance: Tensor, c: Conditioning) -> Tensor:
        return sound(latent, t, guidance, c) + torch.zeros(len(latent), 1, 1, 1)

    predict = openvino.prepare(a_family(sound), [16], 1)
    rows = (torch.randn(7, 4, 4, 4), torch.arange(7.0), torch.ones(7))
    text = Conditioning({"value": torch.full((7, 1), 2.0)})
    assert torch.equal(predict(*rows, text), 2 * rows[0] + rows[1][:, None, None, None])
    with pytest.raises(RuntimeError):
        openvino.prepare(a_family(constant), [16], 1)


def test_nothing_is_told_to_the_maker_of_openvino() -> None:
    openvino._openvino()
    assert sys.modules["openvino_telemetry"] is None


async def test_lanes_run_at_the_same_time_with_their_share_of_the_threads(
    tiny_family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    compiled: dict[int, Any] = {}
    compile_one = openvino._Graph._compile

    def recorded(self: Any, passes: int) -> Any:
        return compiled.setdefault(passes, compile_one(self, passes))

    monkeypatch.setattr(openvino._Graph, "_compile", recorded)
    family = load_family(load_card(tiny_family), "device")
    own = running(family, openvino.OPENVINO, [16], 2)
    start, lanes = begin(family, probe(family, 16, "ddim")), Lanes("test", 2)
    try:
        whole, cut = await lanes.step(own, [start] * 4, 1), await lanes.step(own, [start] * 4, 2)
    finally:
        lanes.close()
    (expected, *_) = step(family, [start] * 4)
    for made in (*whole, *cut):
        assert relative(made.latent, expected.latent) <= BOUND
    assert sorted(compiled) == [1, 2]
    for passes, each in compiled.items():
        assert each.get_property("NUM_STREAMS") == passes
        assert each.get_property("INFERENCE_NUM_THREADS") == 2
        assert each.get_property("ENABLE_CPU_PINNING") is False
