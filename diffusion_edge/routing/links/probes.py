"""When a quiet link is probed, and with how much, so that probes take at most 1 % of its rate."""

from __future__ import annotations

from diffusion_edge.routing.links.estimate import LinkEstimate

SHARE = 0.01
"""Of what the link could have carried since it was last used."""
QUIET_S = 20.0
"""A link that was used within so long is not probed."""
PAUSE_S = 2.0
"""Between two looks at the links from a stage, and so between two probes that it sends."""
SMALL = 2048
"""Bytes of every other probe, which tells of the delay alone."""
LONGEST_S = 1.0
"""That a large probe passes, as long as the link does not slow down."""


def probe_bytes(
    estimate: LinkEstimate, nbytes: int, at: float, tried_at: float | None = None
) -> int | None:
    """Bytes to send over the link at `at`, or None while it is too early.

    nbytes: of the packets that the link is to carry. tried_at: when a probe was sent last, of which
    nothing may have come. Small and large probes take turns, since hops
    of one size cannot tell a delay from a rate. The link's rate is taken to be as low as one hop in
    ten makes it. A probe's hop must be observed as any other, and no second one be sent before it
    has ended.
    """
    quiet_s = at - (estimate.at if tried_at is None else max(estimate.at, tried_at))
    if quiet_s < QUIET_S:
        return None
    rate = estimate.link(at).bytes_per_s / max(estimate.slow, 1.0)
    large = max(int(min(nbytes, rate * LONGEST_S)), SMALL)
    wanted = SMALL if estimate.hops % 2 else large
    return wanted if wanted <= SHARE * rate * quiet_s else None
