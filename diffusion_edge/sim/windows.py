"""An oracle's search over many requests: what is changed in one window of arrivals hardly matters
in another, so one play tries a change in each.

Of a play's changes those are kept in whose window more was earned, and these are played together:
what is taken in the end was played as it is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from diffusion_edge.sim.oracle import LEAST, Answer, Answers, Found, Plays

WINDOW = 20
"""Requests that come one after another."""
REFUSES = 8
"""After so many rounds what earns nothing is refused."""


def searched(begun: Sequence[Found], may: Sequence[Sequence[Answer]], plays: Plays) -> Found:
    """From the best of those that are known, until there are no plays left. The same is drawn every
    time."""
    rng = random.Random(0)
    found = max(begun, key=lambda each: each.total)
    found = _better(found, _mixed(begun), plays)
    turn = 0
    while plays.left:
        if turn % REFUSES == 0:
            found = _better(found, _without_losers(found), plays)
        found = _round(found, _changed(found, may, rng), plays)
        turn += 1
    return found


def _better(found: Found, answers: Answers, plays: Plays) -> Found:
    earned = plays.of(answers)
    if earned is None or sum(earned) <= found.total + LEAST:
        return found
    return Found("oracle", answers, earned)


def _mixed(begun: Sequence[Found]) -> Answers:
    """In every window the answers that earned most there."""
    answers: list[Answer] = []
    for window in windows(len(begun[0].answers)):
        best = max(begun, key=lambda found: sum(found.earned[window]))
        answers += best.answers[window]
    return tuple(answers)


def _without_losers(found: Found) -> Answers:
    return tuple(a if e > 0.0 else None for a, e in zip(found.answers, found.earned, strict=True))


def _changed(found: Found, may: Sequence[Sequence[Answer]], rng: random.Random) -> Answers:
    """One answer in every window: as often of who earns least as of anybody."""
    answers = list(found.answers)
    for window in windows(len(may)):
        here = range(*window.indices(len(may)))
        least = min(here, key=lambda k: (found.earned[k], rng.random()))
        k = least if rng.random() < 0.5 else rng.choice(here)
        others = [answer for answer in may[k] if answer != answers[k]]
        answers[k] = rng.choice(others) if others else answers[k]
    return tuple(answers)


def _round(found: Found, answers: Answers, plays: Plays) -> Found:
    """The changes as they are, and those of them alone after which more was earned."""
    earned = plays.of(answers)
    if earned is None:
        return found
    kept: list[Answer] = []
    for window in windows(len(answers)):
        gains = sum(earned[window]) > sum(found.earned[window]) + LEAST
        kept += (answers if gains else found.answers)[window]
    return _better(_better(found, answers, plays), tuple(kept), plays)


def windows(count: int) -> Iterator[slice]:
    return (slice(start, start + WINDOW) for start in range(0, count, WINDOW))
