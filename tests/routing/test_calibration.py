"""How right predictions are said to be: quantiles that hold, also when the errors drift."""

from __future__ import annotations

import random
from dataclasses import replace
from math import exp, inf, log

import pytest

from diffusion_edge.plan import Plan
from diffusion_edge.routing.calibration import LEAST, RESERVE, WINDOW, Calibration
from diffusion_edge.view import Choice


def served(known: Calibration, *ratios: float, predicted_s: float = 2.0) -> Calibration:
    """After requests that took so many times their predicted seconds, each told the quantile."""
    for ratio in ratios:
        known = known.observe(known.of(told(predicted_s)), ratio * predicted_s, inf)
    return known


def told(predicted_s: float) -> Choice:
    return Choice(Plan.of((("hall", 20),)), predicted_s, 1.0, 1.0, "")


def slowly(known: Calibration, predicted_s: float) -> float | None:
    return known.of(told(predicted_s)).predicted_90_s


def test_nothing_is_told_before_nine_requests() -> None:
    known = served(Calibration(), *[1.0] * (LEAST - 1))
    assert (slowly(known, 2.0), known.median_error, known.below_share) == (None, None, None)
    known = served(known, 1.0)
    assert (slowly(known, 2.0), known.median_error, known.median_error_50) == (2.0, 0.0, None)
    assert (known.served, known.told) == (LEAST, 0)


def test_the_median_error_is_that_of_the_last_requests_high_or_low() -> None:
    known = served(Calibration(), *[3.0] * 50, *[0.8, 1.1, 1.4] * (WINDOW // 3 + 1))
    assert known.median_error == pytest.approx(0.2)
    assert len(known.misses) == WINDOW
    assert known.served == 50 + 3 * (WINDOW // 3 + 1)


def test_the_quantile_goes_with_the_predicted_seconds() -> None:
    ratios = [1.0 + 0.01 * k for k in range(100)]
    random.Random(1).shuffle(ratios)
    known = served(Calibration(), *ratios)
    told_s = slowly(known, 1.0)
    assert told_s == pytest.approx(1.9, abs=0.05)
    assert slowly(known, 5.0) == pytest.approx(5 * told_s)


def test_what_is_always_missed_alike_is_corrected() -> None:
    """As where those who come later take their part of a stage."""
    chance = random.Random(2)
    known = served(Calibration(), *[1.4 * exp(chance.gauss(0.0, 0.1)) for _ in range(300)])
    assert known.of(told(2.0)).predicted_50_s == pytest.approx(2.8, rel=0.05)
    assert (known.median_error or 0.0) > 0.35
    assert (known.median_error_50 or 1.0) < 0.1


@pytest.mark.parametrize("drifts", [False, True], ids=["alike", "drifting"])
def test_nine_in_ten_are_done_before_what_they_were_told(drifts: bool) -> None:
    chance, known = random.Random(3), Calibration()
    for number in range(1500):
        worse = 0.5 * number / 1500 if drifts else 0.0
        known = served(known, exp(chance.gauss(worse, 0.2)))
    assert known.below_share is not None
    assert 0.85 <= known.below_share <= 0.95


def test_a_jump_is_followed_better_than_by_the_plain_quantile_of_all_requests() -> None:
    """The dumbest alternative: what nine in ten requests stayed below so far."""
    chance, known = random.Random(5), Calibration()
    ratios = [exp(chance.gauss(0.0 if k < 500 else 0.4, 0.15)) for k in range(1000)]
    plain = 0
    for k, ratio in enumerate(ratios):
        known = served(known, ratio)
        if k >= LEAST:
            plain += ratio <= sorted(ratios[:k])[min(int(0.9 * k), k - 1)]
    assert known.below_share is not None
    assert abs(known.below_share - 0.9) < abs(plain / (1000 - LEAST) - 0.9)


def kept(known: Calibration, *seconds: float, deadline_s: float = 8.0) -> Calibration:
    """After requests of 2 s that were to be done by the deadline."""
    for actual_s in seconds:
        known = known.observe(known.of(told(2.0)), actual_s, deadline_s)
    return known


def test_who_was_let_wait_within_the_deadline_says_nothing_of_the_next_one() -> None:
    known = kept(Calibration(), *[6.0] * LEAST)
    assert known.slow == pytest.approx(3.0)
    assert known.slip == pytest.approx(RESERVE)
    assert kept(Calibration(), *[2.1] * LEAST).slip == pytest.approx(1.05)


def test_who_was_late_says_how_far_forecasts_are_off() -> None:
    known = kept(Calibration(), *[6.0] * 30, *[9.0] * 10)
    assert known.slip == pytest.approx(4.5)
    assert kept(known, *[6.0] * WINDOW).slip == pytest.approx(RESERVE)
    given_up = Calibration()
    for _ in range(LEAST):
        given_up = given_up.given_up(told(2.0), 9.0)
    assert (given_up.slip, given_up.served) == (pytest.approx(4.5), 0)


def test_it_goes_by_the_forecast_with_slow_hops_where_there_is_one() -> None:
    known = Calibration()
    for _ in range(LEAST):
        known = known.observe(replace(told(2.0), slow_s=4.0), 6.0, 5.0)
    assert (known.slip, known.slow) == (pytest.approx(1.5), pytest.approx(3.0))


@pytest.mark.parametrize(("predicted_s", "actual_s"), [(0.0, 1.0), (1.0, 0.0)])
def test_no_time_at_all_teaches_nothing(predicted_s: float, actual_s: float) -> None:
    assert Calibration().observe(told(predicted_s), actual_s, inf) == Calibration()


def test_the_level_is_bound() -> None:
    known = served(Calibration(), *[1.0] * LEAST)
    for _ in range(400):
        choice = replace(told(1.0), predicted_50_s=1.0, predicted_90_s=1.0)
        known = known.observe(choice, 9.0, inf)
    assert known.level == 0.995
    assert log(known.slow or 0.0) == pytest.approx(log(9.0))
