"""The diffusers schedulers that our solvers are held against."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from types import ModuleType
from typing import Any
from unittest.mock import patch

import diffusers
from torch import Tensor

from diffusion_edge.bench.stock import stock_scheduler
from diffusion_edge.schedule import SOLVERS

STOCK: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    solver: partial(stock_scheduler, solver) for solver in SOLVERS
}


def random_source(scheduler: Any) -> ModuleType | None:
    """The module whose `randn_tensor` gives the scheduler its noise, if it draws any."""
    module = sys.modules[getattr(diffusers, type(scheduler).__name__, type(scheduler)).__module__]
    return module if hasattr(module, "randn_tensor") else None


def stock_step(
    scheduler: Any, output: Tensor, timestep: Tensor, x: Tensor, noise: Tensor
) -> Tensor:
    """One step of a stock scheduler that draws `noise` where it draws any."""
    source = random_source(scheduler)
    drawing = (
        patch.object(source, "randn_tensor", lambda *args, **kwargs: noise)
        if source
        else nullcontext()
    )
    with drawing:
        stepped: Tensor = scheduler.step(output, timestep, x, return_dict=False)[0]
    return stepped
