"""Step rules as tables of numbers, which one function applies (`kernels.guided_step`).

Every supported step is linear in what it sees:

    [x', h1', ... hH'] = W[step] . [x, model output, noise, h1, ... hH]

with x the latent, h the solver's history and the noise that stochastic solvers add. So a solver is
a builder of W, one matrix a step, and a batch may mix solvers, steps and schedules: each sample
brings its own matrix. The rules are those of the diffusers schedulers of the same name, in closed
form and float64, rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from diffusion_edge.errors import UnsupportedSolver
from diffusion_edge.kernels.guided_step import apply
from diffusion_edge.schedule import SOLVERS, Schedule

__all__ = ["SOLVERS", "Table", "apply", "build_table", "history_length"]


@dataclass(frozen=True)
class Table:
    """All steps of one solver on one schedule of N steps, with H history tensors.

    weights: float32 (N, 1 + H, 3 + H); outputs x', h1' ... from inputs x, model output, noise,
        h1 ...
    input_scale: float32 (N,); the denoiser sees x times this.
    timesteps: float32 (N,)
    initial_scale: what unit noise is multiplied by to start.
    stochastic: whether any step adds noise.
    """

    weights: Tensor
    input_scale: Tensor
    timesteps: Tensor
    initial_scale: float
    stochastic: bool

    @property
    def steps(self) -> int:
        return self.weights.shape[0]

    @property
    def history(self) -> int:
        return self.weights.shape[1] - 1


@lru_cache(maxsize=256)
def build_table(solver: str, schedule: Schedule) -> Table:
    """The table of `solver` on `schedule`. Raises UnsupportedSolver for an unknown name."""
    if solver not in _RULES:
        raise UnsupportedSolver(
            f"solver {solver!r} is not known; known: {', '.join(_RULES)}", param="solver"
        )
    rule, _ = _RULES[solver]
    rows = [rule(schedule, step) for step in range(schedule.steps)]
    weights = torch.tensor(rows, dtype=torch.float64)
    exploding = schedule.scaling == "exploding"
    scales = [1 / math.hypot(1, s) if exploding else 1.0 for s in schedule.sigmas[:-1]]
    return Table(
        weights=weights.float(),
        input_scale=torch.tensor(scales, dtype=torch.float64).float(),
        timesteps=torch.tensor(schedule.timesteps, dtype=torch.float64).float(),
        initial_scale=schedule.initial_scale,
        stochastic=bool(weights[:, :, NOISE].any()),
    )


def history_length(solver: str) -> int:
    """How many history tensors the solver carries."""
    return _RULES[solver][1]


# ---------------------------------------------------------------------------- linear forms

OUTPUT, NOISE = 1, 2
"""Columns of the model output and of the noise."""

Row = tuple[float, ...]
"""Weights of x, model output, noise, h1, h2, h3; what is left out at the end is 0."""

X: Row = (1.0,)
MODEL: Row = (0.0, 1.0)
H1: Row = (0.0, 0.0, 0.0, 1.0)
H2: Row = (0.0, 0.0, 0.0, 0.0, 1.0)
H3: Row = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
NOTHING: Row = (0.0,)


def _sum(*terms: tuple[float, Row]) -> Row:
    """The sum of rows, each times its factor."""
    scaled = [[factor * weight for weight in row] for factor, row in terms]
    return tuple(map(math.fsum, zip_longest(*scaled, fillvalue=0.0)))


def _matrix(*rows: Row) -> list[list[float]]:
    """One step's matrix from the rows of x' and the new history."""
    width = 2 + len(rows)
    return [[*row, *[0.0] * (width - len(row))] for row in rows]


@dataclass(frozen=True)
class _Level:
    """x = a x0 + b noise at one sigma."""

    a: float
    b: float

    @property
    def log_snr(self) -> float:
        """log(a / b), half the log of the signal-to-noise ratio; infinite without noise."""
        return math.inf if self.b == 0 else math.log(self.a / self.b)


def _level(schedule: Schedule, sigma: float) -> _Level:
    match schedule.scaling:
        case "preserving":
            a = 1 / math.hypot(1, sigma)
            return _Level(a, sigma * a)
        case "exploding":
            return _Level(1.0, sigma)
        case _:
            return _Level(1 - sigma, sigma)


def _levels(schedule: Schedule, step: int) -> tuple[_Level, _Level]:
    """Where a step departs from and where it lands."""
    return _level(schedule, schedule.origins[step]), _level(schedule, schedule.targets[step])


def _clean(schedule: Schedule, step: int) -> Row:
    """The predicted clean latent x0 from x and the model output at `step`.

    With x = a x0 + b noise: x0 = (x - b e) / a from noise e; x - sigma v from the velocity v of
    flow matching; and a x - b v from the velocity of Salimans and Ho (2022), which is defined on
    the variance preserving x, so that a variance exploding x is scaled by a first.
    """
    sigma = schedule.sigmas[step]
    level = _level(schedule, sigma)
    match schedule.prediction:
        case "epsilon":
            return (1 / level.a, -level.b / level.a)
        case "flow_prediction":
            return (1.0, -sigma)
        case _:
            a = 1 / math.hypot(1, sigma)
            return (a * a if schedule.scaling == "exploding" else a, -sigma * a)


# ---------------------------------------------------------------------------- step rules

Matrix = list[list[float]]


def _first_order(schedule: Schedule, step: int) -> Matrix:
    """x' = (b'/b) x + (a' - a b'/b) x0: the noise in x stays, and is scaled to the next level.

    Deterministic DDIM (Song et al. 2020) where variance is preserved, Euler's method (Karras et
    al. 2022) where it explodes, and Euler's method on the straight path of flow matching.
    """
    here, there = _levels(schedule, step)
    keep = there.b / here.b
    return _matrix(_sum((keep, X), (there.a - keep * here.a, _clean(schedule, step))))


def _euler_ancestral(schedule: Schedule, step: int) -> Matrix:
    """Euler to a level below the next one, then fresh noise up to it (Karras et al. 2022, k-LMS).

    up^2 = s'^2 (s^2 - s'^2) / s^2 and down^2 = s'^2 - up^2.
    """
    sigma, target = schedule.origins[step], schedule.targets[step]
    up = target * math.sqrt(sigma**2 - target**2) / sigma
    keep = math.sqrt(max(0.0, target**2 - up**2)) / sigma
    noise: Row = (0.0, 0.0, up)
    return _matrix(_sum((keep, X), (1 - keep, _clean(schedule, step)), (1.0, noise)))


def _dpmpp_2m(schedule: Schedule, step: int) -> Matrix:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022): x' = (b'/b) x + a' (1 - exp(-h)) D."""
    here, there = _levels(schedule, step)
    decay = math.exp(here.log_snr - there.log_snr)
    ahead = _extrapolated(schedule, step)
    moved = _sum((there.b / here.b, X), (there.a * (1 - decay), ahead))
    return _matrix(moved, _clean(schedule, step))


def _dpmpp_2m_sde(schedule: Schedule, step: int) -> Matrix:
    """SDE-DPM-Solver++(2M), midpoint (Lu et al. 2022).

    x' = (b'/b) exp(-h) x + a' (1 - exp(-2h)) D + b' sqrt(1 - exp(-2h)) noise
    """
    here, there = _levels(schedule, step)
    decay = math.exp(here.log_snr - there.log_snr)
    noise: Row = (0.0, 0.0, there.b * math.sqrt(1 - decay**2))
    ahead = _extrapolated(schedule, step)
    moved = _sum((there.b / here.b * decay, X), (there.a * (1 - decay**2), ahead), (1.0, noise))
    return _matrix(moved, _clean(schedule, step))


def _extrapolated(schedule: Schedule, step: int) -> Row:
    """D = x0 + (x0 - x0_before) h / (2 h_before), h the step in log(a / b); h1 is x0_before.

    First order (D = x0) at the start, at a last step onto sigma 0, and at any last step of fewer
    than 15.
    """
    clean = _clean(schedule, step)
    last = step == schedule.steps - 1 and (schedule.targets[step] == 0 or schedule.steps < 15)
    if step == 0 or last:
        return clean
    before = _level(schedule, schedule.sigmas[step - 1]).log_snr
    here, there = (level.log_snr for level in _levels(schedule, step))
    share = (there - here) / (2 * (here - before))
    return _sum((1 + share, clean), (-share, H1))


def _unipc(schedule: Schedule, step: int) -> Matrix:
    """UniPC of order 2 with B(h) = exp(-h) - 1, "bh2" (Zhao et al. 2023), predicting x0.

    The history is the corrected x of the step before, and the clean latents of the last two.
    Order 1 at the first and at the last step; the corrector has the order of the predictor that
    it corrects.
    """
    clean = _clean(schedule, step)
    corrected = X
    if step > 0:
        corrected = _unipc_corrected(schedule, step, clean)
    here, there = _levels(schedule, step)
    h = there.log_snr - here.log_snr
    lead = math.expm1(-h)
    moved = _sum((there.b / here.b, corrected), (-there.a * lead, clean))
    if _unipc_order(schedule, step) == 2:
        before = _level(schedule, schedule.sigmas[step - 1]).log_snr
        ratio = (before - here.log_snr) / h
        change = _sum((1 / ratio, H2), (-1 / ratio, clean))
        moved = _sum((1.0, moved), (-there.a * lead * 0.5, change))
    return _matrix(moved, corrected, clean, H2)


def _unipc_corrected(schedule: Schedule, step: int, clean: Row) -> Row:
    """The x of `step` again, now that the model's output there is known.

    h1 is the corrected x of the step before, h2 and h3 the clean latents of the last two steps.
    """
    before, here = (_level(schedule, schedule.sigmas[k]) for k in (step - 1, step))
    h = here.log_snr - before.log_snr
    lead = math.expm1(-h)
    news = _sum((1.0, clean), (-1.0, H2))
    if _unipc_order(schedule, step - 1) == 1:
        change = _sum((0.5, news))
    else:
        earlier = _level(schedule, schedule.sigmas[step - 2]).log_snr
        ratio = (earlier - before.log_snr) / h
        first = lead / -h - 1
        second = 2 * (first / -h - 0.5)
        of_old, of_new = np.linalg.solve(
            np.array([[1.0, 1.0], [ratio, 1.0]]), np.array([first, second]) / lead
        )
        old = _sum((1 / ratio, H3), (-1 / ratio, H2))
        change = _sum((float(of_old), old), (float(of_new), news))
    moved = _sum((here.b / before.b, H1), (-here.a * lead, H2))
    return _sum((1.0, moved), (-here.a * lead, change))


def _unipc_order(schedule: Schedule, step: int) -> int:
    """Of the predictor at `step`."""
    return min(2, schedule.steps - step, step + 1)


_GAUSS = tuple(zip(*map(np.ndarray.tolist, np.polynomial.legendre.leggauss(4)), strict=True))
"""Points in [-1, 1] and weights that integrate polynomials of degree 7 exactly."""


def _lms(schedule: Schedule, step: int) -> Matrix:
    """Linear multistep of order 4 on d = dx/dsigma = (x - x0) / sigma (Karras et al. 2022).

    x' = x + sum_k c_k d_k over the last four d, c_k being the integral over the step of the
    Lagrange polynomial of node k; four Gauss points make it exact. The history is three d.
    """
    sigma = schedule.sigmas[step]
    slope = _sum((1 / sigma, X), (-1 / sigma, _clean(schedule, step)))
    nodes = schedule.sigmas[step::-1][:4]
    half = (schedule.targets[step] - sigma) / 2
    moved = X
    for k, (node, known) in enumerate(zip(nodes, (slope, H1, H2, H3), strict=False)):
        others = [other for j, other in enumerate(nodes) if j != k]
        values = [
            weight * math.prod((sigma + half * (1 + point) - o) / (node - o) for o in others)
            for point, weight in _GAUSS
        ]
        moved = _sum((1.0, moved), (half * math.fsum(values), known))
    return _matrix(moved, slope, H1, H2)


def _pndm(schedule: Schedule, step: int) -> Matrix:
    """Pseudo linear multistep of order 4 (Liu et al. 2022), its first step taken twice.

    x' = (a'/a) x + (b' - a' b/a) e, with e an Adams-Bashforth mean of the model's outputs as they
    are; from velocities, e becomes noise at the level and latent that the step departs from. The
    history is the last three outputs; after the first evaluation, one output and the first x.
    """
    here, there = _levels(schedule, step)
    match step:
        case 0:
            start, mean, kept = X, MODEL, (MODEL, X, NOTHING)
        case 1:
            start, mean, kept = H2, _sum((1 / 2, MODEL), (1 / 2, H1)), (H1, NOTHING, NOTHING)
        case 2:
            start, mean, kept = X, _sum((3 / 2, MODEL), (-1 / 2, H1)), (MODEL, H1, NOTHING)
        case 3:
            mean = _sum((23 / 12, MODEL), (-16 / 12, H1), (5 / 12, H2))
            start, kept = X, (MODEL, H1, H2)
        case _:
            mean = _sum((55 / 24, MODEL), (-59 / 24, H1), (37 / 24, H2), (-9 / 24, H3))
            start, kept = X, (MODEL, H1, H2)
    if schedule.prediction == "v_prediction":
        mean = _sum((here.a, mean), (here.b, start))
    keep = there.a / here.a
    return _matrix(_sum((keep, start), (there.b - keep * here.b, mean)), *kept)


_RULES: Mapping[str, tuple[Callable[[Schedule, int], Matrix], int]] = {
    "ddim": (_first_order, 0),
    "euler": (_first_order, 0),
    "euler-ancestral": (_euler_ancestral, 0),
    "dpmpp-2m": (_dpmpp_2m, 1),
    "dpmpp-2m-karras": (_dpmpp_2m, 1),
    "dpmpp-2m-sde": (_dpmpp_2m_sde, 1),
    "unipc": (_unipc, 3),
    "lms": (_lms, 3),
    "pndm": (_pndm, 3),
    "flow-euler": (_first_order, 0),
    "flow-dpmpp-2m": (_dpmpp_2m, 1),
    "flow-unipc": (_unipc, 3),
}
"""By solver: the matrix of a step, and the number of history tensors."""
