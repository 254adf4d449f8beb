"""The Triton kernels compiled ahead of time, for GPUs that are not here."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.long import LONG

NARROW = {"group_norm_silu, combine", "dequantise", "to_uint8, nhwc"}
"""A few values a program, bytes, or values that are gathered."""
SOME = ("guided_step, 3 history tensors", "gated_norm, 3,072 wide")


@pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")
def test_they_spill_nothing_and_read_sixteen_bytes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_edge.kernels.gpu.compiled import SPECS, compiled

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for spec, capability in zip(
        (spec for spec in SPECS if LONG or spec.name in SOME), (80, 90) * len(SPECS), strict=False
    ):
        made = compiled(spec, capability)
        assert made.spilled == 0, made
        assert made.registers <= 128, made
        assert (made.wide_loads > 0) != (spec.name in NARROW), made
        assert not (spec.exact and made.fused), made
