"""Hops of packets of real sizes, replayed over recorded links. No torch, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion_edge.errors import InvalidRequest
from diffusion_edge.routing.links.candidates import Hop
from diffusion_edge.traces import Trace, read_rates, read_round_trips, transfer_s
from diffusion_edge.view import Link

HEAD = 1200
"""Bytes of a packet besides its tensors."""
HANDLING_S = 0.006
"""Of a hop's two ends, besides the round trip."""
BUSY = 0.5
"""Share of the time that a link is at most loaded: slow ones get packets less often."""
KIND = {"shapes": 8 * 8 * 8, "sd15": 4 * 64 * 64, "sdxl": 4 * 128 * 128, "flux": 16 * 128 * 128}
"""Values of a latent: `shapes` of 64 pixels, SD 1.5 of 512, SDXL and FLUX of 1024."""
VALUE_BYTES = {"exact": 4, "bf16": 2, "int8": 1}
TENSORS = (1, 2, 4)
"""The latent alone (DDIM, Euler), with one more of history (DPM++ 2M), with three (PNDM, LMS)."""


def packet_bytes(kind: str, codec: str, tensors: int) -> int:
    return HEAD + KIND[kind] * VALUE_BYTES[codec] * tensors


@dataclass(frozen=True)
class Mix:
    """What is sent: each packet draws a model, a codec and a solver (its tensors)."""

    name: str
    kinds: tuple[str, ...]
    codecs: tuple[str, ...]
    tensors: tuple[int, ...]

    def draw(self, random: np.random.Generator) -> int:
        drawn = (random.choice(options) for options in (self.kinds, self.codecs, self.tensors))
        kind, codec, tensors = drawn
        return packet_bytes(str(kind), str(codec), int(tensors))

    @property
    def mean_bytes(self) -> float:
        sizes = [
            packet_bytes(kind, codec, tensors)
            for kind in self.kinds
            for codec in self.codecs
            for tensors in self.tensors
        ]
        return float(np.mean(sizes))


CODECS = ("exact", "bf16", "int8")
SHAPES = Mix("shapes", ("shapes",), CODECS, TENSORS)
SD15 = Mix("sd15", ("sd15",), CODECS, TENSORS)
SDXL = Mix("sdxl", ("sdxl",), CODECS, TENSORS)
EVERY = Mix("every", ("shapes", "sd15", "sdxl", "flux"), CODECS, TENSORS)
SMALL = Mix("small", ("shapes", "sd15"), ("bf16", "int8"), (1, 2))

ROUND_TRIPS: tuple[str | float, ...] = (
    0.025,
    0.06,
    0.115,
    "rtt_driving_verizon",
    "rtt_driving_tmobile",
)
"""To an edge, a near cloud and a far one, and two recordings."""
LEADS_S = (0.0, 1.0, 5.0)


@dataclass(frozen=True)
class Sending:
    """A packet is predicted at `asked_s`, and goes at `start_s`: when it is ready and the one
    before it has passed."""

    asked_s: float
    start_s: float
    hop: Hop


def replay(
    rates: Trace, delays: Trace, packets: Iterable[tuple[float, int]], lead_s: float = 0.0
) -> Iterator[Sending]:
    """Packets (when ready, bytes) in order over a link that passes one after another.

    Each is predicted `lead_s` before it is ready.

    A hop lasts from its start until its last byte has passed, and one delay more.
    """
    free_s = 0.0
    for due_s, nbytes in packets:
        start_s = max(due_s, free_s)
        passing_s = transfer_s(rates, start_s, nbytes)
        free_s = start_s + passing_s
        seconds = passing_s + delays.at(start_s)
        yield Sending(due_s - lead_s, start_s, Hop(nbytes, seconds, start_s + seconds))


def packets(
    mix: Mix, gap_s: float, count: int, seed: int, start_s: float = 0.0
) -> Iterator[tuple[float, int]]:
    """Of exponential gaps, the first packet's at `start_s` and one gap."""
    random = np.random.default_rng(seed)
    due_s = start_s
    for _ in range(count):
        due_s += float(random.exponential(gap_s))
        yield due_s, mix.draw(random)


@dataclass(frozen=True)
class Run:
    """One replay. scale: of the recorded rates, below 1 for an uplink. rtt: a recording's name, or
    the seconds of a fixed round trip. lead_s: how long before a packet is ready it is predicted, as
    a plan is made before its first stage runs. stated: by how much what is stated of rate and delay
    is off.
    """

    trace: str
    mix: Mix
    gap_s: float
    scale: float
    rtt: str | float
    lead_s: float
    stated: tuple[float, float]
    hops: int
    seed: int


@dataclass(frozen=True)
class Recordings:
    rates: dict[str, Trace]
    round_trips: dict[str, Trace]

    @staticmethod
    def read(folder: Path) -> Recordings:
        """Of a folder with `links/*.csv` and `rtt/*.csv`. Raises InvalidRequest."""
        links, trips = (sorted((folder / name).glob("*.csv")) for name in ("links", "rtt"))
        if not links or not trips:
            raise InvalidRequest(f"{folder}: must have links/*.csv and rtt/*.csv")
        return Recordings(
            {file.stem: read_rates(file) for file in links},
            {file.stem: read_round_trips(file) for file in trips},
        )

    def link(self, run: Run) -> tuple[Trace, Trace]:
        """Rates, and delays: a round trip and the handling."""
        trips = (
            self.round_trips[run.rtt]
            if isinstance(run.rtt, str)
            else Trace(np.array([0.0]), np.array([run.rtt]), 1.0)
        )
        delays = Trace(trips.starts_s, trips.values + HANDLING_S, trips.period_s)
        return self.rates[run.trace].scaled(run.scale), delays

    def truth(self, run: Run) -> Link:
        """The mean rate of the whole trace and the median delay."""
        rates, delays = self.link(run)
        return Link(rates.mean, float(np.median(delays.values)))

    def stated(self, run: Run) -> Link:
        """The first guess: the truth, off by what the run says."""
        truth, (rate, delay) = self.truth(run), run.stated
        return Link(truth.bytes_per_s * rate, truth.delay_s * delay)

    def sendings(self, run: Run) -> list[Sending]:
        rates, delays = self.link(run)
        gap_s = max(run.gap_s, run.mix.mean_bytes / rates.mean / BUSY)
        start_s = float(np.random.default_rng(run.seed + 1).uniform(0.0, rates.period_s))
        asked = packets(run.mix, gap_s, run.hops, run.seed, start_s)
        return list(replay(rates, delays, asked, run.lead_s))


def paced(sendings: Sequence[Sending]) -> Iterator[tuple[Sequence[Sending], Sending]]:
    """Each sending, with those that have ended since the one before it was asked for: what is then
    known of the link."""
    seen = 0
    for sending in sendings:
        first = seen
        while sendings[seen].hop.at <= sending.asked_s:
            seen += 1
        yield sendings[first:seen], sending
