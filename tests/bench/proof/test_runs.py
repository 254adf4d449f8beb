"""What is marked on a timeline."""

from __future__ import annotations

from diffusion_edge.bench.proof.command import COLLAPSE
from diffusion_edge.bench.proof.runs import events
from diffusion_edge.places import REPOSITORY
from diffusion_edge.sim.scenario import load


def test_what_happens_at_one_moment_is_told_together() -> None:
    told = [
        (60.0, "links change"),
        (120.0, "cloud slow"),
        (180.0, "links change, slow no more"),
    ]
    assert events(load(REPOSITORY / COLLAPSE)) == told
