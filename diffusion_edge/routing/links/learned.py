"""The learned candidate: a small network moves the link that smoothing gives.

It sees no name and no absolute rate or delay, only ratios, ages and misses, so that a link of any
speed looks alike. Its weights are made by `python -m diffusion_edge.profile.links`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from math import log, log1p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_edge.routing.links.candidates import (
    Harmonic,
    Hop,
    Smoothed,
    miss,
    shifted,
)
from diffusion_edge.view import Link

Floats = NDArray[np.float64]

FAST, MIDDLE, SLOW = 0.6, 0.2, 0.03
WINDOW, FIRM = 20, 0.03
MEMORY = 0.15
"""Weight of the newest hop in the means of misses and gaps."""
MOST = 1.5
"""Of a move of a logarithm."""
FILE = "learned.json"


@dataclass(frozen=True)
class Weights:
    """One hidden layer: outputs = out @ tanh(hidden @ signals + hidden_bias) + out_bias.

    hidden (units, signals), out (2, units): what is added to the logarithms of delay and rate.
    """

    hidden: Floats
    hidden_bias: Floats
    out: Floats
    out_bias: Floats

    def moves(self, signals: Sequence[float]) -> tuple[float, float]:
        inner = np.tanh(self.hidden @ np.asarray(signals) + self.hidden_bias)
        delay, rate = MOST * np.tanh((self.out @ inner + self.out_bias) / MOST)
        return float(delay), float(rate)

    @staticmethod
    def of(lists: Mapping[str, object]) -> Weights:
        names = ("hidden", "hidden_bias", "out", "out_bias")
        return Weights(*(np.array(lists[name], dtype=np.float64) for name in names))


@lru_cache(maxsize=1)
def weights() -> Weights:
    """Those that come with the package."""
    return Weights.of(_file())


def trained_on() -> tuple[str, ...]:
    """Names of the recordings that they were trained on."""
    return tuple(_file()["traces"])


@lru_cache(maxsize=1)
def _file() -> dict[str, Any]:
    text = resources.files("diffusion_edge.routing.links").joinpath(FILE).read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@dataclass(frozen=True)
class Learned:
    """Means of several memories, how far the middle one was off lately, and how old that is."""

    network: Weights
    fast: Smoothed
    middle: Smoothed
    slow: Smoothed
    window: Harmonic
    off: float = 0.5
    leaning: float = 0.0
    last: float = 0.0
    gap: float = 0.0
    at: float = 0.0

    @staticmethod
    def start(guess: Link, network: Weights) -> Learned:
        fast, middle, slow = (Smoothed(guess, weight) for weight in (FAST, MIDDLE, SLOW))
        return Learned(network, fast, middle, slow, Harmonic(guess, WINDOW, FIRM))

    @property
    def hops(self) -> int:
        return self.middle.hops

    def observe(self, hop: Hop) -> Learned:
        last = min(max(miss(self.middle.guess, hop), -3.0), 3.0) if self.hops else 0.0
        gap = log1p(max(hop.at - self.at, 0.0)) if self.hops else 0.0
        weight = max(MEMORY, 1.0 / max(self.hops, 1))
        return replace(
            self,
            fast=self.fast.observe(hop),
            middle=self.middle.observe(hop),
            slow=self.slow.observe(hop),
            window=self.window.observe(hop),
            off=self.off + weight * (abs(last) - self.off) if self.hops else self.off,
            leaning=self.leaning + weight * (last - self.leaning) if self.hops else 0.0,
            last=last,
            gap=self.gap + weight * (gap - self.gap) if self.hops else 0.0,
            at=hop.at,
        )

    def signals(self, at: float) -> tuple[float, ...]:
        """What the network sees; all about within -3 and 3."""
        base = self.window.guess
        apart = [
            log(part)
            for other in (self.fast.guess, self.middle.guess, self.slow.guess)
            for part in (other.delay_s / base.delay_s, other.bytes_per_s / base.bytes_per_s)
        ]
        delayed = log(base.delay_s * base.bytes_per_s / 1e5)
        age = log1p(max(at - self.at, 0.0))
        return (
            *(min(max(part, -3.0), 3.0) for part in apart),
            min(max(delayed / 3.0, -3.0), 3.0),
            age / 2.0,
            self.gap / 2.0,
            3.0 / (self.hops + 1.0),
            self.off,
            self.leaning,
            self.last,
        )

    def link(self, at: float) -> Link:
        if not self.hops:
            return self.window.guess
        return shifted(self.window.guess, *self.network.moves(self.signals(at)))
