"""The bandit: what it may choose, and that it learns what is best, sooner than trying in turn."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from math import inf

import pytest

from diffusion_edge.errors import NoPlan, QueueFull
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import linucb
from diffusion_edge.routing.learning import NOTHING, learn, now, outcome
from diffusion_edge.routing.linucb import ARMS, Arm, Known, Learned
from diffusion_edge.routing.rule import Outcome
from diffusion_edge.view import Choice, View

from .views import MODEL, request, stage, symmetric, view

QUALITY = symmetric()


def three(**kw: float) -> View:
    return view(stage("phone", 0.4), stage("tower", 0.2), stage("hall", 0.05), **kw)


def told(choice: Choice, asked: ImageRequest, seen: View, reward: float) -> Outcome:
    return Outcome(asked, seen, choice, 0.0, 1.0, reward)


def chosen(learned: Learned, asked: ImageRequest, seen: View) -> Choice:
    return linucb.choose(learned, asked, seen, QUALITY)


def plan_of(arm: Arm, steps: int) -> Plan:
    tiers, share = arm
    counts = (steps,) if len(tiers) == 1 else (round(share * steps), steps - round(share * steps))
    stages = {tier: name for name, tier in MODEL.items()}
    return Plan.of(tuple((stages[t], count) for t, count in zip(tiers, counts, strict=True)))


# ---------------------------------------------------------------------------- what may be chosen


def test_every_plan_is_of_the_arm_that_made_it() -> None:
    seen = three()
    for arm in ARMS:
        assert linucb.arm_of(plan_of(arm, 20), seen) == arm
    assert len(ARMS) == 3 + 6 * 3


def test_arms_below_the_floor_are_left_out_if_any_is_above_it() -> None:
    """Premises: the device reaches 0.4, the edge 0.7, the cloud 1; mixes what their shares say."""
    learned: Learned = {}
    asked = request(quality_floor=0.84)
    for _ in range(len(ARMS) * 3):
        choice = chosen(learned, asked, three())
        assert choice.quality_bound >= 0.84
        learned = linucb.observe(learned, told(choice, asked, three(), 0.0))
    assert {arm for arm in learned if len(arm[0]) == 1} == {(("cloud",), 1.0)}
    assert chosen({}, request(quality_floor=1.0), view(stage("phone", 0.4))).quality == 0.4


def test_what_there_is_no_link_or_no_room_for() -> None:
    apart = replace(three(), links={})
    learned: Learned = {}
    for _ in range(9):
        choice = chosen(learned, request(quality_floor=0.0), apart)
        learned = linucb.observe(learned, told(choice, request(), apart, 0.0))
        assert len(choice.plan.spans) == 1
    with pytest.raises(QueueFull):
        chosen({}, request(), view(replace(stage("phone", 0.4), queued=32)))
    with pytest.raises(NoPlan):
        chosen({}, request(), view())


def test_the_context_says_what_it_should() -> None:
    """Premises: alone the hall takes 1 s, a packet 0.1 s the shorter way; the tower has 2 s to do;
    the deadline is 10 s."""
    asked = request(prompt="a red circle", deadline_s=10.0, quality_floor=0.8)
    seen = view(
        stage("phone", 0.4), stage("tower", 0.2, queue_s=2.0), stage("hall", 0.05), delay_s=0.1
    )
    x = linucb.context(asked, seen)
    assert x == pytest.approx([1.0, 3 / 20, 0.8, 0.1, 0.01, 0.0, 0.2, 0.0], abs=1e-3)
    short = linucb.context(replace(asked, deadline_s=0.01), view(stage("hall", 0.05)))
    assert short[3:] == pytest.approx([1.0, 0.0, 1.0, 1.0, 0.0])


# ---------------------------------------------------------------------------- what is learned


def test_the_regression_is_that_of_all_that_was_seen() -> None:
    """A and its inverse by their definition."""
    draw, known = random.Random(1), Known()
    seen = [([draw.random() for _ in range(linucb.FEATURES)], draw.random()) for _ in range(30)]
    a, total = Known().inverse, Known().total
    for x, reward in seen:
        x = linucb.np.array(x)
        known = known.with_one(x, reward)
        a, total = a + linucb.np.outer(x, x), total + reward * x
    assert known.inverse @ a == pytest.approx(Known().inverse, abs=1e-9)
    assert known.total == pytest.approx(total)


def regret(choose: Callable[[ImageRequest, View, int], Choice], rounds: int) -> list[float]:
    """Of every round, on a toy: the reward of an arm goes with the floor that is asked for, and for
    low floors another arm is the best one than for high floors."""
    draw, lost = random.Random(3), []
    for k in range(rounds):
        low = draw.random() < 0.5
        asked = request(quality_floor=0.1 if low else 0.9, request_id=str(k))
        earned = earn(choose(asked, three(), k), low)
        lost.append(1.0 - earned)
    return lost


BEST: dict[bool, Arm] = {True: (("device",), 1.0), False: (("cloud", "edge"), 0.75)}


def earn(choice: Choice, low: bool) -> float:
    return 1.0 if linucb.arm_of(choice.plan, three()) == BEST[low] else 0.2


def test_it_learns_the_best_arm_of_each_context_and_its_regret_flattens() -> None:
    learned: Learned = {}

    def bandit(asked: ImageRequest, seen: View, _: int) -> Choice:
        nonlocal learned
        choice = chosen(learned, asked, seen)
        reward = earn(choice, asked.quality_floor < 0.5)
        learned = linucb.observe(learned, told(choice, asked, seen, reward))
        return choice

    def in_turn(asked: ImageRequest, seen: View, k: int) -> Choice:
        arm = ARMS[k % len(ARMS)]
        return replace(chosen({}, asked, seen), plan=plan_of(arm, asked.steps))

    lost, by_turns = regret(bandit, 420), regret(in_turn, 420)
    assert sum(lost[-140:]) < 0.1 * sum(by_turns[-140:])
    assert sum(lost[-140:]) < 0.25 * sum(lost[:140])
    assert sum(by_turns[-140:]) > 0.9 * sum(by_turns[:140])


def test_what_became_of_a_request_teaches_its_policy_and_no_other() -> None:
    asked, seen = request(policy="linucb", quality_floor=0.0), three()
    choice = now("linucb", NOTHING).choose(asked, seen, QUALITY)
    known = learn(NOTHING, outcome(asked, seen, choice, came_s=0.0, seconds=1.0))
    assert set(known) == {"linucb"}
    again = now("linucb", known).choose(asked, seen, QUALITY)
    assert again.plan != choice.plan  # others are not tried yet, and promise more
    assert now("linucb", NOTHING).choose(asked, seen, QUALITY).plan == choice.plan
    other = replace(asked, policy="elastic")
    assert learn(known, outcome(other, seen, choice, came_s=0.0, seconds=1.0)) is known


def test_the_reward_of_an_outcome() -> None:
    """Premises: in the cloud all steps cost 4, on the device nothing; deadline 10 s."""
    asked, seen = request(quality_floor=0.9, deadline_s=10.0), three()

    def earned(plan: str, seconds: float) -> float:
        fixed = now("fixed", NOTHING).choose(replace(asked, plan=Plan.parse(plan)), seen, QUALITY)
        return outcome(asked, seen, fixed, 0.0, seconds).reward

    assert earned("hall:20", 1.0) == pytest.approx(0.5)
    assert earned("hall:20", 10.5) == pytest.approx(-0.5)
    assert earned("hall:20", inf) == pytest.approx(-0.5)
    assert earned("phone:20", 8.0) == 0.0  # in time, but below the floor
    assert earned("phone:2,hall:18", 2.0) == pytest.approx(1.0 - 0.45)
