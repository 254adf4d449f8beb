"""What only `make test-long` does: the same tests at full size, and a few that take minutes."""

from __future__ import annotations

import os

import pytest

LONG = bool(os.environ.get("LONG_TESTS"))

long = pytest.mark.skipif(not LONG, reason="only in `make test-long`")


def often(usually: int, at_length: int) -> int:
    """How many times something is tried that is drawn at random."""
    return at_length if LONG else usually
