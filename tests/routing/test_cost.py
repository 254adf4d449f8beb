import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_edge.plan import Guiding, Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.routing import cost, finish
from diffusion_edge.routing.cost import Line, cuts
from diffusion_edge.view import StageStatus, View

from .brute import bundles
from .views import CELLS, MODEL, request, stage, view

NAMES = tuple(MODEL)

seconds = st.floats(0.001, 2.0)


@settings(deadline=None, max_examples=50)
@given(
    order=st.permutations(NAMES),
    steps=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    images=st.integers(1, 5),
    each_s=st.lists(seconds, min_size=12, max_size=12),
)
def test_cost_is_busy_seconds_times_price(
    order: list[str], steps: list[int], images: int, each_s: list[float]
) -> None:
    """Whoever waits; guided steps, two texts on every stage, pictures on the last one."""
    kinds = ("step_s", "guided_s", "encode_s", "decode_s")
    told = {name: dict(zip(kinds, each_s[4 * k :], strict=False)) for k, name in enumerate(NAMES)}
    seen = view(*(stage(name, queue_s=3.0, **told[name]) for name in NAMES))
    plan = Plan.of(tuple(zip(order, steps, strict=False)))
    expected = 0.0
    for span in plan.spans:
        own = told[span.stage]
        busy_s = 2 * own["encode_s"] + span.steps * own["guided_s"]
        busy_s += own["decode_s"] if span == plan.spans[-1] else 0.0
        expected += images * busy_s * seen.price_per_s[MODEL[span.stage]]
    asked = request(steps=plan.steps, images=images)
    assert cost.of_plan(plan, asked, seen) == pytest.approx(expected)


def predict_plan(plan: Plan, asked: ImageRequest, seen: View) -> tuple[float, float]:
    return finish.of_plan(plan, asked, seen), cost.of_plan(plan, asked, seen)


def test_by_hand() -> None:
    seen = view(
        stage("tower", 0.1, queue_s=1.0, encode_s=0.2),
        stage("hall", 0.05, queue_s=4.0, encode_s=0.1, decode_s=0.3),
        bytes_per_s=1e5,
        delay_s=0.1,
        nbytes=20_000,
    )
    # Two texts each. The edge ends at 1 + 2 * 0.2 + 10 * 0.1 = 2.4, the latent arrives at 2.7, the
    # cloud is free at 4.
    finish_s, price = predict_plan(Plan.parse("tower:10,hall:10"), request(), seen)
    assert finish_s == pytest.approx(4.0 + 2 * 0.1 + 10 * 0.05 + 0.3)
    assert price == pytest.approx(1.4 * 1.0 + 1.0 * 4.0)


def test_two_spans_on_one_stage_take_no_hop() -> None:
    seen = view(stage("hall", 0.1, encode_s=0.2))
    finish_s, price = predict_plan(Plan.parse("hall:8,hall:12"), request(), seen)
    assert (finish_s, price) == (pytest.approx(2.8), pytest.approx(4.0 * 2.8))


def test_what_a_stage_has_to_do_grows_by_a_share_of_full_passes() -> None:
    """Premises: four guided images fill a pass of eight rows, which takes 0.16 s."""
    by_rows = {1: 0.08, 2: 0.1, 4: 0.12, 8: 0.16, 16: 0.4}
    alone = stage("tower", 0.1, encode_s=0.2, decode_s=9.0)
    shared = replace(
        stage("hall", 0.1, encode_s=0.1, decode_s=0.3), batches=True, step_s={CELLS: by_rows}
    )
    seen = view(alone, shared)
    assert cost.full_s(alone, True, 3, seen) == Line(
        start=pytest.approx(3 * 2 * 0.2), step=pytest.approx(3 * 0.1), end=pytest.approx(3 * 9.0)
    )
    assert cost.full_s(shared, True, 3, seen) == Line(
        start=pytest.approx(3 * 2 * 0.1), step=pytest.approx(3 * 0.04), end=pytest.approx(3 * 0.3)
    )


def test_images_of_a_request_share_forward_passes_where_the_stage_batches() -> None:
    """Two guided rows an image: four images fill the largest pass that pays, six cost 1.5 of it."""
    alone = replace(stage("hall", 0.1, encode_s=0.1, decode_s=0.2), guiding="doubled")
    by_rows = {1: 0.08, 2: 0.1, 4: 0.12, 8: 0.16, 16: 0.4}
    batching = replace(alone, batches=True, step_s={CELLS: by_rows})

    def predicted(images: int, status: StageStatus) -> tuple[float, float]:
        return predict_plan(Plan.parse("hall:20"), request(images=images), view(status))

    in_turn = 4 * (2 * 0.1 + 20 * 0.1 + 0.2)
    assert predicted(4, alone) == pytest.approx((in_turn, 4 * in_turn))
    for images, step_s in ((1, 0.1), (2, 0.12), (4, 0.16), (6, 1.5 * 0.16)):
        together = images * 0.4 + 20 * step_s
        finish_s, price = predicted(images, batching)
        assert price == pytest.approx(4 * together)
        assert finish_s == pytest.approx(together + (0.8 if images == 6 else 0.0))  # two passes


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


@pytest.mark.parametrize("steps", [33, 50, 150])
def test_every_hand_off_step_is_tried_whatever_their_number(steps: int) -> None:
    counts = cuts(steps, 3)
    assert len(counts[0]) == (steps - 1) * (steps - 2) // 2
    assert all((count >= 1).all() for count in counts)
    assert (np.sum(counts, axis=0) == steps).all()
    earlier = list(zip(counts[0].tolist(), counts[1].tolist(), strict=True))
    assert earlier == sorted(set(earlier))


def test_a_pair_without_a_link_cannot_hand_off() -> None:
    seen = view(*(stage(name, 0.1) for name in NAMES))
    links = {pair: link for pair, link in seen.links.items() if pair != ("phone", "hall")}
    orders = {bundle.stages for bundle in bundles(NAMES, 20, links)}
    assert ("phone", "hall") not in orders
    assert ("tower", "phone", "hall") not in orders
    assert ("phone", "tower", "hall") in orders
    assert ("hall", "phone") in orders
