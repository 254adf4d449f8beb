"""SIGINT and SIGTERM as KeyboardInterrupt in the main thread, or held off while things end.

No exception of our own: Ray's calls swallow any other that a handler raises.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def raise_on_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, _stop)


def ignore_signals() -> None:
    """For what takes seconds and must not be left half done."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def signals_raise() -> Iterator[None]:
    """Inside, a signal raises KeyboardInterrupt; afterwards the handlers are what they were."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    raise_on_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
