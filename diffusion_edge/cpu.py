"""The processor that this runs on. No torch."""

from __future__ import annotations

import platform
from pathlib import Path


def model() -> str:
    """The processor's model, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
