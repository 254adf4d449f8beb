"""The policies that a router which weighs others has to beat: done first, and in turn."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from diffusion_edge.errors import NoPlan, QueueFull
from diffusion_edge.routing.cost import models
from diffusion_edge.routing.finish import Tables, predict
from diffusion_edge.routing.policies import policy
from diffusion_edge.view import Held, View

from .brute import bundles
from .views import CELLS, request, row, stage, symmetric, table, view

earliest, in_turn = policy("earliest"), policy("in-turn")


def holding(name: str, step_s: float, images: int, steps: int = 20) -> View:
    """Of one stage that takes samples one by one and has so many to do."""
    held = tuple(
        Held(f"r{k}", 0, steps, 1, CELLS, float(k), encodes=False, decodes=False)
        for k in range(images)
    )
    status = replace(stage(name, step_s), emulated=True, held=held, queued=images)
    return view(status)


def three(cloud: int = 0, edge: int = 0) -> View:
    """The cloud is the fastest. They hold so many images of 20 steps each."""
    parts = holding("hall", 0.05, cloud), holding("tower", 0.1, edge), holding("phone", 0.2, 0)
    stages = [status for seen in parts for status in seen.stages.values()]
    return view(*stages)


# ---------------------------------------------------------------------------- earliest


def test_it_is_done_first_of_all_plans_above_the_floor() -> None:
    quality = symmetric()
    for cloud, edge in ((0, 0), (2, 0), (3, 1), (6, 6)):
        seen, asked = three(cloud, edge), request(quality_floor=0.75, deadline_s=60.0)
        choice = earliest(asked, seen, quality)
        tables, ends_s = Tables(asked, seen), []
        for b in bundles(("hall", "phone", "tower"), 20, seen.links):
            guided = [True] * len(b.stages)
            every = predict(b.stages, b.steps, guided, 1, tables, seen)
            good = quality.bound_all(models(b.stages, seen), b.steps, (64, 64)) >= 0.75
            ends_s += every[good].tolist()
        assert choice.predicted_s == pytest.approx(min(ends_s))
        assert choice.quality >= 0.75
        assert choice.runner_up_s is not None
        assert choice.runner_up_s >= choice.predicted_s


def test_it_leaves_the_fast_stage_by_degrees_as_that_fills() -> None:
    asked, quality = request(quality_floor=0.1, deadline_s=60.0), symmetric()

    def cloud_steps(images: int) -> int:
        spans = earliest(asked, three(images), quality).plan.spans
        return sum(span.steps for span in spans if span.stage == "hall")

    counts = [cloud_steps(images) for images in range(6)]
    assert counts[0] == 20
    assert counts[-1] == 0
    assert all(more >= fewer for more, fewer in pairwise(counts))


def test_price_and_deadline_do_not_matter_to_it() -> None:
    quality = symmetric()
    free = replace(three(), price_per_s={"device": 9.0, "edge": 9.0, "cloud": 0.0})
    dear = replace(three(), price_per_s={"device": 0.0, "edge": 0.0, "cloud": 9.0})
    plans = {
        str(earliest(request(deadline_s=deadline_s), seen, quality).plan)
        for seen in (free, dear)
        for deadline_s in (0.5, 60.0)
    }
    assert plans == {"hall:20"}
    late = earliest(request(deadline_s=0.5), three(), quality)
    assert late.reason.endswith("predicted to miss the deadline of 0.5 s")


def test_nothing_above_the_floor_is_refused() -> None:
    with pytest.raises(NoPlan, match=r"the best of them reaches 0\.7"):
        earliest(request(quality_floor=0.9), holding("tower", 0.1, 0), symmetric())


# ---------------------------------------------------------------------------- in turn


def turns(seen: View, floor: float, count: int = 6) -> list[str]:
    asked = request(quality_floor=floor)
    return [
        str(in_turn(asked, replace(seen, turn=turn), symmetric()).plan) for turn in range(count)
    ]


def test_stages_above_the_floor_take_turns_whatever_they_hold() -> None:
    for seen in (three(), three(cloud=9)):
        assert turns(seen, 0.6) == ["hall:20", "tower:20"] * 3
        assert turns(seen, 0.1, 3) == ["hall:20", "phone:20", "tower:20"]
        assert turns(seen, 0.9, 2) == ["hall:20"] * 2


def test_a_full_stage_gives_its_turn_to_the_next() -> None:
    assert turns(three(cloud=32), 0.6, 3) == ["tower:20"] * 3
    with pytest.raises(QueueFull):
        turns(holding("hall", 0.1, 32), 0.6)


def test_it_says_what_it_predicts() -> None:
    choice = in_turn(request(deadline_s=2.5), replace(three(cloud=2), turn=0), symmetric())
    assert choice.predicted_s == pytest.approx(3 * 20 * 0.05)
    assert choice.cost == pytest.approx(20 * 0.05 * 4.0)
    assert choice.reason == (
        "its turn of 1 stages above the floor 0.9; predicted to miss the deadline of 2.5 s"
    )


def test_no_stage_alone_above_the_floor_is_refused() -> None:
    with pytest.raises(NoPlan, match=r"no stage alone .* 0\.9; the best of tower reaches 0\.7"):
        in_turn(request(quality_floor=0.9), holding("tower", 0.1, 0), symmetric())


def test_a_stage_is_known_to_the_table_by_its_model() -> None:
    status = replace(stage("hall", 0.05), stage="fast", emulated=True)
    quality = table(row(1.0, cloud=20))
    seen = view(status)
    assert str(in_turn(request(), seen, quality).plan) == "fast:20"
