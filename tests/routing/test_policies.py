"""Each test states its premises in the view, the table and the request, and asserts on the plan."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_edge.errors import InvalidPlan, InvalidRequest, NoPlan, QueueFull
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import cost, finish
from diffusion_edge.routing.elastic import CROWDING
from diffusion_edge.routing.forecast import ahead
from diffusion_edge.routing.losses import Model
from diffusion_edge.routing.policies import RULES, policy
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.view import Choice, Held, View

from .brute import bundles
from .views import CELLS, MODEL, late, request, row, stage, symmetric, table, view, with_model


def elastic(asked: ImageRequest, seen: View, quality: QualityTable | None = None) -> Choice:
    return policy("elastic")(asked, seen, quality or symmetric())


def steps_on(plan: Plan, name: str) -> int:
    return sum(span.steps for span in plan.spans if span.stage == name)


def three(cloud_queue_s: float = 0.0, **kw: float) -> View:
    """The hall runs the cloud's model and is the fastest and dearest, the phone the slowest."""
    return view(
        stage("phone", 0.4), stage("tower", 0.2), stage("hall", 0.05, queue_s=cloud_queue_s), **kw
    )


# ---------------------------------------------------------------------------- codecs


def by_step(seen: View) -> View:
    """int8 and small up to step 10, exact and large after it."""
    codecs = tuple("int8" if step <= 10 else "exact" for step in range(21))
    sizes = tuple(1_000 if codec == "int8" else 1_000_000 for codec in codecs)
    return replace(seen, codecs=codecs, packet_bytes=sizes)


def test_plans_carry_the_codec_of_each_hand_off_step() -> None:
    for text, codecs in (
        ("hall:6,tower:4,phone:10", ("int8", "int8")),
        ("hall:6,tower:5,phone:9", ("int8", "exact")),
    ):
        asked = request(plan=Plan.parse(text))
        assert policy("fixed")(asked, by_step(three()), symmetric()).plan.codecs == codecs
    choice = elastic(request(quality_floor=0.5, deadline_s=3.0), by_step(three()))
    for chosen in (choice.plan, choice.runner_up):
        assert chosen is not None
        steps = [span.start for span in chosen.spans[1:]]
        assert steps
        assert chosen.codecs == tuple("int8" if step <= 10 else "exact" for step in steps)


def test_a_hand_off_moves_to_where_the_packet_is_small() -> None:
    """Premises: a packet takes 1 s in full and 1 ms as int8; time is short; the edge costs
    nothing, is nearly as fast as the cloud, and can only come first."""
    prices = {"device": 0.0, "edge": 0.0, "cloud": 4.0}
    both = view(stage("tower", 0.06), stage("hall", 0.05), bytes_per_s=1e6, prices=prices)
    seen = replace(both, links={("tower", "hall"): both.links["tower", "hall"]})
    asked = request(quality_floor=0.75, deadline_s=1.145)
    small, large = ((size,) * 21 for size in (1_000, 1_000_000))
    assert str(elastic(asked, replace(seen, packet_bytes=small)).plan) == "tower:14,hall:6"
    assert str(elastic(asked, by_step(seen)).plan) == "tower:10,hall:10"
    assert str(elastic(asked, replace(seen, packet_bytes=large)).plan) == "hall:20"


# ---------------------------------------------------------------------------- the rule


def test_idle_system_and_fast_link_the_cloud_model_runs_longest() -> None:
    """Premises: the floor admits little of the smaller models, and cloud is not the slow one."""
    plan = elastic(request(quality_floor=0.95), three(), symmetric(edge=0.7)).plan
    assert steps_on(plan, "hall") > 20 / 2
    assert max(plan.spans, key=lambda span: span.steps).stage == "hall"


def test_a_tight_deadline_makes_the_cloud_run_all_even_with_a_low_floor() -> None:
    choice = elastic(request(deadline_s=1.0, quality_floor=0.5), three())
    assert str(choice.plan) == "hall:20"
    assert choice.reason.startswith("cheapest of the plans that meet the deadline of 1 s, of ")


def test_rising_cloud_load_hands_off_earlier_when_time_is_short() -> None:
    """Premises: no plan meets the deadline, so the fastest wins; the order does not matter to
    quality, so an edge that works while the cloud's queue drains is never worse."""
    cloud_steps = [
        steps_on(elastic(request(deadline_s=0.1, quality_floor=0.1), three(q)).plan, "hall")
        for q in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    ]
    assert cloud_steps == sorted(cloud_steps, reverse=True)
    assert cloud_steps[0] == 20
    assert cloud_steps[-1] == 0
    assert len(set(cloud_steps)) > 4  # by degrees, not at once


def test_rising_cloud_load_hands_off_earlier_where_prices_are_equal() -> None:
    """Premises: own hardware, so a second costs the same everywhere; the deadline can be met."""
    prices = {"device": 1.0, "edge": 1.0, "cloud": 1.0}
    cloud_steps = [
        steps_on(elastic(request(deadline_s=4.2, quality_floor=0.1), seen).plan, "hall")
        for q in (0.0, 1.0, 2.0, 3.0, 3.5, 3.7, 3.9, 4.19)
        for seen in [three(q, prices=prices)]
    ]
    assert cloud_steps == sorted(cloud_steps, reverse=True)
    assert (cloud_steps[0], cloud_steps[-1]) == (20, 0)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 8), min_size=2, max_size=6))
def test_more_cloud_load_never_means_more_cloud_steps_in_the_fastest_plan(
    queues: list[float],
) -> None:
    asked = request(deadline_s=0.01, quality_floor=0.1)
    cloud_steps = [steps_on(elastic(asked, three(q)).plan, "hall") for q in sorted(queues)]
    assert cloud_steps == sorted(cloud_steps, reverse=True)


def test_falling_link_rate_the_latent_stays_where_it_is() -> None:
    """Premises: the cloud has a queue, so that with a good link two stages share the work."""
    hops = []
    for rate in (1e9, 1e6, 1e5, 1e4, 1e3):
        asked = request(deadline_s=0.1, quality_floor=0.1)
        hops.append(len(elastic(asked, three(2.0, bytes_per_s=rate)).plan.codecs))
    assert hops == sorted(hops, reverse=True)
    assert hops[0] > 0
    assert hops[-1] == 0


def of_models(plan: Plan) -> Plan:
    """As the table knows it."""
    return Plan.of(tuple((MODEL[span.stage], span.steps) for span in plan.spans))


def price_of(plan: Plan, asked: ImageRequest, seen: View) -> float:
    """What the plan costs, and what its seconds are worth to those that come after it."""
    price = cost.of_plan(plan, asked, seen)
    for k, span in enumerate(plan.spans):
        status = seen.stages[span.stage]
        busy_s = 2 * status.encode_s + span.steps * status.step_s[CELLS][2]
        if k + 1 == len(plan.spans):
            busy_s += status.decode_s[CELLS]
        idle_s = max(ahead(status), default=0.0)
        worth = CROWDING * max(seen.price_per_s.values()) * (idle_s / asked.deadline_s) ** 2
        price += asked.images * busy_s * worth
    return price


@pytest.mark.parametrize(
    ("quality", "images"), [(symmetric(), 1), (late(), 2)], ids=["one image", "two images"]
)
def test_the_least_price_that_meets_deadline_and_floor_by_brute_force(
    quality: QualityTable, images: int
) -> None:
    seen = view(
        stage("phone", 0.4, queue_s=0.8, encode_s=0.1),
        stage("tower", 0.2, encode_s=0.05, decode_s=0.1),
        stage("hall", 0.05, queue_s=1.0, decode_s=0.2),
        delay_s=0.05,
    )
    plans = [b.plan(i) for b in bundles(list(seen.stages), 20, seen.links) for i in range(len(b))]
    plans = plans[::3] if images > 1 else plans
    values = [quality.bound(of_models(plan), (64, 64)) for plan in plans]
    for deadline_s in (1.5, 3.0, 9.0):
        asked = request(deadline_s=deadline_s, images=images)
        ends_s = [finish.of_plan(plan, asked, seen) for plan in plans]
        prices = [price_of(plan, asked, seen) for plan in plans]
        told = list(zip(values, ends_s, prices, strict=True))
        for floor in (0.1, 0.6, 0.8, 1.0):
            choice = elastic(replace(asked, quality_floor=floor), seen, quality)
            good = [(end_s, price) for value, end_s, price in told if value >= floor - 1e-9]
            in_time = [price for end_s, price in good if end_s <= deadline_s]
            assert choice.quality >= floor - 1e-9
            if in_time:
                assert price_of(choice.plan, asked, seen) <= min(in_time) + 1e-6
                assert choice.cost == pytest.approx(cost.of_plan(choice.plan, asked, seen))
                assert choice.predicted_s <= deadline_s + 1e-9
            elif good:
                assert choice.predicted_s <= min(end_s for end_s, _ in good) + 1e-6
            assert choice.predicted_s == pytest.approx(finish.of_plan(choice.plan, asked, seen))


def test_what_a_stage_has_to_do_makes_its_seconds_dearer() -> None:
    """Premises: all plans are in time and above the floor. The phone costs nothing: idle it gets
    everything, the more it has to do the less, while others of less price are idle."""
    asked = request(deadline_s=20.0, quality_floor=0.1)
    for loaded_s, taken in ((0.0, "phone:20"), (1.0, "phone:20"), (8.0, "tower:20")):
        seen = view(stage("phone", 0.4, loaded_s), stage("tower", 0.15), stage("hall", 0.05))
        choice = elastic(asked, seen)
        assert str(choice.plan) == taken
        assert choice.cost == pytest.approx(0.0 if taken == "phone:20" else 3.0)


def test_neither_the_unit_of_seconds_nor_that_of_prices_matters() -> None:
    def plan_at(slower: float, dearer: float, loaded_s: float) -> str:
        prices = {"device": 0.0, "edge": 1.0 * dearer, "cloud": 4.0 * dearer}
        stages = (
            stage("phone", 0.4 * slower, loaded_s * slower),
            stage("tower", 0.2 * slower, 0.5 * loaded_s * slower),
            stage("hall", 0.05 * slower),
        )
        seen = view(*stages, prices=prices, nbytes=0)
        return str(elastic(request(deadline_s=9.0 * slower, quality_floor=0.5), seen).plan)

    plans = [plan_at(1.0, 1.0, loaded_s) for loaded_s in (0.0, 1.0, 2.0, 4.0)]
    assert len(set(plans)) > 1
    for slower, dearer in ((2.0, 1.0), (1.0, 8.0), (4.0, 0.5)):
        assert [plan_at(slower, dearer, loaded_s) for loaded_s in (0.0, 1.0, 2.0, 4.0)] == plans


def test_images_on_their_way_to_a_stage_count() -> None:
    """Premises: the phone is free and idle now, and eight images of 20 steps come to it in 1 s."""
    phone = stage("phone", 0.4)
    coming = tuple(
        Held(f"r{k}", 0, 20, 1, CELLS, 60.0, encodes=False, decodes=True, arrives_s=1.0)
        for k in range(8)
    )
    asked = request(deadline_s=60.0, quality_floor=0.1)
    seen = view(replace(phone, held=coming), stage("tower", 0.2))
    assert str(elastic(asked, view(phone, stage("tower", 0.2))).plan) == "phone:20"
    assert str(elastic(asked, seen).plan) == "tower:20"


def test_ties_go_to_the_earlier_finish_then_to_fewer_hops() -> None:
    free = {"device": 0.0, "edge": 0.0, "cloud": 0.0}
    same = symmetric(device=1.0, edge=1.0, cloud=1.0)
    seen = view(stage("phone", 0.4), stage("tower", 0.2), stage("hall", 0.05), prices=free)
    assert str(elastic(request(), seen, same).plan) == "hall:20"
    alike = view(
        stage("phone", 0.1), stage("tower", 0.1), stage("hall", 0.1), prices=free, nbytes=0
    )
    assert str(elastic(request(), alike, same).plan) == "hall:20"  # first by name among equals
    shuffled = replace(alike, stages=dict(reversed(alike.stages.items())))
    assert elastic(request(), shuffled, same) == elastic(request(), alike, same)


def test_of_plans_as_late_as_each_other_the_cheaper_one_is_taken() -> None:
    """Premises: no plan is in time; the dearer stage comes first by name."""
    same = symmetric(device=1.0, edge=1.0, cloud=1.0)
    alike = view(stage("hall", 0.1), stage("tower", 0.1))
    assert str(elastic(request(deadline_s=0.1), alike, same).plan) == "tower:20"
    dear = replace(alike, price_per_s={"cloud": 1.0, "edge": 4.0})
    assert str(elastic(request(deadline_s=0.1), dear, same).plan) == "hall:20"


def test_of_the_same_stages_the_earlier_hand_off_is_taken() -> None:
    """Premises: a hop takes no time, no stage costs anything, and the edge works while the cloud's
    queue drains: hand-offs from step 5 on end alike; the floor asks for some steps of the cloud."""
    free = {"device": 0.0, "edge": 0.0, "cloud": 0.0}
    seen = view(stage("tower", 0.1), stage("hall", 0.1, queue_s=0.5), prices=free, nbytes=0)
    choice = elastic(request(quality_floor=0.8, deadline_s=2.0), seen)
    assert (str(choice.plan), choice.predicted_s) == ("tower:5,hall:15", 2.0)


def test_a_plan_that_ends_at_the_deadline_and_at_the_floor_is_good_enough() -> None:
    seen = view(stage("tower", 0.1), stage("hall", 0.05))
    at_both = elastic(request(deadline_s=2.0, quality_floor=0.7), seen)
    assert str(at_both.plan) == "tower:20"
    for changes in ({"deadline_s": 1.999}, {"quality_floor": 0.701}):
        asked = request(**({"deadline_s": 2.0, "quality_floor": 0.7} | changes))
        assert steps_on(elastic(asked, seen).plan, "hall") > 0


def test_guidance_of_zero_is_a_model_s_own_guidance() -> None:
    """It is off, whatever the request says; the request's own zero is off as well."""
    asked = request(deadline_s=0.001, quality_floor=0.0)
    seen = view(stage("hall", 0.1, guided_s=0.2))
    assert elastic(asked, seen).predicted_s == pytest.approx(4.0)
    assert elastic(asked, replace(seen, guidance={"hall": 0.0})).predicted_s == pytest.approx(2.0)
    assert elastic(replace(asked, guidance=0.0), seen).predicted_s == pytest.approx(2.0)
    plan = Plan.parse("hall:20@0")
    fixed = policy("fixed")(replace(asked, plan=plan), seen, symmetric())
    assert fixed.predicted_s == pytest.approx(2.0)


def test_a_model_with_guidance_of_its_own_is_counted_with_it() -> None:
    """Which stage is the fastest depends on which of them take a second pass."""
    asked = request(deadline_s=0.001, quality_floor=0.0)
    seen = view(stage("hall", 0.1, guided_s=0.2), stage("tower", 0.15, guided_s=0.16))
    assert str(elastic(asked, seen, symmetric()).plan) == "tower:20"
    own = replace(seen, guidance={"hall": 1.0})
    assert str(elastic(asked, own, symmetric()).plan) == "hall:20"


def test_a_decision_leaves_no_trace() -> None:
    seen, quality = three(1.0), symmetric()
    first = elastic(request(), seen, quality)
    elastic(request(steps=27, deadline_s=0.1), three(9.0), quality)
    assert elastic(request(), seen, quality) == first


def test_where_no_plan_is_in_time_the_reason_counts_those_above_the_floor() -> None:
    seen = view(stage("tower", 0.2), stage("hall", 0.05))
    late = "no plan meets the deadline of 0.1 s and the quality floor"
    best = elastic(request(deadline_s=0.1, quality_floor=1.0), seen)
    by = "above the floor the earliest misses the deadline by"
    assert best.reason == f"{late} 1: {by} 0.90 s; this is the only plan above the floor"
    some = elastic(request(deadline_s=0.1, quality_floor=0.1), seen)
    # Each stage alone, and 19 hand-offs in either order.
    assert (
        some.reason == f"{late} 0.1: {by} 0.90 s; this is the fastest of 40 plans above the floor"
    )


def test_the_runner_up_uses_other_stages_and_is_no_better() -> None:
    choice = elastic(request(), three())
    assert choice.runner_up is not None
    assert choice.runner_up_s is not None
    names = [[s.stage for s in plan.spans] for plan in (choice.plan, choice.runner_up)]
    assert names[0] != names[1]
    assert price_of(choice.runner_up, request(), three()) >= choice.cost
    alone = elastic(request(), view(stage("hall", 0.1)))
    assert (alone.runner_up, alone.runner_up_s) == (None, None)


def test_images_run_one_after_another() -> None:
    seen = view(stage("hall", 0.05, encode_s=0.1, decode_s=0.2))
    one = elastic(request(quality_floor=1.0), seen)
    four = elastic(request(quality_floor=1.0, images=4), seen)
    assert four.predicted_s == pytest.approx(4 * one.predicted_s)
    assert four.cost == pytest.approx(4 * one.cost)


# ---------------------------------------------------------------------------- what is missing


def test_a_dead_stage_is_not_used() -> None:
    plan = elastic(request(quality_floor=0.5), view(stage("tower", 0.2), stage("hall", 0.05))).plan
    assert steps_on(plan, "phone") == 0


def test_no_live_stage() -> None:
    with pytest.raises(NoPlan, match="no stage of 'shapes' is alive"):
        elastic(request(), view())


def test_a_floor_that_the_live_stages_do_not_reach() -> None:
    """Live stages are called by their names, what is missing by its model, which has no stage."""
    told = r"stages \(tower\) .* floor 0\.9; the best of them reaches 0\.7; "
    with pytest.raises(NoPlan, match=f"{told}no live stage runs the model 'cloud'"):
        elastic(request(), view(stage("tower", 0.2)))
    with pytest.raises(NoPlan, match="no live stage runs the model 'cloud' or 'edge'"):
        elastic(request(), view(stage("phone", 0.4)))


def test_quality_belongs_to_the_model_whatever_its_stage_is_called() -> None:
    renamed = replace(stage("hall", 0.05), stage="hall-3")
    seen = view(stage("tower", 0.2), renamed)
    assert str(elastic(request(quality_floor=1.0), seen).plan) == "hall-3:20"
    assert policy("cloud-only")(request(), seen, symmetric()).quality == 1.0


def test_without_links_every_latent_stays() -> None:
    lonely = replace(three(), links={})
    assert len(elastic(request(quality_floor=0.5), lonely).plan.spans) == 1


def test_a_full_queue_is_passed_by_or_refused() -> None:
    full = stage("hall", 0.05, queue_s=3.0, queued=32, capacity=32)
    plan = elastic(request(quality_floor=0.5), view(stage("tower", 0.2), full)).plan
    assert str(plan) == "tower:20"
    with pytest.raises(QueueFull, match="full: hall") as caught:
        elastic(request(), view(stage("tower", 0.2), stage("phone", 0.4), full))
    assert caught.value.retry_after_s == 3.0
    with pytest.raises(QueueFull, match="every stage's queue is full"):
        elastic(request(), view(full))


@pytest.mark.parametrize(
    ("queued", "images", "fits"),
    [(0, 4, True), (2, 2, True), (3, 1, True), (4, 1, False), (2, 3, False), (1, 4, False)],
)
def test_a_queue_may_become_full_but_holds_a_request_whole(
    queued: int, images: int, fits: bool
) -> None:
    """Premises: it holds four; another stage is dearer and always has room."""
    cheap = stage("tower", 0.05, queued=queued, capacity=4)
    asked = request(images=images, quality_floor=0.5, deadline_s=99.0)
    plan = elastic(asked, view(cheap, stage("hall", 0.05))).plan
    assert str(plan) == ("tower:20" if fits else "hall:20")
    if not fits:
        with pytest.raises(QueueFull):
            elastic(asked, view(cheap))


def test_come_again_when_the_first_of_the_full_queues_is_free() -> None:
    """That of a stage which could not hold the request even then does not count."""
    small, soon, late = (
        stage("phone", 0.4, queue_s=0.5, queued=1, capacity=1),
        stage("tower", 0.2, queue_s=1.5, queued=8, capacity=8),
        stage("hall", 0.05, queue_s=4.0, queued=8, capacity=8),
    )
    for seen in (view(small, soon, late), view(late, soon, small)):
        with pytest.raises(QueueFull, match="every stage's queue is full") as caught:
            elastic(request(images=2, quality_floor=0.0), seen)
        assert caught.value.retry_after_s == 1.5


def test_come_again_when_the_first_stage_is_free_that_the_floor_needs() -> None:
    busy = [
        replace(stage("hall", 0.05, queue_s=queue_s, queued=32), stage=name)
        for name, queue_s in (("large-a", 5.0), ("large-b", 2.0), ("large-c", 7.0))
    ]
    with pytest.raises(QueueFull, match="full: large-a, large-b, large-c") as caught:
        elastic(request(), view(stage("tower", 0.2), stage("phone", 0.4), *busy))
    assert caught.value.retry_after_s == 2.0


def test_more_images_than_a_stage_ever_holds_are_no_matter_of_waiting() -> None:
    """Premises: the queues hold 4, 8 and 2; all are idle; only the cloud reaches the floor."""
    small, large, cloud = (
        stage("phone", 0.4, capacity=4),
        stage("tower", 0.2, capacity=8),
        stage("hall", 0.05, capacity=2),
    )
    seen = view(small, large, cloud)
    assert str(elastic(request(images=6, quality_floor=0.5), seen).plan) == "tower:20"
    with pytest.raises(InvalidRequest, match=r"n is 3, more images .* \('hall' 2\)") as caught:
        elastic(request(images=3), seen)
    assert caught.value.param == "n"
    with pytest.raises(NoPlan, match=r"n is 9, more images .* \('phone' 4, 'tower' 8, 'hall' 2\)"):
        elastic(request(images=9), seen)  # others may be dead: what all hold the API knows
    full = view(small, replace(large, queued=3, queue_s=2.0), cloud)
    with pytest.raises(QueueFull, match=r"every stage's queue is full \(tower\)") as busy:
        elastic(request(images=6, quality_floor=0.5), full)
    assert busy.value.retry_after_s == 2.0


@pytest.mark.parametrize(("name", "plan"), [("fixed", "tower:10,hall:10"), ("cloud-only", None)])
def test_the_other_policies_refuse_them_too(name: str, plan: str | None) -> None:
    seen = view(stage("tower", 0.2), stage("hall", 0.05, capacity=2))
    asked = request(images=3, plan=plan and Plan.parse(plan))
    with pytest.raises(InvalidRequest, match=r"n is 3, more images .* \('hall' 2\)") as caught:
        policy(name)(asked, seen, symmetric())
    assert caught.value.param == "n"


def test_one_tier_only_takes_the_stage_that_can_hold_them() -> None:
    small = replace(stage("hall", 0.05, capacity=2), stage="small")
    seen = view(small, stage("hall", 0.1))
    assert str(policy("cloud-only")(request(images=3), seen, symmetric()).plan) == "hall:20"
    assert str(policy("cloud-only")(request(images=2), seen, symmetric()).plan) == "small:20"


def test_a_family_without_a_table() -> None:
    unknown = QualityTable.unknown("shapes")
    choice = elastic(request(), three(), unknown)
    assert str(choice.plan) == "hall:20"
    assert "no quality table" in choice.reason
    assert str(elastic(request(quality_floor=0.0), three(), unknown).plan) == "phone:20"
    with pytest.raises(NoPlan, match="no quality table"):
        elastic(request(), view(stage("tower", 0.2)), unknown)


# ---------------------------------------------------------------------------- the other policies


def test_fixed_takes_the_plan_it_is_given() -> None:
    fixed = policy("fixed")
    chosen = fixed(request(plan=Plan.parse("hall:8,hall:12")), three(), symmetric())
    assert (str(chosen.plan), chosen.reason) == ("hall:8,hall:12", "asked for")
    assert chosen.predicted_s == pytest.approx(1.0)
    from_config = Plan.parse("tower:20", "fixed by the config")
    chosen = fixed(request(plan=from_config), three(), symmetric())
    assert chosen.reason == "fixed by the config; below the quality floor 0.9"
    at_the_floor = fixed(request(plan=from_config, quality_floor=0.7), three(), symmetric())
    assert at_the_floor.reason == "fixed by the config"


@pytest.mark.parametrize("name", ["elastic", "fixed", "cloud-only"])
def test_the_reason_goes_with_the_plan(name: str) -> None:
    asked = request(plan=Plan.parse("hall:20") if name == "fixed" else None)
    choice = policy(name)(asked, three(), symmetric())
    assert choice.plan.reason == choice.reason != ""


def test_fixed_says_what_is_wrong() -> None:
    fixed = policy("fixed")
    with pytest.raises(InvalidRequest, match="needs a plan"):
        fixed(request(), three(), symmetric())
    with pytest.raises(InvalidPlan, match="10 steps, but 20"):
        fixed(request(plan=Plan.parse("hall:10")), three(), symmetric())
    with pytest.raises(NoPlan, match=r"'hall' is not alive \(alive: tower\)"):
        fixed(request(plan=Plan.parse("hall:20")), view(stage("tower", 0.2)), symmetric())
    asked = request(plan=Plan.parse("tower:10,hall:10"))
    with pytest.raises(NoPlan, match="no link from 'tower' to 'hall'"):
        fixed(asked, replace(three(), links={}), symmetric())


@pytest.mark.parametrize("name", ["hall", "tower", "phone"])
def test_one_tier_only(name: str) -> None:
    tier = MODEL[name]
    choice = policy(f"{tier}-only")(request(), three(), symmetric())
    assert str(choice.plan) == f"{name}:20"
    others = view(*(s for s in three().stages.values() if s.tier != tier))
    with pytest.raises(NoPlan, match=f"no stage on tier '{tier}'"):
        policy(f"{tier}-only")(request(), others, symmetric())


def test_one_tier_only_takes_the_stage_that_is_free_first() -> None:
    big = replace(stage("hall", 0.1, queue_s=5.0), stage="big")
    choice = policy("cloud-only")(
        request(deadline_s=0.5), view(big, stage("hall", 0.2)), table(row(1.0, cloud=20))
    )
    assert str(choice.plan) == "hall:20"
    assert "predicted to miss the deadline of 0.5 s" in choice.reason


def test_of_equal_stages_of_a_tier_the_cheaper_and_then_the_first_by_name() -> None:
    """Premises: all end after 2 s; only one of them works for less than that."""
    alike = [replace(stage("hall", 0.1), stage=name) for name in ("c", "b")]
    brief = replace(stage("hall", 0.05, queue_s=1.0), stage="z")
    for order in (alike, alike[::-1]):
        seen = view(*order)
        assert str(policy("cloud-only")(request(), seen, symmetric()).plan) == "b:20"
        seen = view(*order, brief)
        assert str(policy("cloud-only")(request(), seen, symmetric()).plan) == "z:20"


def test_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(
        InvalidRequest, match="elastic, earliest, in-turn, fixed, cloud-only"
    ) as caught:
        policy("clever")
    assert caught.value.param == "policy"
    assert list(RULES)[:5] == ["elastic", "earliest", "in-turn", "fixed", "cloud-only"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": 19}, "nothing is known of fewer than 20 steps"),
        ({"width": 96, "policy": "elastic"}, "nothing else is known of 96x64 pixels"),
    ],
    ids=["steps", "size"],
)
def test_a_refusal_says_what_was_not_measured(changes: dict[str, object], told: str) -> None:
    only = view(stage("tower", 0.2))
    with pytest.raises(NoPlan, match=told):
        elastic(request(quality_floor=0.1, **changes), only)
    assert elastic(request(quality_floor=0.0, **changes), only).quality == 0.0


def test_floors_are_held_against_bounds_and_both_are_told() -> None:
    known = symmetric()
    (here,) = known.sizes
    cautious = Model(power=0.8, curves=here.model.curves, hops=here.model.hops)
    low = with_model(known, here.model, cautious)
    asked = request(quality_floor=0.75, deadline_s=60.0)
    for name in ("elastic", "earliest"):
        choice = policy(name)(asked, three(), low)
        models = of_models(choice.plan)
        assert choice.quality == pytest.approx(low.relative(models, (64, 64)))
        assert choice.quality_bound == pytest.approx(low.bound(models, (64, 64)))
        assert choice.quality_bound >= 0.75
    assert str(elastic(asked, three(), low).plan) != str(elastic(asked, three(), known).plan)
    told = policy("fixed")(request(plan=Plan.parse("tower:20"), quality_floor=0.65), three(), low)
    assert told.quality == pytest.approx(0.7)
    assert "below the quality floor 0.65" in told.reason
    with pytest.raises(NoPlan, match="best of tower"):
        policy("in-turn")(request(quality_floor=0.65), view(stage("tower", 0.2)), low)
