"""What is told of plans that were not taken, against what is chosen when that comes true."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diffusion_edge.request import ImageRequest
from diffusion_edge.routing.policies import policy, rule
from diffusion_edge.routing.why import Alternative, Why, why
from diffusion_edge.view import View

from .views import MODEL, request, stage, symmetric, view


def three(**kw: float) -> View:
    return view(stage("phone", 0.4, **kw), stage("tower", 0.2, **kw), stage("hall", 0.05, **kw))


def asked_why(asked: ImageRequest, seen: View, name: str = "elastic") -> Why | None:
    considered = rule(name).considered
    assert considered is not None
    return why(considered(asked, seen, symmetric()), by_price=name == "elastic")


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
