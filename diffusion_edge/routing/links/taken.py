"""What every link is taken for now: an estimate by directed pair, taught by the hops of pictures
that were made and by probes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from diffusion_edge.request import Done
from diffusion_edge.routing.links.estimate import LinkEstimate, LinkView
from diffusion_edge.routing.links.probes import QUIET_S, SMALL, probe_bytes
from diffusion_edge.routing.links.underway import Underway
from diffusion_edge.view import Link

Pair = tuple[str, str]
SAME_S = 0.25
AGED = 1 / 16
"""What a link was taken for holds for SAME_S, or for that share of its age if it is longer, unless
a hop comes: a link that is quiet changes slowly, and there may be hundreds."""


@dataclass(frozen=True)
class _Taken:
    """What an estimate said of its link, and until when that holds."""

    estimate: LinkEstimate
    link: Link
    until: float


class Links:
    """first: by (from, to), what is stated of every pair that can hand off, None where nothing is.
    now: a clock. measured: False keeps to what is stated, whatever hops take."""

    def __init__(
        self,
        first: Mapping[Pair, Link | None],
        now: Callable[[], float],
        measured: bool = True,
    ) -> None:
        self.measured = measured
        self._now = now
        began = now()
        self._estimates = {pair: LinkEstimate.start(link, began) for pair, link in first.items()}
        self._taken: dict[Pair, _Taken] = {}
        self._probes = dict.fromkeys(first, 0)
        self._tried: dict[Pair, float] = {}
        self._packet_bytes = SMALL
        self._underway = Underway()

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Those that can hand off, directed."""
        return tuple(self._estimates)

    def __contains__(self, pair: object) -> bool:
        return pair in self._estimates

    def link(self, pair: Pair) -> Link:
        """What it is taken for now; KeyError for a pair that cannot hand off."""
        estimate, now = self._estimates[pair], self._now()
        taken = self._taken.get(pair)
        if taken is None or taken.estimate is not estimate or taken.until <= now:
            until = now + max(SAME_S, AGED * (now - estimate.at))
            taken = self._taken[pair] = _Taken(estimate, self._link(estimate, now), until)
        return self._underway.link(pair, taken.link, now)

    def _link(self, estimate: LinkEstimate, now: float) -> Link:
        link = estimate.link(now)
        return replace(link, slow=max(estimate.slow, 1.0)) if estimate.hops else link

    def view(self, pair: Pair) -> LinkView:
        """What can be told of it now: whether it was measured, and how it is known."""
        return self._estimates[pair].view(self._now())

    def probes(self, pair: Pair) -> int:
        """How many of its hops were probes."""
        return self._probes[pair]

    # ------------------------------------------------------------------ what teaches them

    def left(self, key: Hashable, pair: Pair, nbytes: int) -> None:
        """A packet has left for a stage; `came` is to follow, however that ends."""
        if self.measured:
            self._underway.left(key, pair, nbytes, self._now())

    def came(self, key: Hashable) -> None:
        """It is there, or will not come any more."""
        self._underway.came(key)

    def arrived(self, done: Done, took_s: float) -> None:
        """A picture has come whose plan was decided `took_s` ago: its hops tell of their links."""
        now = self._now()
        for hop, ended_s in zip(done.hops, since_hops(done), strict=False):
            pair = hop.source, hop.target
            if pair in self._estimates:  # not a plan that is cut on one stage
                self._packet_bytes = hop.link_bytes
                seconds = hop.seconds - hop.queue_s
                self._learn(pair, hop.link_bytes, seconds, now - ended_s, now - took_s)

    def probed(self, pair: Pair, nbytes: int, seconds: float) -> None:
        """A probe has just been answered."""
        self._probes[pair] += 1
        now = self._now()
        self._learn(pair, nbytes, seconds, now, now - seconds)

    def _learn(
        self, pair: Pair, nbytes: int, seconds: float, ended: float, asked_at: float
    ) -> None:
        if self.measured:
            estimate = self._estimates[pair]
            self._estimates[pair] = estimate.observe(nbytes, max(seconds, 0.0), ended, asked_at)

    # ------------------------------------------------------------------ what is to be probed

    def expect(self, packet_bytes: int) -> None:
        """Packets will have about so many bytes; those that come say better."""
        self._packet_bytes = packet_bytes

    def due(self, pairs: Iterable[Pair]) -> tuple[Pair, int] | None:
        """Of these the one to be probed now, and with how many bytes; None where none is.

        If several are, the one that has been quiet for longest. Who is told so tries: whether or
        not that succeeds, the link counts as used.
        """
        now = self._now()
        found = [
            (self._used(pair), pair, nbytes) for pair in pairs if (nbytes := self._probe(pair))
        ]
        if not found:
            return None
        _, pair, nbytes = min(found)
        self._tried[pair] = now
        return pair, nbytes

    def quiet_until(self, pairs: Iterable[Pair]) -> float:
        """Before then none of these is due, whatever comes."""
        return QUIET_S + min(self._used(pair) for pair in pairs)

    def _probe(self, pair: Pair) -> int | None:
        return probe_bytes(
            self._estimates[pair], self._packet_bytes, self._now(), self._tried.get(pair)
        )

    def _used(self, pair: Pair) -> float:
        """When anything was last sent over it, as far as that is known."""
        at = self._estimates[pair].at
        return max(at, self._tried.get(pair, at))


def since_hops(done: Done) -> Iterator[float]:
    """How long ago each hop had ended when the picture was done: later spans and hops are what was
    in between. The way back to who asked is left out."""
    spans = [span.queue_s + span.run_s + span.encode_s + span.decode_s for span in done.spans]
    for index in range(len(done.hops)):
        later_s = sum(hop.seconds for hop in done.hops[index + 1 :])
        yield sum(spans[index + 1 :]) + later_s
