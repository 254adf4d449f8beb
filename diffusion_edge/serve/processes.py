"""The processes below this one, so that none of ours outlives us. Linux; elsewhere it does less."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose own parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int | None = None) -> set[int]:
    """Ids of all processes below `root` (this process), zombies not counted."""
    children: dict[int, list[int]] = {}
    zombies = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The name stands in brackets and may itself hold spaces and brackets.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        children.setdefault(int(parent), []).append(int(entry.name))
        if state == "Z":
            zombies.add(int(entry.name))
    found: set[int] = set()
    queue = [os.getpid() if root is None else root]
    while queue:
        below = children.get(queue.pop(), [])
        queue += below
        found.update(below)
    return found - zombies


def end_descendants(spare: Iterable[int], grace_s: float = 5.0) -> set[int]:
    """Ends all descendants but `spare`: asks first, kills after `grace_s`. Returns who is left."""
    kept = set(spare)
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, grace_s)):
        give_up = time.monotonic() + patience_s
        asked: set[int] = set()
        while left := descendants() - kept:
            for pid in left - asked:
                _send(pid, number)
            asked |= left
            if time.monotonic() > give_up:
                break
            time.sleep(0.05)
    _reap()
    return descendants() - kept


def _reap() -> None:
    """Collects the dead that were adopted; nobody else would."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
