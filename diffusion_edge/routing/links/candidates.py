"""What a link may be taken for after the hops that were seen: one class a candidate.

All speak of a link's delay and rate, so that a packet of a size never seen is predicted too:

    seconds = delay_s + bytes / bytes_per_s

Hops of one size cannot tell the two apart, those of several sizes can. Both are handled as
logarithms: they stay positive, and being off by half counts as much as being off by twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, log
from typing import Protocol

from diffusion_edge.view import Link

SHORTEST_S = 1e-5
"""No hop is taken to be shorter, no delay smaller."""
NEUTRAL = Link(bytes_per_s=1e6, delay_s=0.03)
"""The first guess where nothing is stated."""


@dataclass(frozen=True)
class Hop:
    """`nbytes` were sent and had arrived after `seconds`, at the time `at`."""

    nbytes: int
    seconds: float
    at: float


class Candidate(Protocol):
    """State of a link as one way to estimate sees it. A value: `observe` makes another."""

    def observe(self, hop: Hop) -> Candidate: ...

    def link(self, at: float) -> Link:
        """What the link is taken for at a time not before the last hop's."""
        ...


def delay_share(link: Link, nbytes: int) -> float:
    """Of the seconds that the link is predicted to take."""
    return link.delay_s / link.transfer_s(nbytes)


def miss(link: Link, hop: Hop) -> float:
    """Logarithm of the hop's seconds over those predicted; positive where it was slower."""
    return log(max(hop.seconds, SHORTEST_S) / link.transfer_s(hop.nbytes))


def shifted(link: Link, delay: float, rate: float) -> Link:
    """The logarithms of delay and rate moved by so much."""
    return Link(link.bytes_per_s * exp(rate), max(link.delay_s * exp(delay), SHORTEST_S))


# ---------------------------------------------------------------------------- smoothing

LOOSE = 2.0
"""How much more freely a rate moves than a delay, as a ratio of variances."""
REPEATS = 4
"""Of the projection, which is exact only for small moves."""


def explained(link: Link, hop: Hop, share: float, loose: float = LOOSE) -> Link:
    """The link moved by as little as makes it explain `share` of its miss of the hop.

    A small packet thus moves mostly the delay, a large one the rate: the derivatives of the
    logarithm of the seconds are u for the delay's and u - 1 for the rate's, u the delay's share.
    """
    wanted = share * miss(link, hop)
    target = log(link.transfer_s(hop.nbytes)) + wanted
    for _ in range(REPEATS):
        u = delay_share(link, hop.nbytes)
        rest = target - log(link.transfer_s(hop.nbytes))
        if abs(rest) < 1e-6:
            break
        scale = rest / (u * u + loose * (1.0 - u) ** 2)
        link = shifted(link, _within(u * scale), _within(loose * (u - 1.0) * scale))
    return link


def _within(move: float, most: float = 2.0) -> float:
    return min(max(move, -most), most)


@dataclass(frozen=True)
class Smoothed:
    """Exponentially weighted mean of the logarithms; with a weight of 1 the last value.

    The n-th hop counts 1 / n until that is less than `weight`: the first one overrules the guess.
    """

    guess: Link
    weight: float
    hops: int = 0

    def observe(self, hop: Hop) -> Smoothed:
        share = max(self.weight, 1.0 / (self.hops + 1))
        return Smoothed(explained(self.guess, hop, share), self.weight, self.hops + 1)

    def link(self, at: float) -> Link:
        return self.guess


# ---------------------------------------------------------------------------- a window


@dataclass(frozen=True)
class Harmonic:
    """Harmonic mean of the rates of the last hops: least squares of their seconds.

    The relative errors of (delay, seconds a byte) are squared, and so are, with `firm` times the
    weight of a hop, the relative moves from the last estimate, which hops of one size need.
    """

    guess: Link
    window: int
    firm: float
    recent: tuple[Hop, ...] = ()

    def observe(self, hop: Hop) -> Harmonic:
        recent = (*self.recent, hop)[-self.window :]
        guess = self.guess if self.recent else explained(self.guess, hop, 1.0)
        return replace(self, guess=_least_squares(guess, recent, self.firm), recent=recent)

    def link(self, at: float) -> Link:
        return self.guess


def _least_squares(guess: Link, hops: tuple[Hop, ...], firm: float) -> Link:
    """Of seconds = x * delay + y * transfer, relative to the seconds, x and y pulled towards 1."""
    xx = yy = firm
    xy, x1, y1 = 0.0, firm, firm
    for hop in hops:
        seconds = max(hop.seconds, SHORTEST_S)
        x, y = guess.delay_s / seconds, hop.nbytes / guess.bytes_per_s / seconds
        # Errors relative to what is predicted, so that one slow hop does not weigh little.
        weight = min(1.0, (seconds / guess.transfer_s(hop.nbytes)) ** 2)
        xx, xy, yy = xx + weight * x * x, xy + weight * x * y, yy + weight * y * y
        x1, y1 = x1 + weight * x, y1 + weight * y
    scale = 1.0 / (xx * yy - xy * xy)
    delay, transfer = scale * (yy * x1 - xy * y1), scale * (xx * y1 - xy * x1)
    return shifted(guess, log(max(delay, 0.05)), -log(max(transfer, 0.05)))


# ---------------------------------------------------------------------------- Kalman


@dataclass(frozen=True)
class Noise:
    """What a Kalman filter takes for granted, as variances of logarithms.

    A rate and a delay wander by `rate` and `delay` a second and return to their long-run means in
    `back_s`, of which every hop makes up at least `slow`. hop: of a hop's seconds. first: of the
    first guess.
    """

    delay: float = 0.012
    rate: float = 0.04
    back_s: float = 16.0
    hop: float = 0.03
    first: float = 4.0
    slow: float = 0.01


@dataclass(frozen=True)
class Kalman:
    """Extended Kalman filter of the logarithms of delay and rate.

    They wander as long as nothing is seen, so that after a quiet time a hop counts more. spread:
    their variances and covariance. usual: the slow mean that they return to.
    """

    guess: Link
    usual: Link
    noise: Noise = Noise()
    spread: tuple[float, float, float] | None = None
    hops: int = 0
    at: float = 0.0

    def observe(self, hop: Hop) -> Kalman:
        link = self.link(hop.at)
        dd, dr, rr = self._spread_at(hop.at)
        u = delay_share(link, hop.nbytes)
        v = u - 1.0
        to_delay, to_rate = dd * u + dr * v, dr * u + rr * v
        variance = u * to_delay + v * to_rate + self.noise.hop
        gain_delay, gain_rate = to_delay / variance, to_rate / variance
        error = _within(miss(link, hop), 3.0)
        moved = shifted(link, gain_delay * error, gain_rate * error)
        if not self.hops:
            moved = explained(self.guess, hop, 1.0)
        spread = (
            dd - gain_delay * to_delay,
            dr - gain_delay * to_rate,
            rr - gain_rate * to_rate,
        )
        usual = explained(self.usual, hop, max(self.noise.slow, 1.0 / (self.hops + 1)))
        return replace(self, guess=moved, usual=usual, spread=spread, hops=self.hops + 1, at=hop.at)

    def link(self, at: float) -> Link:
        if not self.hops:
            return self.guess
        kept = exp(-max(at - self.at, 0.0) / self.noise.back_s)
        return between(self.usual, self.guess, kept)

    def _spread_at(self, at: float) -> tuple[float, float, float]:
        noise = self.noise
        if self.spread is None:
            return noise.first, 0.0, noise.first
        dd, dr, rr = self.spread
        quiet = max(at - self.at, 0.0)
        kept = exp(-2.0 * quiet / noise.back_s)
        grown = 0.5 * noise.back_s * (1.0 - kept)
        return (
            kept * dd + noise.delay * grown,
            kept * dr,
            kept * rr + noise.rate * grown,
        )


def between(first: Link, second: Link, share: float) -> Link:
    """`share` of the second one in the geometric mean of two links."""
    return Link(
        first.bytes_per_s * (second.bytes_per_s / first.bytes_per_s) ** share,
        first.delay_s * (second.delay_s / first.delay_s) ** share,
    )
