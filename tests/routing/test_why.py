"""What is told of plans that were not taken, against what is chosen when that comes true."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.policies import policy, rule
from diffusion_edge.routing.why import Alternative, Why
from diffusion_edge.view import Held, StageStatus, View

from .views import CELLS, MODEL, request, stage, symmetric, view


def three(**kw: float) -> View:
    return view(stage("phone", 0.4, **kw), stage("tower", 0.2, **kw), stage("hall", 0.05, **kw))


def asked_why(asked: ImageRequest, seen: View, name: str = "elastic") -> Why | None:
    return rule(name).why(asked, seen, symmetric())


def told(asked: ImageRequest, seen: View, name: str = "elastic") -> Why:
    found = asked_why(asked, seen, name)
    assert found is not None
    return found


def kind_of(asked: ImageRequest, seen: View, name: str = "elastic") -> str:
    spans = policy(name)(asked, seen, symmetric()).plan.spans
    tiers = [MODEL[span.stage] for span in spans]
    return f"{tiers[0]} alone" if len(tiers) == 1 else " then ".join(tiers)


def by_kind(found: Why) -> dict[str, Alternative]:
    return {each.kind: each for each in found.alternatives}


def test_every_kind_but_the_chosen_one_s_is_told_or_counted() -> None:
    """Three stages: three alone, six orders of two, six of three."""
    asked = request(deadline_s=5.0, quality_floor=0.6)
    found = told(asked, three())
    assert found.kind == kind_of(asked, three())
    kinds = {each.kind for each in found.alternatives}
    assert found.kind not in kinds
    assert len(kinds) + found.left_out == 14
    assert len(kinds) == 12
    assert found.plans > 100


def test_how_far_each_is_from_being_taken() -> None:
    """Premises: idle stages; all steps on the phone take 8 s and reach 0.4, on the tower 4 s and
    0.7, in the hall 1 s and 1."""
    asked = request(deadline_s=3.0, quality_floor=0.75)
    choice = policy("elastic")(asked, three(), symmetric())
    others = by_kind(told(asked, three()))
    phone, hall = others["device alone"], others["cloud alone"]
    assert (phone.late_s, phone.short) == (pytest.approx(5.0), pytest.approx(0.35))
    assert phone.not_taken == "below the floor by 0.35, too late by 5.00 s"
    assert phone.change is None
    assert (hall.late_s, hall.short, hall.cost) == (0, 0, pytest.approx(4.0))
    assert hall.dearer == pytest.approx(4.0 - choice.cost)
    assert hall.not_taken == f"dearer by {hall.dearer:.3g}"


@pytest.mark.parametrize("floor", [0.6, 0.75, 0.9])
@pytest.mark.parametrize("deadline_s", [1.5, 3.0, 5.0])
def test_with_the_change_its_kind_comes_before_the_chosen_plan(
    deadline_s: float, floor: float
) -> None:
    """Premises: no other kinds than these two. Just short of the change nothing is different."""
    asked = request(deadline_s=deadline_s, quality_floor=floor)
    seen = three()
    found, tried = told(asked, seen), set()
    price = policy("elastic")(asked, seen, symmetric()).price
    for each in found.alternatives:
        change = each.change
        if change is None:
            continue
        tried.add(change.what)
        if change.what == "quality_floor":
            lower = replace(asked, quality_floor=change.to)
            best = policy("elastic")(lower, seen, symmetric())
            assert (best.price, best.quality) <= (price, floor)
        elif change.what == "deadline_s":
            best = policy("elastic")(replace(asked, deadline_s=change.to), seen, symmetric())
            assert best.price <= price
            sooner = replace(asked, deadline_s=change.to * 0.999)
            assert kind_of(sooner, seen) != each.kind or deadline_s > change.to * 0.999
        elif change.what == "price_per_s":
            assert change.tier is not None
            prices = {**seen.price_per_s, change.tier: change.to}
            again = replace(seen, price_per_s=prices)
            plans = {x.kind: x for x in told(asked, again).alternatives}
            dearer = plans[each.kind].dearer if each.kind in plans else 0.0
            assert dearer == pytest.approx(0.0, abs=1e-6) or dearer < each.dearer
    assert tried


def test_where_nothing_is_in_time_others_are_told_as_later() -> None:
    asked = request(deadline_s=0.5, quality_floor=0.6)
    found = told(asked, three())
    assert found.kind == "cloud alone"
    edge = by_kind(found)["edge alone"]
    assert edge.not_taken == "done 3.00 s later"
    assert edge.slower_s == pytest.approx(3.0)
    assert edge.change is not None
    assert (edge.change.what, edge.change.to) == ("predicted_s", pytest.approx(1.0))


def test_earliest_is_told_by_its_own_rule() -> None:
    asked = request(deadline_s=60.0, quality_floor=0.6)
    found = told(asked, three(), "earliest")
    assert found.kind == kind_of(asked, three(), "earliest") == "cloud alone"
    assert by_kind(found)["edge alone"].not_taken == "done 3.00 s later"


def test_nothing_above_the_floor_nothing_to_tell() -> None:
    asked = request(quality_floor=0.9)
    seen = view(stage("tower", 0.2))
    assert asked_why(asked, seen) is None


# ---------------------------------------------------------------------------- what is late


def stated(name: str, step_s: float, *held: Held) -> StageStatus:
    """Its seconds are stated: due times order its work."""
    return replace(stage(name, step_s), held=held, queued=len(held), emulated=True)


def promised(steps: int, latest_s: float) -> Held:
    return Held("other", 0, steps, 1, CELLS, 9.0, False, False, latest_s=latest_s)


def test_a_late_choice_is_explained_by_what_it_was_chosen_from() -> None:
    """Premises: due by its deadline it would go first in the hall, which takes a second; it cannot
    be in time, so it is due last, behind 3 s of others there, and is done first on the tower."""
    asked = request(deadline_s=0.5, quality_floor=0.6)
    seen = view(stated("tower", 0.1), stated("hall", 0.05, promised(60, 9.5)), delay_s=99.0)
    assert kind_of(asked, seen) == "edge alone"
    found = told(asked, seen)
    assert found.kind == "edge alone"
    hall = by_kind(found)["cloud alone"]
    assert hall.predicted_s == pytest.approx(4.0)
    assert hall.not_taken == "done 2.00 s later"
    assert told(asked, seen, "earliest").kind == kind_of(asked, seen, "earliest") == "cloud alone"


def test_what_would_make_others_late_says_so() -> None:
    """Premises: those in the hall have half a second to spare, and it is due before them."""
    asked = request(deadline_s=6.0, quality_floor=0.6)
    seen = view(stated("tower", 0.2), stated("hall", 0.05, promised(60, 3.5)), delay_s=99.0)
    found = told(asked, seen)
    assert found.kind == kind_of(asked, seen) == "edge alone"
    hall = by_kind(found)["cloud alone"]
    assert hall.late_s == 0
    assert hall.not_taken.startswith("makes others late who were promised to be in time")
    assert hall.change is None or hall.change.what != "price_per_s"


def test_lateness_is_told_by_what_is_learned() -> None:
    """Premises: 3 s on the tower, 1 s in the hall, which is dearer; requests take twice that."""
    asked = request(deadline_s=5.0, quality_floor=0.6)
    both = view(stage("tower", 0.15), stage("hall", 0.05), delay_s=99.0)
    assert told(asked, both).kind == "edge alone"
    found = told(asked, replace(both, slip=2.0))
    assert found.kind == "cloud alone"
    tower = by_kind(found)["edge alone"]
    assert (tower.predicted_s, tower.late_s) == (pytest.approx(3.0), pytest.approx(1.0))
    assert tower.change is not None
    assert (tower.change.what, tower.change.to) == ("deadline_s", pytest.approx(6.0))
