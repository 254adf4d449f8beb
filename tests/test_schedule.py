"""Noise levels: what is resolved is what was asked for."""

from __future__ import annotations

import pytest

from diffusion_edge.errors import InvalidRequest
from diffusion_edge.schedule import SOLVERS, resolve
from tests.fakes import NOISE

# 1000 / 61 and the like round so that the stock scheduler appends a timestep of -1.
ROUNDED = {61, 103, 121, 122}


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_step_count_is_kept_or_refused(solver: str) -> None:
    for steps in range(1, 151):
        if steps in ROUNDED:
            with pytest.raises(InvalidRequest, match=f"{steps} steps of {solver} come out as"):
                resolve(NOISE, solver, steps)
        else:
            schedule = resolve(NOISE, solver, steps)
            assert schedule.steps == steps
            assert min(schedule.timesteps) >= 0
