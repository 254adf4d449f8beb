from __future__ import annotations

from diffusion_edge.request import NEVER, Times


def test_never_is_never_on_any_clock_and_zero_is_a_time() -> None:
    assert Times(0.0, None).shifted(5.0) == Times(5.0, None)
    assert Times(None, 7.5).shifted(-8.0) == Times(None, -0.5)
    assert NEVER.shifted(1e9) == NEVER
