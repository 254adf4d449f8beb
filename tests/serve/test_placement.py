"""What nodes lack to hold a stage."""

from __future__ import annotations

from typing import Any

import pytest

from diffusion_edge.config import StageConfig, load_config
from diffusion_edge.errors import PlacementError
from diffusion_edge.places import REPOSITORY
from diffusion_edge.serve.placement import actor_options, await_nodes, has_room, missing
from tests.fakes import FakeClock

KEY = "diffusion-edge.io/cloud"
STAGES = {"hall": StageConfig(tier="cloud", model="cloud", resource=KEY, label=KEY, num_cpus=0.5)}


def node(label: bool = True, resource: bool = True, cpus: float = 2.0, alive: bool = True) -> Any:
    return {
        "Alive": alive,
        "Resources": {"CPU": cpus} | ({KEY: 1.0} if resource else {}),
        "Labels": {KEY: "true"} if label else {},
    }


def test_both_keys_place_a_stage() -> None:
    assert actor_options(STAGES["hall"]) == {
        "num_cpus": 0.5,
        "resources": {KEY: 0.01},
        "label_selector": {KEY: "true"},
    }
    stages = load_config(REPOSITORY / "serve_configs" / "lan.yaml").settings.stages
    keys = {f"diffusion-edge.io/{tier}" for tier in ("device", "edge", "cloud")}
    assert {stage.resource for stage in stages.values()} == keys
    assert {stage.label for stage in stages.values()} == keys


@pytest.mark.parametrize(
    ("nodes", "lacks"),
    [
        ([node(label=False)], f"the label {KEY}=true"),
        ([node(resource=False)], f"the resource {KEY}"),
        ([node(label=False, resource=False), node(cpus=0.1)], "0.5 CPUs"),
        ([node(alive=False)], "any live node"),
        ([], "any live node"),
    ],
)
def test_the_least_that_is_missing_is_named(nodes: list[Any], lacks: str) -> None:
    assert missing(STAGES, nodes) == {"hall": lacks}


def test_a_share_of_a_gpu_is_counted() -> None:
    stages = {"hall": StageConfig(tier="cloud", model="cloud", num_gpus=0.5)}
    assert actor_options(stages["hall"]) == {"num_cpus": 0.1, "num_gpus": 0.5}
    without, fitting = node(), node()
    fitting["Resources"] |= {"GPU": 1.0}
    assert missing(stages, [without]) == {"hall": "0.5 GPUs"}
    assert missing(stages, [without, fitting]) == {}


def test_one_fitting_node_is_enough() -> None:
    assert missing(STAGES, [node(label=False), node()]) == {}


def test_nodes_may_come_late_but_not_too_late() -> None:
    clock = FakeClock()
    nodes = [node(label=False)]

    def arrives(seconds: float) -> None:
        clock.advance(seconds)
        if clock.now() > 1010:
            nodes.append(node())

    await_nodes(STAGES, 60.0, lambda: nodes, arrives, clock.now)
    assert clock.now() < 1012
    with pytest.raises(PlacementError, match=f"'hall' lacks the label {KEY}=true"):
        await_nodes(STAGES, 60.0, lambda: nodes[:1], clock.advance, clock.now)
    assert clock.now() < 1072.5


def test_room_is_what_is_free_of_everything_a_stage_needs() -> None:
    stage = StageConfig(tier="edge", model="edge", num_cpus=0.5, resource="tier/edge")
    assert has_room(stage, {"CPU": 0.5, "tier/edge": 1.0})
    assert not has_room(stage, {"CPU": 0.4, "tier/edge": 1.0})
    assert not has_room(stage, {"CPU": 0.5})
    assert not has_room(stage.model_copy(update={"num_gpus": 0.5}), {"CPU": 1.0, "tier/edge": 1.0})
    assert has_room(None, {})
