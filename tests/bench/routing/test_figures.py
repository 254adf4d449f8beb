"""What runs come to, and when a row does not count."""

from __future__ import annotations

import pytest

from diffusion_edge.bench.answered import Answer
from diffusion_edge.bench.routing import figures
from diffusion_edge.bench.routing.live import Wanted
from diffusion_edge.bench.routing.parts import Capacity, Found
from diffusion_edge.bench.routing.records import Ran, overrun_share, together


def ran(*answers: Answer, rate: float = 1.0, arm: str = "elastic", overruns: int = 0) -> Ran:
    parts = {"phone": 0, "hall": 1000, "tower": 500}
    return Ran(arm, rate, answers, parts, {"phone": 0, "hall": 1, "tower": overruns}, 0.1, "2026")


def made(
    latency_s: float,
    predicted_s: float = 1.0,
    at_most_s: float | None = None,
    cost: float = 1.0,
    learned_s: float | None = None,
) -> Answer:
    fields = {"seconds": latency_s, "predicted_s": predicted_s, "cost": cost}
    fields |= {} if learned_s is None else {"predicted_50_s": learned_s}
    in_time = latency_s <= 4.0
    return Answer(0.0, latency_s, "ok", "hall:20", in_time, 20, predicted_90_s=at_most_s, **fields)


REFUSED = Answer(0.0, 0.1, "queue_full", retry_after_s=2.0)
SILENT = Answer(0.0, 0.1, "queue_full")
LOST = Answer(0.0, 9.0, "deadline_exceeded")


def found(**parts: object) -> Found:
    capacity = Capacity(1.0, 1.05, 1.0, (ran(made(1.0)),))
    return Found(Wanted(20, 4.0, 0.9), {"hall": 2.0}, capacity, **parts)  # type: ignore[arg-type]  # mixed


def reached(goals: list[figures.Goal], what: str) -> str:
    (goal,) = [each for each in goals if each.what.startswith(what)]
    return goal.reached


def test_what_was_not_measured_says_so() -> None:
    goals = list(figures.goals(found()))
    assert {goal.reached for goal in goals} == {"not measured"}
    assert len(goals) == 8


def test_arms_are_compared_on_the_same_arrivals() -> None:
    good, late = made(1.0, cost=1.0), made(9.0, cost=1.0)
    ours = ran(*[good] * 396, *[late] * 4)
    earliest = ran(*[made(1.0, cost=2.0)] * 400, arm="earliest")
    in_turn = ran(*[good] * 200, *[late] * 200, arm="in-turn")
    goals = list(figures.goals(found(steady=(ours, earliest, in_turn))))
    assert reached(goals, "in time at 0.75 C") == "reached, the aim too"
    assert reached(goals, "cost of a request") == "reached, the aim too"
    assert reached(goals, "no fewer") == "reached, the aim too"
    worse = list(figures.goals(found(steady=(in_turn, earliest, ours))))
    assert reached(worse, "no fewer") == "not reached"
    assert "`earliest`" in next(goal.shown for goal in worse if "no fewer" in goal.what)


def test_a_row_whose_stages_overran_is_void() -> None:
    good = ran(*[made(1.0)] * 40, overruns=6)
    assert overrun_share(good) == pytest.approx(0.012)
    goals = list(figures.goals(found(steady=(good, good))))
    assert reached(goals, "in time at 0.75 C") == "void: 1.2 % overran"
    assert figures.void([ran(made(1.0), overruns=5)]) is None


def test_goodput_is_of_what_is_in_time() -> None:
    steady = ran(*[made(1.0)] * 10, rate=0.75)
    over = ran(*[made(1.0)] * 5, *[LOST] * 5, rate=2.0)
    some = ran(*[made(1.0)] * 5, *[made(9.0)] * 5, rate=1.2)
    assert figures.goodput(over) == pytest.approx(1.0)
    goals = list(figures.goals(found(steady=(steady,), overload=(some, over))))
    assert reached(goals, "goodput at 2 C") == "reached, the aim too"
    assert reached(goals, "goodput at 1.2 C") == "not reached"


def test_in_a_burst_the_others_get_what_they_asked_for() -> None:
    kept = [made(1.0)] * 3
    assert figures.otherwise(ran(*kept, made(9.0), LOST), refuse=False) == 1
    assert figures.otherwise(ran(*kept, REFUSED, SILENT, made(9.0)), refuse=True) == 2
    serve, refuse = ran(*kept, made(9.0)), ran(*kept, REFUSED)
    goals = list(figures.goals(found(bursts=(serve, refuse), burst=4, bound=3)))
    assert [goal.reached for goal in goals if "at once" in goal.what or "late" in goal.what] == [
        "reached, the aim too"
    ] * 4


def test_forecasts_are_held_against_actual_seconds() -> None:
    calm = ran(*[made(1.1, at_most_s=1.2)] * 9, made(1.3, at_most_s=1.2), rate=0.4)
    full = ran(*[made(9.0)] * 50, rate=0.99)
    goals = list(figures.goals(found(forecast=(calm, full))))
    assert figures.errors([calm])[0] == pytest.approx(0.1)
    assert reached(goals, "share of actual seconds") == "reached, the aim too"
    (error,) = [goal for goal in goals if "median error" in goal.what]
    assert error.value == pytest.approx(0.1)
    wide = ran(*[made(1.1, at_most_s=2.0)] * 10, rate=0.4)
    assert reached(list(figures.goals(found(forecast=(wide,)))), "share of actual") == "not reached"


def test_forecasts_are_judged_by_what_was_learned_where_anything_was() -> None:
    first = ran(*[made(1.4)] * 4, rate=0.4)
    then = ran(*[made(1.4, learned_s=1.25)] * 12, rate=0.6)
    assert figures.errors([first, then]) == pytest.approx([0.4] * 4 + [0.12] * 12)
    assert figures.errors([then], bare=True) == pytest.approx([0.4] * 12)
    (error,) = [g for g in figures.goals(found(forecast=(first, then))) if "median error" in g.what]
    assert error.value == pytest.approx(0.12)
    assert "75.0 % by `predicted_50_s`" in error.shown


def test_links_must_be_better_beyond_the_interval() -> None:
    good, bad = ran(*[made(1.0)] * 100), ran(*[made(1.0), made(9.0)] * 50)
    what = "in time with measured links"
    assert reached(list(figures.goals(found(links=(good, bad)))), what) == "reached, the aim too"
    assert reached(list(figures.goals(found(links=(good, good)))), what) == "not reached"


def test_rounds_are_put_together() -> None:
    both = together((ran(made(1.0), overruns=1), ran(LOST, overruns=2)))
    assert (len(both.answers), both.in_time) == (2, 0.5)
    assert both.overruns == {"phone": 0, "hall": 2, "tower": 3}
    assert Ran.read(both.entry()) == both
