"""What became of every request, kept in few bytes each, and the figures of a run."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, nan
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_edge.request import ImageRequest
from diffusion_edge.view import Choice

SERVED = "served"
"""What became of a request that got its pictures; what became of the others is the code of their
error."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Tally:
    """Every request once, in the order in which they came; `ended` says how. One that is still to
    end has no fate."""

    def __init__(self) -> None:
        self.at_s, self.deadline_s, self.latency_s, self.cost = (array("d") for _ in range(4))
        self.predicted_s, self.predicted_90_s = array("d"), array("d")
        self.quality, self.quality_bound = array("d"), array("d")
        self.replans = array("H")
        self._fate = array("b")
        self._fates = ["", SERVED]
        self._plan = array("i")
        self._plans: dict[str, int] = {}

    def came(self, at_s: float, request: ImageRequest) -> int:
        """The number of a new request."""
        self.at_s.append(at_s)
        self.deadline_s.append(request.deadline_s)
        for each in (self.latency_s, self.cost, self.predicted_s, self.predicted_90_s):
            each.append(nan)
        self.quality.append(nan)
        self.quality_bound.append(nan)
        self.replans.append(0)
        self._fate.append(0)
        self._plan.append(-1)
        return len(self._fate) - 1

    def chosen(self, number: int, choice: Choice, plan: str, waited_s: float) -> None:
        """plan: by what its stages are. waited_s: before it was begun, since it came."""
        self.cost[number] = choice.cost
        self.quality[number] = choice.quality
        self.quality_bound[number] = choice.quality_bound
        self.predicted_s[number] = waited_s + choice.predicted_s
        if choice.predicted_90_s is not None:
            self.predicted_90_s[number] = waited_s + choice.predicted_90_s
        self._plan[number] = self._plans.setdefault(plan, len(self._plans))

    def revised(self, number: int, choice: Choice, plan: str) -> None:
        """Of a request whose images went another way than was chosen before."""
        self.cost[number] = choice.cost
        self.quality[number] = choice.quality
        self.quality_bound[number] = choice.quality_bound
        self._plan[number] = self._plans.setdefault(plan, len(self._plans))

    def replanned(self, number: int) -> None:
        """One more image, or once more one."""
        self.replans[number] += 1

    def ended(self, number: int, fate: str, latency_s: float) -> None:
        """Raises ValueError for a request that has ended before."""
        if self._fate[number]:
            raise ValueError(f"request {number} has ended twice")
        if fate not in self._fates:
            self._fates.append(fate)
        self._fate[number] = self._fates.index(fate)
        self.latency_s[number] = latency_s

    def plan(self, number: int) -> str | None:
        """What a request was begun with at last; None if it was not."""
        kept = self._plan[number]
        return None if kept < 0 else list(self._plans)[kept]

    def __len__(self) -> int:
        return len(self._fate)

    def fates(self) -> dict[str, int]:
        """How many ended how; those that did not under the empty name."""
        counts = np.bincount(np.array(self._fate), minlength=len(self._fates))
        return {f: n for f, n in zip(self._fates, counts.tolist(), strict=True) if n}

    @property
    def plans(self) -> Counter[str]:
        """Of the requests that were served."""
        numbers = np.array(self._plan)[self.served()]
        counts = np.bincount(numbers, minlength=len(self._plans)).tolist()
        return Counter({plan: counts[k] for plan, k in self._plans.items() if counts[k]})

    def served(self) -> Bools:
        found: Bools = np.array(self._fate) == 1
        return found

    def in_time(self) -> Bools:
        early: Bools = np.array(self.latency_s) <= np.array(self.deadline_s) + 1e-9
        return self.served() & early


@dataclass(frozen=True)
class Figures:
    """Of one run. Latencies count from when a request came to its last picture, of those served;
    the cost is theirs, too. kinds, plans: shares among those served.
    replanned: requests with images that went another way than was chosen first.
    forecast_error: median of |actual - predicted| over predicted; below_90: share of actuals under
    the predicted 90 % quantile; both of what was promised to be in time. None where there is none.
    """

    policy: str
    seed: int
    requests: int
    served: int
    in_time: int
    late: int
    fates: Mapping[str, int]
    seconds: float
    goodput_per_s: float
    latency_s: Mapping[str, float | None]
    cost: float | None
    kinds: Mapping[str, float]
    plans: Mapping[str, float]
    forecast_error: float | None
    below_90: float | None
    replanned: int = 0

    @property
    def lost(self) -> int:
        """Requests without pictures, most of them refused; `fates` says why."""
        return self.requests - self.served

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"lost": self.lost}


def figures(tally: Tally, policy: str, seed: int) -> Figures:
    served, in_time = tally.served(), tally.in_time()
    latency_s = np.array(tally.latency_s)[served]
    seconds = tally.at_s[-1] - tally.at_s[0] if len(tally) > 1 else 0.0
    error, below = _forecasts(tally, served)
    plans, kinds = tally.plans, Counter[str]()
    for plan, count in plans.items():
        kinds[kind(plan)] += count
    return Figures(
        policy=policy,
        seed=seed,
        requests=len(tally),
        served=int(served.sum()),
        in_time=int(in_time.sum()),
        late=int((served & ~in_time).sum()),
        fates=tally.fates(),
        seconds=seconds,
        goodput_per_s=int(in_time.sum()) / seconds if seconds else inf,
        latency_s={
            "mean": float(latency_s.mean()) if len(latency_s) else None,
            "p50": quantile(latency_s, 0.5),
            "p95": quantile(latency_s, 0.95),
        },
        cost=float(np.array(tally.cost)[served].mean()) if served.any() else None,
        kinds={name: count / len(latency_s) for name, count in kinds.most_common()},
        plans={name: count / len(latency_s) for name, count in plans.most_common()},
        forecast_error=error,
        below_90=below,
        replanned=int((np.array(tally.replans) > 0).sum()),
    )


def kind(plan: str) -> str:
    """`device:14,cloud:6` is of the kind `device then cloud`."""
    return " then ".join(part.split(":")[0] for part in plan.split(","))


def quantile(values: Floats | Sequence[float], share: float) -> float | None:
    """The smallest value that at least so many do not exceed; None of none."""
    return float(np.quantile(values, share, method="inverted_cdf")) if len(values) else None


def _forecasts(tally: Tally, served: Bools) -> tuple[float | None, float | None]:
    predicted_s, actual_s = np.array(tally.predicted_s), np.array(tally.latency_s)
    told = served & (predicted_s <= np.array(tally.deadline_s)) & (predicted_s > 0.0)
    most_s = np.array(tally.predicted_90_s)
    known = told & np.isfinite(most_s)
    errors = np.abs(actual_s[told] / predicted_s[told] - 1.0)
    return (
        median(errors.tolist()) if told.any() else None,
        fmean((actual_s[known] <= most_s[known]).tolist()) if known.any() else None,
    )
