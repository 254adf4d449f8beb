"""A burst that is decided one after another, against the best split that a search finds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from diffusion_edge.bench.routing.live import Wanted
from diffusion_edge.bench.routing.offline import played
from diffusion_edge.bench.routing.server import LOCAL
from diffusion_edge.bench.routing.split import (
    BLIND,
    OFFLINE,
    PATIENCE,
    Burst,
    burst,
    decided,
    over_best,
    splits,
)
from diffusion_edge.config import load_config
from diffusion_edge.places import REPOSITORY
from diffusion_edge.plan import Plan
from diffusion_edge.routing.quality import QualityTable
from tests.routing.views import stage, view

QUALITY = QualityTable.read(REPOSITORY / "stage_models" / "shapes" / "quality.json")
WANTED = Wanted(steps=20, deadline_s=100.0, quality_floor=0.9)


def of(count: int, replicas: int) -> Burst:
    bound = partial(QUALITY.bound, size=(64, 64))
    return burst(load_config(LOCAL).settings, bound, WANTED, replicas, count)


def test_replicas_have_the_links_of_their_stages_and_places_for_all() -> None:
    made = of(40, 2)
    assert sorted(made.view.stages) == [
        f"{t}-{k}" for t in ("cloud", "device", "edge") for k in (0, 1)
    ]
    assert {status.capacity for status in made.view.stages.values()} == {40}
    links = made.view.links
    assert links["device-0", "cloud-1"] == links["device-1", "cloud-0"]
    assert ("edge-0", "edge-1") not in links
    assert {span.stage for plan in made.good for span in plan.spans} <= set(made.replicas)


def test_every_decision_knows_those_before_it() -> None:
    """Premises: two of each stage that are alike, and no time to lose."""
    choices = decided("earliest", of(6, 2), QUALITY)
    first = {choice.plan.spans[0].stage for choice in choices[:2]}
    assert len(first) == 2
    assert choices[-1].predicted_s > choices[0].predicted_s


def test_plans_that_meet_halfway_are_played_until_nobody_comes_at_another_time() -> None:
    """Each stage waits for the other one's first steps: in whatever order they are played."""
    seen = view(stage("tower", 0.2), stage("hall", 0.1))
    seen = replace(
        seen, links={pair: replace(link, delay_s=1.0) for pair, link in seen.links.items()}
    )
    plans = [Plan.parse("tower:4,hall:6"), Plan.parse("hall:4,tower:6"), Plan.parse("hall:10")]
    wanted = Wanted(steps=10, deadline_s=99.0, quality_floor=0.0)
    one, other = (
        played(plans, order, wanted, seen) for order in (("tower", "hall"), ("hall", "tower"))
    )
    assert one.done_s == pytest.approx(other.done_s)
    assert one.done_s[0] >= 0.8 + 1.0 + 0.6
    assert one.done_s[1] >= 0.4 + 1.0 + 1.2


def test_no_policy_is_better_than_the_search_which_is_better_than_whole_pictures_in_turn() -> None:
    found = list(splits(of(12, 2), QUALITY, seed=1, tries=60))
    assert [(s.by, s.patience) for s in found] == [
        *((name, patience) for patience in PATIENCE for name in ("elastic", *BLIND)),
        (OFFLINE, 0.0),
    ]
    over = {(s.by, s.patience): over_best(found, s) for s in found}
    assert min(over.values()) == over[OFFLINE, 0.0] == 1.0
    assert over["in-turn", 1.1] > 1.05
    by_patience = {s.patience: s for s in found if s.by == "elastic"}
    assert by_patience[2.0].cost < by_patience[1.1].cost
    assert (by_patience[2.0].in_time, by_patience[0.1].promised) == (12, 0)
