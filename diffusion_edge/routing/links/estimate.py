"""What is known of a link: seconds of its next hop, from the hops that were seen.

Every candidate predicts each hop before it is seen. By its recent errors it gets a weight, and the
geometric mean of all by weight is what the link is taken for (Hedge, Freund and Schapire 1997,
with errors that fade). The 90 % quantile is that of the recent errors, at a level that is moved
until nine in ten hops lie below (adaptive conformal inference, Gibbs and Candès 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp, isfinite, log
from typing import Literal

from diffusion_edge.routing.links.candidates import (
    NEUTRAL,
    SHORTEST_S,
    Candidate,
    Harmonic,
    Hop,
    Kalman,
    Smoothed,
    miss,
)
from diffusion_edge.routing.links.learned import Learned, weights
from diffusion_edge.view import Link

QUANTILE = 0.9
STALE_S = 60.0
"""After so long without a hop a measured link is stale: it is then predicted no better than by
what it usually is."""

EAGER = 1.0
"""How much an error, of at most WORST, costs a candidate in the logarithm of its weight."""
WORST = 1.0
KEPT = 0.98
"""Of earlier errors, with every hop."""
TRUST = {"learned": 3.0}
"""Weight before the first hop, where it is not 1."""
WINDOW = 100
"""Errors that the quantile is taken from."""
BELIEFS = 24
"""That are kept: hops that may end between a prediction and its hop."""
EASE = 0.01
"""How far one hop moves the quantile's level."""
SUPPOSED = (-0.6, 0.1, 0.9, -0.1, 0.45, -0.35, 0.25, 0.0, -0.2, 0.6, -0.45, 0.35, -0.9, 0.18, -0.05,
            -0.25, 0.05, -0.02, 0.02)  # fmt: skip
"""Errors before any was seen; each that is seen takes the place of one."""

Known = Literal["guessed", "stated", "measured", "stale"]


def candidates(guess: Link) -> dict[str, Candidate]:
    """All of them, by name, before the first hop."""
    return {
        "last": Smoothed(guess, weight=1.0),
        "ewma": Smoothed(guess, weight=0.2),
        "harmonic": Harmonic(guess, window=20, firm=0.03),
        "kalman": Kalman(guess, guess),
        "learned": Learned.start(guess, weights()),
    }


@dataclass(frozen=True)
class LinkView:
    """What can be told of a link. `known`: `guessed` where nothing is stated either.

    age_s: since the last hop ended, None before the first. slow: the 90 % quantile of a hop's
    seconds over those predicted.
    """

    known: Known
    link: Link
    slow: float
    hops: int
    age_s: float | None


@dataclass(frozen=True)
class Belief:
    """What was held of a link since `at`, after so many hops: the candidates, and their weights,
    which add up to 1."""

    hops: int
    at: float
    states: Mapping[str, Candidate]
    weights: Mapping[str, float]

    def link(self, at: float) -> Link:
        """The geometric mean of the candidates' links by weight."""
        rate = delay = 0.0
        for name, weight in self.weights.items():
            link = self.states[name].link(at)
            rate += weight * log(link.bytes_per_s)
            delay += weight * log(link.delay_s)
        return Link(exp(rate), exp(delay))


@dataclass(frozen=True)
class LinkEstimate:
    """State of one directed link. A value: `observe` makes another.

    beliefs: newest last, the earlier ones to judge predictions by that were made before. losses:
    the candidates' faded errors. misses: logarithms of seconds over those predicted, newest last.
    level: of the quantile among them. at: the end of the last hop, or when the link was first
    heard of.
    """

    stated: Link | None
    beliefs: tuple[Belief, ...]
    losses: Mapping[str, float]
    misses: tuple[float, ...] = ()
    level: float = QUANTILE
    hops: int = 0
    at: float = 0.0

    @staticmethod
    def start(stated: Link | None = None, at: float = 0.0) -> LinkEstimate:
        """stated: a first guess, which one hop overrules."""
        guess = stated or NEUTRAL
        states = candidates(replace(guess, delay_s=max(guess.delay_s, SHORTEST_S)))
        losses = {name: -log(TRUST.get(name, 1.0)) / EAGER for name in states}
        return LinkEstimate(stated, (Belief(0, at, states, _weights(losses)),), losses, at=at)

    def observe(
        self, nbytes: int, seconds: float, at: float, asked_at: float | None = None
    ) -> LinkEstimate:
        """After a hop that took `seconds` and ended at `at`; ValueError for what is none.

        A hop's seconds begin when its bytes begin to be sent: what it waited for hops before it
        is not the link's. asked_at: when the hop was predicted, if that was earlier, as in a plan
        whose first stage had to run; the candidates are judged by what was known then.
        """
        if nbytes <= 0 or not (isfinite(seconds) and seconds >= 0.0 and isfinite(at)):
            raise ValueError(f"no hop: {nbytes} bytes in {seconds} s at {at} s")
        hop = Hop(nbytes, seconds, max(at, self.at))
        asked = hop.at - seconds if asked_at is None else min(asked_at, hop.at)
        belief = self._belief_at(asked)
        asked = max(asked, belief.at)
        losses = {
            name: KEPT * loss + min(abs(miss(belief.states[name].link(asked), hop)), WORST)
            for name, loss in self.losses.items()
        }
        states = {name: state.observe(hop) for name, state in self.beliefs[-1].states.items()}
        newest = Belief(self.hops + 1, hop.at, states, _weights(losses))
        found = replace(
            self,
            beliefs=(*self.beliefs, newest)[-BELIEFS:],
            losses=losses,
            hops=self.hops + 1,
            at=hop.at,
        )
        if not belief.hops:
            return found  # the first guess says nothing of how well hops predict the next
        error = miss(belief.link(asked), hop)
        level = moved(self.level, error > log(self.slow))
        return replace(found, misses=(*self.misses, error)[-WINDOW:], level=level)

    def link(self, at: float) -> Link:
        """What the link is taken for at a time not before the last hop's end."""
        return self.beliefs[-1].link(at) if self.hops else self.stated or NEUTRAL

    def predict(self, nbytes: int, at: float) -> tuple[float, float]:
        """Seconds of a hop that begins at `at`: as often exceeded as not, and in one of ten."""
        middle_s = self.link(at).transfer_s(nbytes)
        return middle_s, middle_s * self.slow

    def view(self, at: float, stale_s: float = STALE_S) -> LinkView:
        age_s = max(at - self.at, 0.0) if self.hops else None
        known: Known
        if age_s is None:
            known = "stated" if self.stated else "guessed"
        else:
            known = "stale" if age_s > stale_s else "measured"
        return LinkView(known, self.link(at), self.slow, self.hops, age_s)

    @cached_property
    def slow(self) -> float:
        """The quantile of a hop's seconds over those predicted."""
        supposed = SUPPOSED[: max(len(SUPPOSED) - len(self.misses), 0)]
        return exp(quantile(sorted((*supposed, *self.misses)), self.level))

    def _belief_at(self, time: float) -> Belief:
        """The newest that was held by then, or else the oldest that is known."""
        held = (belief for belief in reversed(self.beliefs) if belief.at <= time)
        return next(held, self.beliefs[0])


def _weights(losses: Mapping[str, float]) -> dict[str, float]:
    least = min(losses.values())
    raw = {name: exp(EAGER * (least - loss)) for name, loss in losses.items()}
    total = sum(raw.values())
    return {name: part / total for name, part in raw.items()}


def moved(level: float, beyond: bool) -> float:
    """The level of the quantile after a draw that was beyond it or not: raised until as few are as
    QUANTILE says."""
    return min(max(level + EASE * (beyond - (1.0 - QUANTILE)), 0.5), 0.995)


def quantile(ordered: list[float], level: float) -> float:
    """Of one more draw from what `ordered` was drawn from (n + 1 places), between neighbours."""
    place = min(max(level * (len(ordered) + 1) - 1.0, 0.0), len(ordered) - 1.0)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
