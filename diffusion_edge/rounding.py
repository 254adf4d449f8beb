"""What counts as rounding between two ways to make the same latent. No torch."""

from __future__ import annotations

BOUND = 1e-5
"""Relative L2 error of a final latent, above which it was not the same work."""
ROUNDING = 5.0
"""Times the effect of one unit in the last place of the initial noise; as far as rounding goes
where a model makes much of little."""


def allowed(floor: float) -> float:
    """The largest error that is rounding, where one such unit makes a difference of `floor`."""
    return max(BOUND, ROUNDING * floor)
