"""Judges the link estimators on recorded links, each hop predicted before it is seen. No torch.

Errors are of the logarithm of a hop's seconds: mean(|log(predicted / taken)|), so that 0.10 is
about 10 %, and half as long counts as much as twice as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np

from diffusion_edge.profile.hops import (
    EVERY,
    LEADS_S,
    ROUND_TRIPS,
    SD15,
    SDXL,
    SHAPES,
    SMALL,
    Recordings,
    Run,
    Sending,
    paced,
    packet_bytes,
)
from diffusion_edge.routing.links.candidates import NEUTRAL, Hop, miss
from diffusion_edge.routing.links.estimate import LinkEstimate, candidates
from diffusion_edge.routing.links.probes import probe_bytes
from diffusion_edge.traces import joined, transfer_s
from diffusion_edge.view import Link

GAPS_S = (0.7, 4.0, 25.0)
SCALES = (1.0, 0.4)
MIXES = (SHAPES, SD15, SDXL, EVERY)
OFF = 0.7
"""Standard deviation of the logarithm of what is stated over what is true."""

TRUE, CHOSEN = "true mean", "chosen"
CANDIDATES = tuple(candidates(NEUTRAL))
ARMS = (TRUE, *CANDIDATES, CHOSEN)

LARGE = packet_bytes("flux", "exact", 1)
LARGE_EVERY_S = 2.0
QUIET_GAP_S, QUIET_PACKETS = 300.0, 40
CHANGING, CHANGE_S = "one after another", 900.0
CHECK_S = 1.0
"""Between two looks at whether a quiet link is to be probed."""

# ---------------------------------------------------------------------------- records


@dataclass(frozen=True)
class Score:
    """One replay. errors, relative: by arm, means over its hops. covered: of its hops, the share
    within the 90 % quantile."""

    trace: str
    mix: str
    gap_s: float
    hops: int
    errors: dict[str, float]
    relative: dict[str, float]
    covered: float


@dataclass(frozen=True)
class Large:
    """Packets larger than any that was seen, by trace: mean errors of the logarithm, and its mean
    with its sign, of the estimator and of bytes over seconds."""

    trace: str
    error: float
    leaning: float
    plain_error: float
    plain_leaning: float


@dataclass(frozen=True)
class Quiet:
    """A packet every 300 s, by trace: errors with probes and without, and the probes' bytes as a
    share of what the link could have carried."""

    trace: str
    error: float
    probed_error: float
    share: float


@dataclass(frozen=True)
class Report:
    """trained_on: traces that the learned candidate and the constants were chosen on."""

    command: str
    measured: str
    trained_on: tuple[str, ...]
    scores: tuple[Score, ...]
    large: tuple[Large, ...]
    quiet: tuple[Quiet, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def traces(self) -> tuple[str, ...]:
        """Those that chose nothing first."""
        names = dict.fromkeys(score.trace for score in self.scores)
        return tuple(sorted(names, key=lambda name: (name in self.trained_on, name)))


# ---------------------------------------------------------------------------- replays


def runs(traces: Sequence[str], hops: int, seed: int) -> Iterator[Run]:
    random = np.random.default_rng(seed)
    for trace, mix, gap_s, scale in product(traces, MIXES, GAPS_S, SCALES):
        rate, delay = np.exp(random.normal(0.0, OFF, 2))
        rtt = ROUND_TRIPS[int(random.integers(len(ROUND_TRIPS)))]
        drawn = int(random.integers(1 << 30))
        lead_s = float(random.choice(LEADS_S))
        yield Run(trace, mix, gap_s, scale, rtt, lead_s, (float(rate), float(delay)), hops, drawn)


def score(recordings: Recordings, run: Run) -> Score:
    truth = recordings.truth(run)
    errors: dict[str, list[float]] = {arm: [] for arm in ARMS}
    covered = []
    estimate = LinkEstimate.start(recordings.stated(run))
    for ended, sending in paced(recordings.sendings(run)):
        estimate, hop, at = _after(estimate, ended), sending.hop, sending.asked_s
        links = {name: each.link(at) for name, each in estimate.beliefs[-1].states.items()}
        links |= {TRUE: truth, CHOSEN: estimate.link(at)}
        for arm, link in links.items():
            errors[arm].append(miss(link, hop))
        covered.append(hop.seconds <= estimate.predict(hop.nbytes, at)[1])
    return Score(
        run.trace,
        run.mix.name,
        run.gap_s,
        len(covered),
        {arm: fmean(map(abs, found)) for arm, found in errors.items()},
        {arm: float(np.mean(np.abs(np.expm1(np.negative(each))))) for arm, each in errors.items()},
        fmean(covered),
    )


def _after(estimate: LinkEstimate, ended: Sequence[Sending]) -> LinkEstimate:
    for each in ended:
        hop = each.hop
        estimate = estimate.observe(hop.nbytes, hop.seconds, hop.at, each.asked_s)
    return estimate


def larger(recordings: Recordings, trace: str, hops: int, seed: int) -> Large:
    """Small packets are sent; at each, one is predicted that is larger than any of them.

    Bytes over seconds: the mean rate of the last 20 hops, with no delay.
    """
    ours, plain = [], []
    for rtt, scale in product(ROUND_TRIPS, SCALES):
        run = Run(trace, SMALL, LARGE_EVERY_S, scale, rtt, 0.0, (1.0, 1.0), hops, seed)
        rates, delays = recordings.link(run)
        sendings = recordings.sendings(run)
        estimate = LinkEstimate.start()
        for ended, sending in paced(sendings):
            estimate = _after(estimate, ended)
            if estimate.hops:
                start_s = sending.start_s
                taken_s = transfer_s(rates, start_s, LARGE) + delays.at(start_s)
                large = Hop(LARGE, taken_s, start_s + taken_s)
                ours.append(miss(estimate.link(sending.asked_s), large))
                plain.append(
                    miss(_plain(sendings[max(estimate.hops - 20, 0) : estimate.hops]), large)
                )
    return Large(trace, fmean(map(abs, ours)), fmean(ours), fmean(map(abs, plain)), fmean(plain))


def _plain(sendings: Sequence[Sending]) -> Link:
    hops = [sending.hop for sending in sendings]
    return Link(sum(hop.nbytes for hop in hops) / sum(hop.seconds for hop in hops), 0.0)


def changing(recordings: Recordings, seed: int) -> Recordings:
    """With one link more, CHANGING: all recordings one after another, in an order that is drawn,
    each repeated for CHANGE_S."""
    order = np.random.default_rng(seed).permutation(list(recordings.rates))
    link = joined([recordings.rates[name] for name in order], CHANGE_S)
    return replace(recordings, rates=recordings.rates | {CHANGING: link})


def quiet(recordings: Recordings, trace: str, seed: int) -> Quiet:
    """Of a fixed round trip to a near cloud."""
    run = Run(trace, EVERY, QUIET_GAP_S, 1.0, ROUND_TRIPS[1], 0.0, (0.5, 1.0), QUIET_PACKETS, seed)
    sendings = recordings.sendings(run)
    start = LinkEstimate.start(recordings.stated(run), sendings[0].asked_s - QUIET_GAP_S)
    alone, estimate = [], start
    for ended, sending in paced(sendings):
        estimate = _after(estimate, ended)
        alone.append(abs(miss(estimate.link(sending.asked_s), sending.hop)))
    probed, share = _probed(recordings, run, sendings, start)
    return Quiet(trace, fmean(alone), fmean(probed), share)


def _probed(
    recordings: Recordings, run: Run, sendings: Sequence[Sending], estimate: LinkEstimate
) -> tuple[list[float], float]:
    """Errors of the packets, and the share of the probes in what the link could have carried."""
    rates, delays = recordings.link(run)

    def hop(nbytes: int, at: float) -> Hop:
        seconds = transfer_s(rates, at, nbytes) + delays.at(at)
        return Hop(nbytes, seconds, at + seconds)

    errors, sent, now = [], 0, estimate.at
    for sending in sendings:
        while now < sending.asked_s:
            asked = probe_bytes(estimate, round(run.mix.mean_bytes), now)
            if asked is not None:
                sent += asked
                probe = hop(asked, now)
                estimate = estimate.observe(probe.nbytes, probe.seconds, probe.at)
            now = max(now + CHECK_S, estimate.at)
        now = max(sending.asked_s, estimate.at)
        taken = hop(sending.hop.nbytes, now)
        errors.append(abs(miss(estimate.link(now), taken)))
        estimate = estimate.observe(taken.nbytes, taken.seconds, taken.at)
        now = taken.at
    return errors, sent / (rates.until(now) - rates.until(sendings[0].asked_s - QUIET_GAP_S))


def measure(
    recordings: Recordings,
    hops: int,
    seed: int,
    told: tuple[str, str, tuple[str, ...]],
    tell: Callable[[str], None],
) -> Report:
    """told: the command, the date, and the traces that chose something."""
    scores, large, still = [], [], []
    for trace in recordings.rates:
        scores += [score(recordings, run) for run in runs([trace], hops, seed)]
        large.append(larger(recordings, trace, hops // 2, seed))
        still.append(quiet(recordings, trace, seed))
        tell(f"{trace}: {mean_error(scores, CHOSEN, trace=trace):.3f}")
    still.append(quiet(changing(recordings, seed), CHANGING, seed))
    return Report(*told, tuple(scores), tuple(large), tuple(still))


# ---------------------------------------------------------------------------- what it comes to


def mean_error(scores: Sequence[Score], arm: str, **where: object) -> float:
    """Over the traces' means, of the replays whose fields are those."""
    by_trace: dict[str, list[float]] = {}
    for each in scores:
        if all(getattr(each, field) == value for field, value in where.items()):
            by_trace.setdefault(each.trace, []).append(each.errors[arm])
    return fmean(fmean(errors) for errors in by_trace.values())


def best(scores: Sequence[Score], **where: object) -> tuple[str, float]:
    """The best single candidate and its error."""
    errors = {name: mean_error(scores, name, **where) for name in CANDIDATES}
    name = min(errors, key=lambda name: errors[name])
    return name, errors[name]


def excess(scores: Sequence[Score], **where: object) -> float:
    """By how much the chosen one is worse than the best single candidate; negative if better."""
    return mean_error(scores, CHOSEN, **where) / best(scores, **where)[1] - 1.0


def coverage(scores: Sequence[Score], trace: str) -> tuple[float, float, float]:
    """Mean, lowest and highest of the trace's replays."""
    shares = [each.covered for each in scores if each.trace == trace]
    return fmean(shares), min(shares), max(shares)
