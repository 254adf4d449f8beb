"""Step rules as tables of numbers, and the one function that applies them.

Every supported step is linear in what it sees:

    [x', h1', ... hH'] = W[step] . [x, model output, h1, ... hH]

with x the latent and h the solver's history. So a solver is a builder of W, one matrix a step,
and a batch may mix solvers, steps and schedules: each sample brings its own matrix. The rules are
those of the diffusers schedulers of the same name, in closed form and float64, rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from diffusion_edge.errors import UnsupportedSolver
from diffusion_edge.schedule import SOLVERS, Schedule

__all__ = ["SOLVERS", "Table", "apply", "build_table", "history_length"]


@dataclass(frozen=True)
class Table:
    """All steps of one solver on one schedule of N steps, with H history tensors.

    weights: float32 (N, 1 + H, 2 + H); outputs x', h1' ... from inputs x, model output, h1 ...
    input_scale: float32 (N,); the denoiser sees x times this.
    timesteps: float32 (N,)
    initial_scale: what unit noise is multiplied by to start.
    cut_before: whether a hand-off may precede a step.
    """

    weights: Tensor
    input_scale: Tensor
    timesteps: Tensor
    initial_scale: float
    cut_before: tuple[bool, ...]

    @property
    def steps(self) -> int:
        return self.weights.shape[0]

    @property
    def history(self) -> int:
        return self.weights.shape[1] - 1


@lru_cache(maxsize=256)
def build_table(solver: str, schedule: Schedule) -> Table:
    """The table of `solver` on `schedule`. Raises UnsupportedSolver for an unknown name."""
    if solver not in _BUILDERS:
        raise UnsupportedSolver(
            f"solver {solver!r} is not known; known: {', '.join(_BUILDERS)}", param="solver"
        )
    rows = [_BUILDERS[solver](schedule, step) for step in range(schedule.steps)]
    exploding = schedule.scaling == "exploding"
    scales = [1 / math.hypot(1, s) if exploding else 1.0 for s in schedule.sigmas[:-1]]
    return Table(
        weights=torch.tensor(rows, dtype=torch.float64).float(),
        input_scale=torch.tensor(scales, dtype=torch.float64).float(),
        timesteps=torch.tensor(schedule.timesteps, dtype=torch.float64).float(),
        initial_scale=schedule.initial_scale,
        cut_before=(True,) * schedule.steps,
    )


def history_length(solver: str) -> int:
    """How many history tensors the solver carries."""
    return _HISTORY[solver]


def apply(weights: Tensor, x: Tensor, output: Tensor, history: Sequence[Tensor]) -> list[Tensor]:
    """One solver step of a batch: [x', h1', ...].

    weights: float32 (B, 1 + H, 2 + H); x, output and every history tensor: (B, ...). Terms are
    added in a fixed order, so that a sample does not depend on the batch that it is in.
    """
    inputs = (x, output, *history)
    shape = (-1,) + (1,) * (x.ndim - 1)
    results = []
    for row in range(weights.shape[1]):
        total = weights[:, row, 0].view(shape) * inputs[0]
        for column in range(1, len(inputs)):
            total = total + weights[:, row, column].view(shape) * inputs[column]
        results.append(total)
    return results


# ---------------------------------------------------------------------------- step rules

Row = list[float]


def _clean(schedule: Schedule, step: int) -> tuple[float, float]:
    """Coefficients (of x, of the model output) of the predicted clean latent x0 at `step`.

    With s the sigma and x held variance preserving, a = 1 / sqrt(1 + s^2), b = s a:
    x0 = (x - b e) / a from noise e, and a x - b v from velocity v (Salimans and Ho 2022).
    A variance exploding x is x / a of that.
    """
    sigma = schedule.sigmas[step]
    a = 1 / math.hypot(1, sigma)
    b = sigma * a
    if schedule.prediction == "epsilon":
        of_x, of_output = 1 / a, -b / a
    else:
        of_x, of_output = a, -b
    return (of_x * a if schedule.scaling == "exploding" else of_x), of_output


def _ddim(schedule: Schedule, step: int) -> list[Row]:
    """Deterministic DDIM (Song et al. 2020): x' = a' x0 + b' noise, noise = (x - a x0) / b."""
    sigma, target = schedule.sigmas[step], schedule.targets[step]
    a, a_next = 1 / math.hypot(1, sigma), 1 / math.hypot(1, target)
    keep = (target * a_next) / (sigma * a)
    return [_towards(_clean(schedule, step), keep, a_next - keep * a)]


def _euler(schedule: Schedule, step: int) -> list[Row]:
    """Euler on dx/dsigma = (x - x0) / sigma (Karras et al. 2022): x' = r x + (1 - r) x0."""
    ratio = schedule.targets[step] / schedule.sigmas[step]
    return [_towards(_clean(schedule, step), ratio, 1 - ratio)]


def _towards(clean: tuple[float, float], keep: float, pull: float) -> Row:
    """The row of x' = keep x + pull x0."""
    return [keep + pull * clean[0], pull * clean[1]]


def _dpmpp_2m(schedule: Schedule, step: int) -> list[Row]:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022): x' = (b'/b) x - a' (exp(-h) - 1) D.

    h is the step in l = -log sigma; D = x0 + (x0 - x0_before) h / (2 h_before) extrapolates the
    clean latent. The history is x0_before. First order at the start, at a last step onto sigma 0,
    and at any last step of fewer than 15.
    """
    sigma, target = schedule.sigmas[step], schedule.targets[step]
    clean_x, clean_output = _clean(schedule, step)
    a_next = 1 / math.hypot(1, target)
    keep = target * a_next * math.hypot(1, sigma) / sigma
    pull = a_next * (1 - target / sigma)
    last = step == schedule.steps - 1 and (target == 0 or schedule.steps < 15)
    before = 0.0
    if step > 0 and not last:
        h, h_before = math.log(sigma / target), math.log(schedule.sigmas[step - 1] / sigma)
        before = h / (2 * h_before)
    now = pull * (1 + before)
    return [
        [keep + now * clean_x, now * clean_output, -pull * before],
        [clean_x, clean_output, 0.0],
    ]


_BUILDERS: Mapping[str, Callable[[Schedule, int], list[Row]]] = {
    "ddim": _ddim,
    "euler": _euler,
    "dpmpp-2m": _dpmpp_2m,
}
_HISTORY = {"ddim": 0, "euler": 0, "dpmpp-2m": 1}
