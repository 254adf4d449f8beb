"""The server that the router is measured on: local.yaml at another scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diffusion_edge.bench.routing.command import following
from diffusion_edge.bench.routing.server import LOCAL, LOCAL_SCALE, configured, light
from diffusion_edge.config import load_config
from diffusion_edge.families.card import load_card
from diffusion_edge.places import REPOSITORY
from diffusion_edge.serve.names import check_names
from diffusion_edge.traces import read_rates

SHAPES = REPOSITORY / "stage_models" / "shapes"
PUBLISHED_S = {"device": 0.37 / 16, "edge": 0.034 / 4, "cloud": 0.0183}
BUS = Path("loadtest/traces/links/lte_bus_nyc.csv")


def written(tmp_path: Path, scale: float, **settings: Any) -> Path:
    path = tmp_path / "routing.yaml"
    path.write_text(json.dumps(configured(scale, SHAPES, 8123, settings)))
    return path


@pytest.mark.parametrize("scale", [LOCAL_SCALE, 2.5])
def test_stated_seconds_are_published_ones_times_the_scale(tmp_path: Path, scale: float) -> None:
    config = load_config(written(tmp_path, scale))
    as_shipped = load_config(LOCAL).settings
    assert config.http_options.port == 8123
    for name, stage in config.settings.stages.items():
        stated, shipped = stage.emulate, as_shipped.stages[name].emulate
        assert stated is not None
        assert shipped is not None
        assert stated.curve[1] == pytest.approx(PUBLISHED_S[name] * scale, rel=0.01)
        for rows, seconds in shipped.curve.items():
            assert stated.curve[rows] == pytest.approx(seconds * scale / LOCAL_SCALE)
        assert stated.encode_s == pytest.approx(shipped.encode_s * scale / LOCAL_SCALE)
        assert stated.decode_s == pytest.approx(shipped.decode_s * scale / LOCAL_SCALE)
    assert config.settings.links == as_shipped.links
    assert config.settings.emulate == as_shipped.emulate


def test_links_can_follow_another_trace_and_be_taken_as_stated(tmp_path: Path) -> None:
    links = following(BUS)
    path = written(tmp_path, 2.5, links=links, measure_links=False)
    settings = load_config(path).settings
    check_names(settings, load_card(SHAPES), path)
    assert not settings.measure_links
    mean = read_rates(REPOSITORY / BUS).mean
    for link in settings.links:
        if "device" in link.between:
            assert (link.trace, link.bytes_per_s) == (str(BUS), pytest.approx(mean, abs=0.1))
        else:
            assert link.trace is None


def test_the_light_family_is_the_same_with_the_smallest_weights() -> None:
    card = load_card(SHAPES)
    with light(card) as folder:
        same = load_card(folder)
        device = card.folder("device").resolve()
        assert {same.folder(stage).resolve() for stage in same.stages} == {device}
        assert same.latent_space() == card.latent_space()
        assert {n: s.tier for n, s in same.stages.items()} == {
            n: s.tier for n, s in card.stages.items()
        }
        assert (same.name, same.defaults, same.sizes) == (card.name, card.defaults, card.sizes)
        assert (folder / "quality.json").read_bytes() == (SHAPES / "quality.json").read_bytes()
    assert not folder.exists()
