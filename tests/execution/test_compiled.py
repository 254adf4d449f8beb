"""What is compiled, and that the eager model is left alone. Whether a compiler keeps the latents is
in `test_theorem`, at length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_edge.engine.measure import probe
from diffusion_edge.engine.run import run_last_span
from diffusion_edge.execution import compiled
from diffusion_edge.execution.way import Way, running
from diffusion_edge.families.base import Loaded
from diffusion_edge.families.card import load_card
from diffusion_edge.families.load import load_family


@pytest.fixture
def family(tiny_family: Path) -> Loaded:
    torch.set_num_threads(1)
    return load_family(load_card(tiny_family), "edge")


def test_every_block_is_compiled_on_a_twin_with_the_same_weights(family: Loaded) -> None:
    seen: list[Any] = []
    calls = 0

    def counted(forward: Callable[..., Any]) -> Callable[..., Any]:
        seen.append(forward.__self__)  # type: ignore[attr-defined]  # it is a method

        def called(*inputs: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            return forward(*inputs, **named)

        return called

    way = Way(
        "compiled",
        "lossless",
        compiled.refuses,
        {"predict": lambda *use: compiled.prepare(*use, compiled=counted)},
    )
    own, packet = running(family, way, [16], 1), probe(family, 16, "ddim", 3)
    expected = run_last_span(family, packet)[0]
    assert calls == 0
    assert torch.equal(run_last_span(own, packet)[0], expected)
    assert calls == 3 * len(seen) == 3 * 2
    for block, stock in zip(seen, family.denoiser.transformer_blocks, strict=True):
        assert block is not stock
        assert all(a is b for a, b in zip(block.parameters(), stock.parameters(), strict=True))


def test_it_is_refused_without_a_compiler_and_without_blocks(
    family: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler 'no-such-compiler'" in str(compiled.refuses(family, [16], 1))
    bare = family.with_denoiser(torch.nn.Linear(2, 2))
    assert "Linear repeats no transformer block" in str(compiled.refuses(bare, [16], 1))
