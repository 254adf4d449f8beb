"""The policy `oracle`: what could have been earned by somebody who knew the future.

Only a simulation has it. An answer to a request is a plan, or None where it is refused. All answers
are carried out together (`Play`), with every arrival, link and fault as it will be, so each is
judged by what it does to all others. The oracle begins with the answers of every other policy and
betters the best of them: one request after another, those that lack most first, then two at a time;
and when nothing of this helps, with some answers drawn anew, again (iterated local search,
Lourenço, Martin and Stützle, Handbook of Metaheuristics, 2003); of many requests several are
changed in one play (`windows`). Where all combinations fit into its
plays it tries all. So it is never below a policy that it was told of, and how far it may be below
the best there is, `sim.ceiling` says.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import prod

from diffusion_edge.plan import Plan

Answer = Plan | None
Answers = tuple[Answer, ...]
Play = Callable[[Answers], Sequence[float]]
"""What every request earns (`routing.reward`), if these are the answers."""

DRAWN = 4
"""Answers that are drawn anew at once."""
PATIENCE = 10
"""Times for every request that this is done in vain, before it is given up."""

LEAST = 1e-9
"""Earning more by less than this is earning as much."""


@dataclass(frozen=True)
class Found:
    """by: the policy whose answers they are; earned: by request. A policy's own run need not be
    what comes of its answers when they are played: it may have waited, or chosen again."""

    by: str
    answers: Answers
    earned: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.earned)


class Plays:
    """Counts them, and plays nothing twice. most: of them."""

    def __init__(self, play: Play, most: int) -> None:
        self._play, self._most = play, most
        self._known: dict[Answers, tuple[float, ...]] = {}

    @property
    def left(self) -> int:
        return self._most - len(self._known)

    def of(self, answers: Answers) -> tuple[float, ...] | None:
        """What they earn; None when there are no plays left."""
        if answers not in self._known:
            if not self.left:
                return None
            self._known[answers] = tuple(self._play(answers))
        return self._known[answers]


Search = Callable[[Sequence[Found], Sequence[Sequence[Answer]], Plays], Found]
"""From answers that were played, and all that each request may have, until no plays are left."""


def oracle(
    policies: Sequence[Found],
    others: Sequence[Sequence[Answer]],
    play: Play,
    most: int,
    search: Search | None = None,
) -> Found:
    """The best that is found in so many plays. others: by request, the answers that it may have
    beside those of the policies. search: where not all can be tried; `again` from the best if none
    is given. The same is drawn every time."""
    plays = Plays(play, most)
    may = [_may(k, policies, more) for k, more in enumerate(others)]
    best = max(policies, key=lambda found: found.total)
    if prod(map(len, may)) <= most:
        return max((best, *_all(may, plays)), key=lambda found: found.total)
    begun = [Found("oracle", each.answers, e) for each in policies if (e := plays.of(each.answers))]
    if not begun:
        return best
    bettered = (search or _from_best)(begun, may, plays)
    return max(best, bettered, key=lambda found: found.total)


def _from_best(begun: Sequence[Found], may: Sequence[Sequence[Answer]], plays: Plays) -> Found:
    return again(max(begun, key=lambda found: found.total), may, plays)


def again(found: Found, may: Sequence[Sequence[Answer]], plays: Plays) -> Found:
    """`better`, and from what is found so far with DRAWN answers drawn anew; until that has not
    helped PATIENCE times for every request, or there are no plays left."""
    rng, found, vain = random.Random(0), better(found, may, plays), 0
    while plays.left and vain < PATIENCE * len(may):
        answers = list(found.answers)
        for k in rng.sample(range(len(may)), min(DRAWN, len(may))):
            answers[k] = rng.choice(may[k])
        earned = plays.of(tuple(answers))
        if earned is None:
            return found
        other = better(Found(found.by, tuple(answers), earned), may, plays)
        vain = 0 if other.total > found.total + LEAST else vain + 1
        found = max(found, other, key=lambda each: each.total)
    return found


def _may(k: int, policies: Sequence[Found], more: Sequence[Answer]) -> list[Answer]:
    return list(dict.fromkeys((*(found.answers[k] for found in policies), *more)))


def _all(may: Sequence[Sequence[Answer]], plays: Plays) -> Iterator[Found]:
    for answers in product(*may):
        if (earned := plays.of(answers)) is not None:
            yield Found("oracle", answers, earned)


def better(found: Found, may: Sequence[Sequence[Answer]], plays: Plays) -> Found:
    """By changes of one answer, and where none of these helps, of two; until none does, or there
    are no plays left."""
    while plays.left:
        then = _bettered(found, _ones(found, may), plays)
        if then is found:
            then = _bettered(found, _twos(found, may), plays)
        if then is found:
            return found
        found = then
    return found


Change = tuple[tuple[int, Answer], ...]


def _bettered(found: Found, changes: Iterator[Change], plays: Plays) -> Found:
    """After all changes that help, each tried on what the ones before it have made."""
    for change in changes:
        answers = list(found.answers)
        for k, answer in change:
            answers[k] = answer
        earned = plays.of(tuple(answers))
        if earned is None:
            return found
        if sum(earned) > found.total + LEAST:
            found = Found("oracle", tuple(answers), earned)
    return found


def _ones(found: Found, may: Sequence[Sequence[Answer]]) -> Iterator[Change]:
    for k in sorted(range(len(may)), key=lambda k: found.earned[k]):
        yield from (((k, answer),) for answer in may[k] if answer != found.answers[k])


def _twos(found: Found, may: Sequence[Sequence[Answer]]) -> Iterator[Change]:
    """Those next to each other first: they are in each other's way."""
    pairs = sorted(combinations(range(len(may)), 2), key=lambda pair: pair[1] - pair[0])
    for a, b in pairs:
        yield from (((a, x), (b, y)) for x in may[a] for y in may[b])
