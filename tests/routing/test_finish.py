"""Tables of a stage against the rules run for each arrival alone, and plans over several stages."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from diffusion_edge.batching import due
from diffusion_edge.plan import Plan
from diffusion_edge.routing.finish import (
    Ask,
    Floats,
    Forecasts,
    Table,
    Tables,
    arrivals,
    predict,
    table,
)
from diffusion_edge.routing.forecast import ahead, course
from diffusion_edge.routing.holding import kind_of, mode_of
from diffusion_edge.view import Held, StageStatus, View

from .views import CELLS, request, stage, view

BATCHING = {1: 0.06, 2: 0.1, 4: 0.12, 8: 0.16, 16: 0.32}
ALONE = {1: 0.1}


def loaded(held: int, curve: dict[int, float], seed: int = 0) -> StageStatus:
    """A stage that holds so many images, begun at different times, due within 15 s."""
    chance = random.Random(seed)
    many = len(curve) > 1
    images = []
    for number in range(held):
        steps, came_s = chance.randint(1, 30), -chance.random() * 4
        images.append(
            Held(
                request=f"r{number}",
                image=0,
                steps=steps,
                rows=2 if many else 1,
                cells=CELLS,
                due_s=came_s + min(0.3 * (steps + 5), 15.0),
                encodes=number > 0.8 * held,
                decodes=chance.random() < 0.5,
            )
        )
    return replace(
        stage("hall", 0.0, encode_s=0.03, decode_s=0.05),
        step_s={CELLS: curve},
        batches=many,
        emulated=True,
        held=tuple(images),
    )


def played(
    status: StageStatus, ask: Ask, arrives_s: float, steps: int, decodes: bool = True
) -> float:
    """When the request is done, by running the rules for it: its text comes now."""
    alone_s = steps * kind_of(status, ask.cells, ask.rows).pass_s[1]
    due_s = due(arrives_s, alone_s, ask.due_s, mode_of(status))
    new = [
        Held(
            "new",
            k,
            steps,
            ask.rows,
            ask.cells,
            due_s,
            ask.encodes,
            decodes,
            arrives_s,
            told_s=ask.age_s,
        )
        for k in range(ask.images)
    ]
    return max(ahead(status, new)[len(status.held) :])


def read(known: Table, of: Floats, arrives_s: float, steps: int) -> float:
    return float(known.seconds(of, np.array([arrives_s]), np.array([steps]))[0])


loads = pytest.mark.parametrize(
    ("curve", "held"),
    [(curve, held) for curve in (BATCHING, ALONE) for held in (0, 3, 8, 32)],
    ids=[f"{kind}-{held}" for kind in ("batching", "alone") for held in (0, 3, 8, 32)],
)


def asked(status: StageStatus, **more: float) -> Ask:
    return Ask(CELLS, 2 if status.batches else 1, 50, due_s=12.0, ahead=True, **more)  # type: ignore[arg-type]  # mixed


@loads
def test_what_steps_here_and_goes_on_is_exact_now(curve: dict[int, float], held: int) -> None:
    """But where it has more places among the others than are tried: one in twenty here."""
    status = loaded(held, curve)
    ask = asked(status)
    known = table(status, ask)
    wrong = [
        abs(read(known, known.last_s, 0.0, n) / played(status, ask, 0.0, n, decodes=False) - 1)
        for n in range(1, 51, 3)
    ]
    assert sum(error > 1e-9 for error in wrong) <= (1 if held == 32 else 0)


@loads
def test_later_arrivals_are_read_between_those_that_were_played(
    curve: dict[int, float], held: int
) -> None:
    status = loaded(held, curve, seed=1)
    ask = asked(status)
    known = table(status, ask)
    chance, wrong = random.Random(7), []
    for _ in range(40):
        arrives_s, n = chance.random() * known.arrives_s[-1], chance.randint(1, 50)
        ends_s = played(status, ask, arrives_s, n)
        told_s = read(known, known.done_s, arrives_s, n)
        wrong.append(abs(told_s - ends_s) / (ends_s - arrives_s))
    assert np.median(wrong) < 0.02
    assert np.quantile(wrong, 0.9) < 0.15


@loads
def test_a_later_arrival_is_never_done_earlier(curve: dict[int, float], held: int) -> None:
    known = table(loaded(held, curve, seed=2), asked(loaded(held, curve)))
    for of in (known.first_s, known.last_s, known.done_s):
        assert (np.diff(of, axis=0) >= 0).all()
    assert (known.done_s >= known.last_s).all()
    assert known.arrives_s[0] == 0


@loads
def test_on_an_idle_stage_seconds_go_with_the_arrival(curve: dict[int, float], held: int) -> None:
    status = loaded(held, curve)
    ask = asked(status)
    known = table(status, ask)
    step_s = (
        status.seconds_per_step(ask.rows == 2, CELLS) if not status.emulated else curve[ask.rows]
    )
    idle_s = known.arrives_s[-1] + 3.0
    for n in (1, 20, 50):
        alone_s = n * step_s + 0.05  # its text is encoded by then
        assert read(known, known.done_s, idle_s, n) == pytest.approx(idle_s + alone_s)


def test_what_was_decided_but_is_not_reported_counts() -> None:
    status = loaded(0, ALONE)
    ask = asked(status)
    decided = Held("other", 0, 20, 1, CELLS, 6.0, True, True, arrives_s=0.5)
    alone, behind = table(status, ask), table(status, ask, [decided])
    assert read(behind, behind.done_s, 0.6, 30) > read(alone, alone.done_s, 0.6, 30) + 1.0
    reported = table(replace(status, held=(decided,)), ask)
    assert (reported.done_s == behind.done_s).all()


@loads
@pytest.mark.parametrize("age_s", [0.25, 1.5])
def test_what_a_stage_did_since_its_report_is_taken_as_done(
    curve: dict[int, float], held: int, age_s: float
) -> None:
    """A request that comes now is one that comes so long after the report."""
    status = loaded(held, curve)
    now = asked(status)
    then = now._replace(due_s=12.0 + age_s, age_s=age_s)
    known, old = table(status, now._replace(age_s=age_s)), table(status, now)
    told = [(n, read(known, known.last_s, 0.0, n)) for n in range(1, 51, 3)]
    really = [played(status, then, age_s, n, decodes=False) - age_s for n, _ in told]
    late_s = np.array([s for _, s in told]) - really
    assert sum(late_s > 1e-9) <= held // 8  # read from the next later place
    assert (late_s > -1e-9).all()
    assert known.idle_s == pytest.approx(max(old.idle_s - age_s, 0.0))
    assert known.arrives_s[-1] == pytest.approx(known.idle_s + 0.03)


def test_who_comes_later_after_one_report_does_not_pass_who_came_before() -> None:
    """Both ask for the same and have the same deadline; the first one is promised to the stage."""
    status = loaded(0, ALONE)
    ask = Ask(CELLS, 1, 20, due_s=1.0, age_s=0.5)
    first = Held("first", 0, 20, 1, CELLS, 0.5 + 1.0, True, True, arrives_s=0.5)
    known = table(replace(status, held=(first,)), ask)
    alone_s = 0.03 + 20 * 0.1 + 0.05
    assert read(known, known.last_s, 0.0, 20) == pytest.approx(2 * alone_s, abs=0.06)


@pytest.mark.parametrize("curve", [BATCHING, ALONE], ids=["batching", "alone"])
@pytest.mark.parametrize("images", [2, 6])
def test_images_of_a_request_come_together(curve: dict[int, float], images: int) -> None:
    status = loaded(6, curve)
    ask = asked(status, images=images)
    known = table(status, ask)
    for n in (1, 50):  # played, not read between
        ends_s = played(status, ask, 0.0, n)
        assert read(known, known.done_s, 0.0, n) == pytest.approx(ends_s)
    wrong = []
    for n in range(3, 50, 5):
        ends_s = played(status, ask, 0.0, n)
        wrong.append(abs(read(known, known.done_s, 0.0, n) - ends_s) / ends_s)
    assert np.median(wrong) < 0.1


# ---------------------------------------------------------------------------- plans


def three(cloud_held: int = 0) -> View:
    status = loaded(cloud_held, BATCHING)
    edge = replace(stage("tower", 0.2, encode_s=0.03, decode_s=0.05), emulated=True)
    device = replace(stage("phone", 0.4, encode_s=0.04, decode_s=0.08), emulated=True)
    cloud = replace(status, guiding="embedded", emulated=False)
    three_s = [replace(one, reads_ahead=True) for one in (device, edge, cloud)]
    seen = view(*three_s, bytes_per_s=1e5, delay_s=0.02)
    sizes = tuple(1_000 * (k + 1) for k in range(51))
    return replace(seen, packet_bytes=sizes)


def finish_s(plan: str, seen: View, images: int = 1) -> float:
    parts = [part.split(":") for part in plan.split(",")]
    steps = [np.array([int(n)]) for _, n in parts]
    asked = request(steps=sum(int(n) for _, n in parts), images=images, deadline_s=60.0)
    names = [name for name, _ in parts]
    tables = Tables(asked, seen)
    return float(predict(names, steps, [False] * len(names), images, tables, seen)[0])


def test_a_plan_over_idle_stages_by_hand() -> None:
    seen = three()
    back_s, on_s = 0.04 + 11_000 / 5e4, 0.02 + 19_000 / 1e5  # the way back is half as good
    edge_s, device_s, cloud_s = 0.03 + 10 * 0.2, 8 * 0.4, 2 * 0.06 + 0.05
    assert finish_s("tower:10,phone:8,hall:2", seen) == pytest.approx(
        edge_s + back_s + device_s + on_s + cloud_s
    )


def test_images_come_to_a_plans_stages_when_the_one_before_lets_them_go() -> None:
    seen, plan = three(), Plan.parse("tower:10,phone:8,hall:2")
    one = request(steps=20, deadline_s=60.0)
    phone_s = 0.03 + 10 * 0.2 + 0.04 + 11_000 / 5e4
    hall_s = phone_s + 8 * 0.4 + 0.02 + 19_000 / 1e5
    comes_s = [by_image[0] for by_image in arrivals(plan, one, seen)]
    assert comes_s == pytest.approx([0.0, phone_s, hall_s])
    assert arrivals(Plan.parse("hall:20"), one, seen) == ((0.0,),)


def test_images_come_one_after_another_from_where_they_are_made_so() -> None:
    seen, plan = three(), Plan.parse("tower:5,phone:5")
    first, second = arrivals(plan, request(steps=10, images=4, deadline_s=60.0), seen)
    assert first == (0.0,) * 4
    each_s = np.diff(second)
    assert each_s == pytest.approx([each_s[0]] * 3)
    assert second[0] > 0.03 + 5 * 0.2
    by_hand = 4 * (0.03 + 5 * 0.2) + 0.04 + 6_000 / 5e4
    assert second[-1] == pytest.approx(by_hand, rel=0.05)


def test_a_span_s_own_guidance_says_how_long_it_takes_before_it_lets_go() -> None:
    """Guided, a step on the phone is two rows."""
    seen = view(stage("phone", 0.4, guided_s=0.7), stage("hall", 0.05))
    on, off = (
        arrivals(Plan.parse(f"phone:10@{guidance},hall:10"), request(), seen)[1][0]
        for guidance in (3, 1)
    )
    assert on - off == pytest.approx(10 * 0.3)


def test_a_later_stage_works_its_load_off_before_the_latent_comes() -> None:
    idle, busy = three(0), three(8)
    late = finish_s("tower:5,hall:15", busy) - finish_s("tower:5,hall:15", idle)
    later = finish_s("tower:15,hall:5", busy) - finish_s("tower:15,hall:5", idle)
    assert finish_s("hall:20", busy) > finish_s("hall:20", idle) + 0.5
    assert later < late


def test_one_stage_works_on_an_image_while_the_next_one_works_on_the_one_before() -> None:
    """Four images, one by one: the slower stage decides, the other one's last image follows."""
    seen = three()
    by_hand = 0.03 + 5 * 0.2 + 0.04 + 10_500 / 5e4 + 4 * (0.04 + 5 * 0.4 + 0.08)
    assert finish_s("tower:5,phone:5", seen, images=4) == pytest.approx(by_hand, rel=0.1)


@loads
def test_a_text_that_comes_ahead_is_encoded_where_there_is_time(
    curve: dict[int, float], held: int
) -> None:
    """And what is read is what is played, also while it is being encoded."""
    status = loaded(held, curve, seed=3)
    ask = asked(status, age_s=0.125)
    known = table(status, ask)
    idle_s, alone_s = known.idle_s, 20 * curve[ask.rows] + 0.05
    for later_s, waits_s in ((0.0, 0.03), (0.01, 0.02), (0.03, 0.0), (0.5, 0.0)):
        told_s = read(known, known.done_s, idle_s + later_s, 20)
        assert told_s == pytest.approx(idle_s + later_s + waits_s + alone_s)
        really_s = played(status, ask, 0.125 + idle_s + later_s, 20)
        assert told_s == pytest.approx(really_s - 0.125)


def test_who_comes_while_a_text_is_encoded_ahead_waits_for_it() -> None:
    """Known to who asks for the text, as that of all others."""
    coming = Held("other", 0, 5, 1, CELLS, 0.0, True, True, arrives_s=1.0)
    status = replace(loaded(0, ALONE), encode_s=0.4, held=(coming,))
    forecasts = Forecasts(status, Ask(CELLS, 1, 20, due_s=12.0, age_s=0.75, ahead=True), ())
    assert forecasts.without.done_s == pytest.approx([1.0 + 0.4 + 0.5 + 0.05])
    assert forecasts.run(3.5, 20).done_s == pytest.approx(
        [1.15 + 0.4 + 0.5 + 0.05, 3.5 + 2.0 + 0.05]
    )


def test_many_plans_at_once_are_as_each_alone() -> None:
    seen, asked = three(8), request(steps=20, deadline_s=60.0)
    first = np.arange(1, 20)
    tables = Tables(asked, seen)
    every = predict(("tower", "hall"), (first, 20 - first), [False] * 2, 1, tables, seen)
    for k, n in enumerate(first):
        assert every[k] == pytest.approx(finish_s(f"tower:{n},hall:{20 - n}", seen))


def test_tables_are_made_once_for_requests_that_are_alike() -> None:
    seen = three(3)
    one, other = Tables(request(), seen), Tables(request(seed=7, prompt="another"), seen)
    assert one.of("hall", False, 1) is other.of("hall", False, 1)
    older = Tables(request(), replace(seen, age_s={"tower": 0.5}))
    assert older.of("hall", False, 1) is one.of("hall", False, 1)
    assert older.of("tower", False, 1) is not one.of("tower", False, 1)
    tower = seen.stages["tower"]
    assert course(tower) is course(tower) is not course(replace(tower))
    anew = replace(seen, stages={n: replace(s) for n, s in seen.stages.items()})
    assert Tables(request(), anew).of("hall", False, 1) is not one.of("hall", False, 1)
