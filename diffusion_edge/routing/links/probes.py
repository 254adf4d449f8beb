"""When a quiet link is probed, and with how much, so that probes take at most 1 % of its rate."""

from __future__ import annotations

from diffusion_edge.routing.links.estimate import LinkEstimate

SHARE = 0.01
"""Of what the link could have carried since it was last used."""
QUIET_S = 5.0
"""A link that was used within so long is not probed."""
LEAST, MOST = 2048, 262_144
"""Bytes of a probe. Within them it is what passes in one delay, so that it tells of both."""


def probe_bytes(estimate: LinkEstimate, at: float) -> int | None:
    """Bytes to send over the link at `at`, or None while it is too early.

    The link's rate is taken to be as low as one hop in ten makes it. The probe's hop must be
    observed as any other, and no second one be sent before it has ended.
    """
    quiet_s = at - estimate.at
    if quiet_s < QUIET_S:
        return None
    link = estimate.link(at)
    rate = link.bytes_per_s / max(estimate.slow, 1.0)
    wanted = int(min(max(rate * link.delay_s, LEAST), MOST))
    return wanted if wanted <= SHARE * rate * quiet_s else None
