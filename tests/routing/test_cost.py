import heapq
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_edge.routing.cost import MAX_CUTS, bundles, cuts, predict_plan
from diffusion_edge.types import Guiding, Link, Plan, StageStatus, View

from .views import CELLS, MODEL, request, stage, view

NAMES = tuple(MODEL)


def replayed(plan: Plan, images: int, seen: View) -> tuple[float, float]:
    """The same forecast by playing events: (time, arrival number, image, span) at a busy stage."""
    free_at = {name: status.queue_s for name, status in seen.stages.items()}
    arrivals = itertools.count()
    events = [(0.0, next(arrivals), image, 0) for image in range(images)]
    finish_s, cost = 0.0, 0.0
    while events:
        now, _, image, k = heapq.heappop(events)
        span, status = plan.spans[k], seen.stages[plan.spans[k].stage]
        work_s = status.encode_s + span.steps * status.step_s[CELLS][2]
        if k + 1 == len(plan.spans):
            work_s += status.decode_s[CELLS]
        done = max(now, free_at[span.stage]) + work_s
        free_at[span.stage] = done
        cost += work_s * seen.price_per_s[status.tier]
        if k + 1 == len(plan.spans):
            finish_s = max(finish_s, done)
        else:
            target = plan.spans[k + 1].stage
            same = target == span.stage
            link = None if same else seen.links[span.stage, target]
            nbytes = seen.packet_bytes[span.stop]
            travel_s = link.delay_s + nbytes / link.bytes_per_s if link else 0.0
            heapq.heappush(events, (done + travel_s, next(arrivals), image, k + 1))
    return finish_s, cost


seconds = st.floats(0.001, 2.0)


@st.composite
def views(draw: st.DrawFn) -> View:
    def status(name: str) -> StageStatus:
        return stage(
            name,
            draw(seconds),
            queue_s=draw(st.floats(0, 20)),
            guided_s=draw(seconds),
            encode_s=draw(seconds),
            decode_s=draw(seconds),
        )

    links = {
        pair: Link(draw(st.floats(1e3, 1e8)), draw(st.floats(0, 1)))
        for pair in itertools.permutations(NAMES, 2)
    }
    prices = {"device": 0.0, "edge": draw(seconds), "cloud": draw(seconds)}
    first, more = draw(st.integers(100, 10**6)), draw(st.integers(0, 10**5))
    sizes = tuple(first + more * step for step in range(91))
    return View({n: status(n) for n in NAMES}, links, prices, sizes, ("exact",) * 91, CELLS)


@settings(deadline=None, max_examples=50)
@given(
    seen=views(),
    order=st.permutations(NAMES),
    steps=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    images=st.integers(1, 5),
)
def test_forecast_is_what_playing_the_events_gives(
    seen: View, order: list[str], steps: list[int], images: int
) -> None:
    plan = Plan.of(tuple(zip(order, steps, strict=False)))
    asked = request(steps=plan.steps, images=images)
    assert predict_plan(plan, asked, seen) == pytest.approx(replayed(plan, images, seen))


@settings(deadline=None, max_examples=50)
@given(seen=views(), first=st.integers(1, 20), second=st.integers(1, 20), images=st.integers(1, 4))
def test_a_cut_within_one_stage(seen: View, first: int, second: int, images: int) -> None:
    plan = Plan.of((("hall", first), ("hall", second)))
    asked = request(steps=plan.steps, images=images)
    assert predict_plan(plan, asked, seen) == pytest.approx(replayed(plan, images, seen))


def test_by_hand() -> None:
    seen = view(
        stage("tower", 0.1, queue_s=1.0, encode_s=0.2),
        stage("hall", 0.05, queue_s=4.0, encode_s=0.1, decode_s=0.3),
        bytes_per_s=1e5,
        delay_s=0.1,
        nbytes=20_000,
    )
    # The edge ends at 1 + 0.2 + 10 * 0.1 = 2.2, the latent arrives at 2.5, the cloud is free at 4.
    finish_s, cost = predict_plan(Plan.parse("tower:10,hall:10"), request(), seen)
    assert finish_s == pytest.approx(4.0 + 0.1 + 10 * 0.05 + 0.3)
    assert cost == pytest.approx(1.2 * 1.0 + 0.9 * 4.0)


def test_images_of_a_request_share_forward_passes_where_the_stage_batches() -> None:
    """Two guided rows an image: four images fill the largest pass that pays, six take 1.5 of it."""
    alone = replace(stage("hall", 0.1, encode_s=0.1, decode_s=0.2), guiding="doubled")
    by_rows = {1: 0.08, 2: 0.1, 4: 0.12, 8: 0.16, 16: 0.4}
    batching = replace(alone, batches=True, step_s={CELLS: by_rows})

    def predicted(images: int, status: StageStatus) -> tuple[float, float]:
        return predict_plan(Plan.parse("hall:20"), request(images=images), view(status))

    in_turn = 4 * (0.1 + 20 * 0.1 + 0.2)
    assert predicted(4, alone) == pytest.approx((in_turn, 4 * in_turn))
    for images, step_s in ((1, 0.1), (2, 0.12), (4, 0.16), (6, 1.5 * 0.16)):
        together = images * 0.3 + 20 * step_s
        assert predicted(images, batching) == pytest.approx((together, 4 * together))


def test_images_that_come_one_by_one_are_batched_when_all_are_there() -> None:
    edge = stage("tower", 0.1)
    cloud = replace(stage("hall", 0.1), batches=True, step_s={CELLS: {1: 0.1, 2: 0.1, 4: 0.1}})
    seen = view(edge, cloud, bytes_per_s=1e12)
    finish_s, _ = predict_plan(Plan.parse("tower:10,hall:10"), request(images=2), seen)
    assert finish_s == pytest.approx(2 * 10 * 0.1 + 10 * 0.1)


def test_guidance_chooses_the_step_time() -> None:
    seen = view(stage("hall", 0.1, guided_s=0.2))
    plan = Plan.parse("hall:20")
    assert predict_plan(plan, request(guidance=3.0), seen)[0] == pytest.approx(4.0)
    assert predict_plan(plan, request(guidance=1.0), seen)[0] == pytest.approx(2.0)


def test_seconds_are_those_of_the_request_s_size() -> None:
    status = replace(stage("hall", 0.1, decode_s=0.3), step_s={CELLS: {2: 0.1}, 256: {2: 0.5}})
    seen, plan = view(status), Plan.parse("hall:20")
    assert predict_plan(plan, request(), seen)[0] == pytest.approx(2.0 + 0.3)
    larger = replace(seen, cells=256)
    assert predict_plan(plan, request(), larger)[0] == pytest.approx(10.0 + 4 * 0.3)
    assert predict_plan(plan, request(), larger)[1] == pytest.approx(4 * (10.0 + 4 * 0.3))


def test_guidance_of_a_span_or_of_a_stage_s_model_chooses_it_too() -> None:
    seen = view(stage("hall", 0.1, guided_s=0.2), stage("tower", 0.1, guided_s=0.2))

    def seconds(plan: str, **own: float) -> float:
        return predict_plan(Plan.parse(plan), request(), replace(seen, guidance=own))[0]

    assert seconds("hall:10,tower:10@1") == pytest.approx(3.0, abs=1e-3)
    assert seconds("hall:10,tower:10", tower=1.0) == pytest.approx(3.0, abs=1e-3)
    assert seconds("hall:10,tower:10@2", tower=1.0) == pytest.approx(4.0, abs=1e-3)


@pytest.mark.parametrize("guiding", ["embedded", "off"])
def test_only_a_second_pass_costs_a_second_row(guiding: Guiding) -> None:
    status = replace(stage("hall", 0.1, guided_s=0.2), guiding=guiding)
    assert predict_plan(Plan.parse("hall:20"), request(), view(status))[0] == pytest.approx(2.0)


def test_every_way_to_cut() -> None:
    seen = view(*(stage(name, 0.1) for name in NAMES))
    for steps in (1, 2, 3, 10, 20):
        plans = [
            str(bundle.plan(i))
            for bundle in bundles(NAMES, steps, seen.links)
            for i in range(len(bundle))
        ]
        expected = {
            ",".join(f"{s}:{n}" for s, n in zip(order, parts, strict=True))
            for spans in (1, 2, 3)
            for order in itertools.permutations(NAMES, spans)
            for parts in itertools.product(range(1, steps + 1), repeat=spans)
            if sum(parts) == steps
        }
        assert len(plans) == len(set(plans))
        assert set(plans) == expected


@pytest.mark.parametrize("steps", [33, 34, 150, 1000])
def test_the_number_of_plans_is_bounded(steps: int) -> None:
    counts = cuts(steps, 3)
    assert len(counts[0]) == MAX_CUTS * (MAX_CUTS - 1) // 2
    assert all((count >= 1).all() for count in counts)
    assert (np.sum(counts, axis=0) == steps).all()


def test_a_pair_without_a_link_cannot_hand_off() -> None:
    seen = view(*(stage(name, 0.1) for name in NAMES))
    links = {pair: link for pair, link in seen.links.items() if pair != ("phone", "hall")}
    orders = {bundle.stages for bundle in bundles(NAMES, 20, links)}
    assert ("phone", "hall") not in orders
    assert ("tower", "phone", "hall") not in orders
    assert ("phone", "tower", "hall") in orders
    assert ("hall", "phone") in orders
