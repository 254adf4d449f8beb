"""Views of full size, drawn, and that decisions on them are timed."""

from __future__ import annotations

import random

from diffusion_edge.bench.routing.decision import REPLICAS, drawn_view, measured
from diffusion_edge.bench.routing.server import LOCAL
from diffusion_edge.config import load_config
from diffusion_edge.places import REPOSITORY
from diffusion_edge.routing.quality import QualityTable

SETTINGS = load_config(LOCAL).settings


def test_views_have_all_tiers_and_something_to_do() -> None:
    view = drawn_view(SETTINGS, random.Random(1))
    tiers = [status.tier for status in view.stages.values()]
    assert {tier: tiers.count(tier) for tier in tiers} == dict.fromkeys(SETTINGS.stages, REPLICAS)
    assert len({status.seconds_per_step(True, 64) for status in view.stages.values()}) == 24
    assert sum(len(status.held) for status in view.stages.values()) > 10
    assert len(view.links) == 24 * 23


def test_decisions_and_tables_are_timed() -> None:
    quality = QualityTable.read(REPOSITORY / "stage_models" / "shapes" / "quality.json")
    found = measured(SETTINGS, quality, views=1, seed=3)
    assert len(found.decide_s) == 1
    assert len(found.table_s) == 3
    assert min(found.table_s) > 0
