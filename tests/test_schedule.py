"""Noise levels: what is resolved is what was asked for."""

from __future__ import annotations

import pytest

from diffusion_edge.errors import InvalidRequest
from diffusion_edge.schedule import SOLVERS, resolve, resolved_steps
from tests.fakes import NOISE

# 1000 / 61 and the like round so that the stock scheduler appends a timestep of -1.
ROUNDED = {61, 103, 121, 122}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_step_count_is_kept_or_refused(solver: str) -> None:
    """Flow matching and Karras do not space their levels by training timesteps."""
    flow = solver.startswith("flow-")
    rounded = set() if flow or solver == "dpmpp-2m-karras" else ROUNDED
    for asked in range(1, 151):
        steps = resolved_steps(solver, asked)
        if asked in rounded:
            with pytest.raises(InvalidRequest, match=f"{steps} steps of {solver} come out as"):
                resolve(NOISE, solver, steps)
        else:
            schedule = resolve(FLOW if flow else NOISE, solver, steps)
            assert schedule.steps == steps
            assert min(schedule.timesteps) >= 0


def test_a_step_count_that_pndm_cannot_make_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="2 steps of pndm come out as 1"):
        resolve(NOISE, "pndm", 2)
