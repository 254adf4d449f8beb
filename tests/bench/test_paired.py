from __future__ import annotations

import random

import pytest

from diffusion_edge.bench import paired


def test_a_difference_is_of_pairs() -> None:
    """What makes an arrival hard for both arms cancels."""
    rng = random.Random(1)
    hard = [float(rng.random() < 0.3) for _ in range(400)]
    ours = [1.0 - each for each in hard]
    theirs = [one - (i % 20 == 0) * one for i, one in enumerate(ours)]
    low, high = paired.difference(ours, theirs) or (0.0, 0.0)
    share = sum(a - b for a, b in zip(ours, theirs, strict=True)) / 400
    assert low < share < high
    assert high - low < 0.03
    assert paired.difference(ours, ours) == (0.0, 0.0)


def test_neighbours_that_fail_together_count_as_one() -> None:
    """Twenty arrivals that queue behind each other are no twenty independent ones."""
    at_once = [float(i // 20 % 4 == 0) for i in range(400)]
    spread = [float(i % 4 == 0) for i in range(400)]
    nothing = [0.0] * 400
    together = paired.difference(at_once, nothing) or (0.0, 0.0)
    apart = paired.difference(spread, nothing) or (0.0, 0.0)
    assert together[1] - together[0] > 0.3
    assert apart[1] - apart[0] < 0.05


def test_a_ratio_of_means_leaves_out_what_was_not_answered() -> None:
    ours = [1.0, None] * 100
    theirs = [2.0, 2.0] * 100
    assert paired.ratio_of_means(ours, theirs) == (pytest.approx(0.5), pytest.approx(0.5))


def test_too_few_arrivals_have_no_interval() -> None:
    assert paired.difference([1.0] * 39, [0.0] * 39) is None
    assert paired.difference([1.0] * 40, [0.0] * 40) == (1.0, 1.0)
