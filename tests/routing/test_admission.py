"""What happens when there is more work than can be in time: on views by hand, and on a virtual
clock (`clock`)."""

from dataclasses import replace
from math import inf
from typing import Any

import pytest

from diffusion_edge.errors import CannotBeInTime
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import elastic, harm
from diffusion_edge.routing.finish import Ask, Forecasts, of_plan
from diffusion_edge.routing.harm import harmless
from diffusion_edge.routing.policies import policy
from diffusion_edge.view import Choice, Held, StageStatus, View

from .clock import Fate, live
from .views import CELLS, request, stage, symmetric, view

BEST_IN_TIME = 8
"""Of a burst of 30, by `python -m tests.routing.offline in-time 30`."""


def chosen(asked: ImageRequest, seen: View) -> Choice:
    return policy(asked.policy)(asked, seen, symmetric())


def held(steps: int, *, latest_s: float = inf, due_s: float = 1.0) -> Held:
    return Held("other", 0, steps, 1, CELLS, due_s, False, False, latest_s=latest_s)


def busy(name: str, step_s: float, *images: Held) -> StageStatus:
    """Its seconds are stated: else who came first would go first."""
    return replace(stage(name, step_s), held=images, queued=len(images), emulated=True)


# ---------------------------------------------------------------------------- nobody else is late


def test_a_stage_takes_as_many_steps_as_leave_the_others_in_time() -> None:
    """Premises: ten steps of 0.1 s are to be done by 2.05 s, and the request is due before them."""
    status = busy("tower", 0.1, held(10, latest_s=2.05, due_s=9.0))
    known = harmless(status, Ask(CELLS, 1, 20, due_s=2.0))
    assert known.most(0) == 10
    after = harmless(status, Ask(CELLS, 1, 20, due_s=99.0))  # due after them it only waits
    assert after.most(0) == 20


def test_who_is_late_in_any_case_does_not_count_unless_it_was_promised() -> None:
    # what is promised leaves no later than it would, until that moment is past
    for latest_s, most in ((inf, 20), (0.5, 0), (-0.1, 20)):
        status = busy("tower", 0.1, held(10, latest_s=latest_s, due_s=9.0))
        assert harmless(status, Ask(CELLS, 1, 20, due_s=2.0)).most(0) == most


def test_who_is_late_goes_by_what_is_learned_of_forecasts() -> None:
    """Premises: ten steps of 0.1 s are to be done by 4 s, in half of which they are expected to be.
    The report is a second old, and what is left since then takes twice its forecast."""
    status = busy("tower", 0.1, held(10, latest_s=4.05, due_s=9.0))
    assert harmless(status, Ask(CELLS, 1, 40, due_s=2.0)).most(0) == 30
    assert harmless(status, Ask(CELLS, 1, 40, due_s=2.0), slip=2.0).most(0) == 10
    old = Ask(CELLS, 1, 40, due_s=2.0, age_s=0.5)  # five steps are done
    assert harmless(status, old, slip=2.0).most(0) == 12


def test_a_request_goes_where_nobody_is_late_for_it() -> None:
    """Premises: it is due before what the free stage has promised, which has nothing to spare."""
    asked = request(deadline_s=6.0, quality_floor=0.5)
    free = {"device": 0.0, "edge": 0.0, "cloud": 4.0}
    for latest_s, stages in ((99.0, {"tower"}), (1.0, {"hall"})):
        tower = busy("tower", 0.1, held(10, latest_s=latest_s, due_s=20.0))
        seen = replace(view(tower, stage("hall", 0.1), prices=free), links={})
        assert {span.stage for span in chosen(asked, seen).plan.spans} == stages


def test_a_plan_is_in_time_if_its_hops_are_as_slow_as_one_in_ten() -> None:
    """Premises: what is free takes longer than the deadline, what is dear alone is in time, and so
    are both; of what takes four times as long on the way less is done before it."""
    free = {"device": 0.0, "edge": 0.0, "cloud": 4.0}
    seen = view(stage("tower", 0.2), stage("hall", 0.05), delay_s=0.5, prices=free)
    asked = request(deadline_s=3.5, quality_floor=0.5)
    usual = chosen(asked, seen)
    assert len(usual.plan.spans) == 2
    assert usual.slow_s is None
    slow = replace(seen, links={pair: replace(link, slow=4.0) for pair, link in seen.links.items()})
    sure = chosen(asked, slow)
    assert sure.counted_s <= 3.5
    assert sure.plan != usual.plan
    assert sure.predicted_s == pytest.approx(of_plan(sure.plan, asked, seen))
    assert sure.counted_s == pytest.approx(of_plan(sure.plan, asked, slow.slowed()))
    assert of_plan(usual.plan, asked, slow.slowed()) > 3.5


def test_who_would_be_late_is_found_out_where_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three stages have promised something; only the plan that is taken and the second one are
    asked."""
    asked, most = [], harm._most

    def counted(of: Forecasts, arrives_s: float, *others: Any) -> int:
        asked.append(arrives_s)
        return most(of, arrives_s, *others)

    monkeypatch.setattr(harm, "_most", counted)
    busy_ones = [
        busy(name, 0.1, held(4, latest_s=99.0, due_s=9.0)) for name in ("phone", "tower", "hall")
    ]
    chosen(request(deadline_s=9.0, quality_floor=0.0), replace(view(*busy_ones), links={}))
    assert asked == [0.0, 0.0]


# ---------------------------------------------------------------------------- refused, or late


def crowded(queue_s: float = 5.0) -> View:
    """One stage that reaches the floor, where 20 steps take a second."""
    return replace(view(stage("phone", 0.4), stage("hall", 0.05, queue_s=queue_s)), links={})


def test_what_cannot_be_in_time_is_refused_with_the_moment_when_it_could_be() -> None:
    asked = request(deadline_s=2.0, late="refuse")
    with pytest.raises(CannotBeInTime, match=r"misses the deadline by 4\.00 s") as caught:
        chosen(asked, crowded())
    told = caught.value.retry_after_s
    assert told == pytest.approx(4.0, abs=5.0 / 100)
    later = chosen(asked, crowded(5.0 - told))
    assert later.predicted_s <= 2.0
    with pytest.raises(CannotBeInTime):
        chosen(asked, crowded(5.0 - told + 0.1))


@pytest.mark.parametrize("name", ["elastic", "cloud-only"])
def test_requests_that_take_twice_their_forecast_are_late_twice_as_soon(name: str) -> None:
    """Premises: one stage reaches the floor, in a second and a half with what it has to do."""
    asked = request(deadline_s=2.1, late="refuse", policy=name)
    assert chosen(asked, crowded(0.5)).predicted_s == pytest.approx(1.5)
    with pytest.raises(CannotBeInTime, match=r"by 0\.90 s") as caught:
        elastic_or_refused(asked, replace(crowded(0.5), slip=2.0))
    assert caught.value.retry_after_s == pytest.approx(0.9, abs=0.02)
    early = replace(crowded(0.05), slip=2.0)
    assert elastic_or_refused(asked, early).predicted_s == pytest.approx(1.05)


def test_it_says_how_good_it_could_be_in_time() -> None:
    both = view(stage("tower", 0.05), stage("hall", 0.05, queue_s=5.0))
    with pytest.raises(CannotBeInTime, match=r"within the deadline the best reaches 0\.7"):
        chosen(request(deadline_s=1.0, late="refuse"), both)


@pytest.mark.parametrize("name", ["elastic", "earliest", "in-turn", "cloud-only", "fixed"])
def test_what_could_not_be_in_time_even_on_idle_stages_is_told_no_moment(name: str) -> None:
    plan = Plan.parse("hall:20") if name == "fixed" else None
    asked = request(deadline_s=0.5, late="refuse", policy=name, plan=plan)
    with pytest.raises(CannotBeInTime) as caught:
        elastic_or_refused(asked, crowded())
    assert caught.value.retry_after_s is None


@pytest.mark.parametrize("name", ["earliest", "in-turn", "cloud-only"])
def test_other_policies_refuse_by_their_own_plan(name: str) -> None:
    asked = request(deadline_s=2.0, late="refuse", policy=name)
    with pytest.raises(CannotBeInTime, match=r"misses the deadline of 2 s by 4\.00 s") as caught:
        elastic_or_refused(asked, crowded())
    assert caught.value.retry_after_s == pytest.approx(4.0, abs=5.0 / 100)
    assert elastic_or_refused(replace(asked, late="serve"), crowded()).predicted_s > 2.0


def elastic_or_refused(asked: ImageRequest, seen: View) -> Choice:
    """As the service has it."""
    from diffusion_edge.routing.late import refuse

    choice = chosen(asked, seen)
    refuse(asked, choice, seen)
    return choice


def test_a_late_request_is_begun_where_nothing_is_to_be_in_time() -> None:
    asked = request(deadline_s=0.5)
    in_time = busy("hall", 0.05, held(2, latest_s=9.0))
    assert elastic.begun(asked, view(stage("phone", 0.4), in_time), symmetric()) is None
    others = busy("hall", 0.05, held(2))
    late = elastic.begun(asked, view(stage("phone", 0.4), others), symmetric())
    assert late is not None
    assert (str(late.plan), late.late) == ("hall:20", True)
    full = busy("hall", 0.05, held(2), held(2))
    assert elastic.begun(asked, view(stage("phone", 0.4), full), symmetric()) is None


def test_a_late_request_takes_a_turn_after_two_deadlines_if_that_makes_nobody_late() -> None:
    asked = request(deadline_s=0.5)

    def after(waited_s: float, *images: Held, waiting: int = 1) -> Choice | None:
        return elastic.begun(
            asked, view(busy("hall", 0.05, *images)), symmetric(), waited_s, waiting
        )

    in_time = held(2, latest_s=9.0)
    assert after(0.9, in_time) is None
    turn = after(1.1, in_time)
    assert turn is not None
    assert (str(turn.plan), turn.late) == ("hall:20", True)
    assert after(1.1, held(2, latest_s=0.12, due_s=99.0)) is None
    assert after(1.1, in_time, held(2)) is None  # another one takes its turn
    assert after(1.1, in_time, waiting=elastic.FEW + 1) is None


# ---------------------------------------------------------------------------- bursts and overload


def in_time(fates: list[Fate]) -> int:
    return sum(fate.in_time for fate in fates)


def broken(fates: list[Fate]) -> list[Fate]:
    """Promised to be in time, and were not."""
    return [f for f in fates if f.choice and not f.choice.late and not f.in_time]


def test_when_it_could_be_is_worked_out_once_and_only_when_somebody_asks() -> None:
    asked: list[None] = []

    def soonest() -> float:
        asked.append(None)
        return 2.5

    refused = CannotBeInTime("too much to do", soonest=soonest)
    assert not asked
    assert (refused.retry_after_s, refused.retry_after_s) == (2.5, 2.5)
    assert len(asked) == 1


def test_of_thirty_at_once_as_many_are_in_time_as_could_be_and_all_others_are_answered() -> None:
    at = live()
    served = at.play("elastic", at.burst(30))
    assert in_time(served) >= 0.9 * BEST_IN_TIME
    assert not broken(served)
    assert all(fate.done_s < inf for fate in served)
    refused = at.play("elastic", at.burst(30, late="refuse"))
    assert in_time(refused) >= 0.9 * BEST_IN_TIME
    assert all(fate.in_time or isinstance(fate.refused, CannotBeInTime) for fate in refused)


def test_twice_what_can_be_in_time_leaves_in_time_what_can_be() -> None:
    """`earliest` has far fewer, as each takes from those before it."""
    at, late, many = live(), [], []
    for seed in (5, 6):
        arrivals = at.poisson(1.3, 40, seed=seed)
        late += at.play("earliest", arrivals)
        many += at.play("elastic", arrivals)
    assert in_time(many) > 1.4 * in_time(late)
    assert len(broken(many)) <= 1
    assert not any(fate.given_up for fate in many)


def test_stages_that_are_slower_than_they_say_are_learned() -> None:
    """Premises: all take a tenth longer; the dumbest alternative is to go by the bare forecast."""
    at = live()
    arrivals = at.poisson(1.3, 60, seed=301, late="refuse")
    bare = at.play("elastic", arrivals, slip=lambda _: 1.0, pace=1.1)
    learned = at.play("elastic", arrivals, pace=1.1)
    assert in_time(learned) > in_time(bare)
    assert len(broken(learned)) < len(broken(bare)) / 2
