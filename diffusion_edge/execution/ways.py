"""The ways by name, and which of them are tried where nobody says how a model is to run."""

from __future__ import annotations

from collections.abc import Mapping

from diffusion_edge.errors import InvalidRequest
from diffusion_edge.execution.compiled import COMPILED
from diffusion_edge.execution.eager import EAGER
from diffusion_edge.execution.openvino import OPENVINO
from diffusion_edge.execution.way import Way
from diffusion_edge.strict import nearest

WAYS: Mapping[str, Way] = {way.name: way for way in (EAGER, OPENVINO, COMPILED)}

TRIED: Mapping[str, tuple[Way, ...]] = {"cpu": (OPENVINO,), "cuda": (COMPILED,)}
"""Beside eager, by type of device. On a CPU inductor takes half a minute for each size to gain
little in float32 (LOG.md), so it is there for those who ask for it."""


def named(name: str) -> Way:
    """Raises InvalidRequest, which names the known ones."""
    if name not in WAYS:
        known, near = ", ".join(WAYS), nearest(name[:100], WAYS)
        message = f"there is no execution {name[:100]!r}; known: auto, {known}{near}"
        raise InvalidRequest(message, param="execution")
    return WAYS[name]
