"""A config without stages: what a machine makes of it."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_edge.config import Settings, load_config
from diffusion_edge.errors import ConfigError
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.places import REPOSITORY
from diffusion_edge.serve.machine import Machine, completed, gpu_share
from diffusion_edge.view import Link
from tests.api.fakes import CARD, settings

MODELS = {"tiny": "device", "fair": "edge", "whole": "cloud"}
NAMED = FamilyCard.model_validate(
    CARD.model_dump()
    | {"stages": {name: {"folder": f"{name}-1", "tier": tier} for name, tier in MODELS.items()}}
)
"""Models are not called as tiers are; a stage that nobody writes is called as its model."""
OPEN = load_config(REPOSITORY / "serve_configs" / "machine.yaml").settings


def test_there_is_a_stage_for_every_model_of_the_card() -> None:
    stages = completed(OPEN, NAMED, Machine(cpus=7)).stages
    assert list(stages) == list(MODELS)
    for name, stage in stages.items():
        assert (stage.model, stage.tier) == (name, MODELS[name])
        assert stage.label == stage.resource == f"diffusion-edge.io/{stage.tier}"
        assert (stage.threads, stage.num_gpus, stage.device, stage.dtype) == (2, 0.0, "auto", None)


def test_two_models_may_share_a_tier() -> None:
    stages = {name: {"folder": name, "tier": "cloud"} for name in ("small", "large")}
    card = FamilyCard.model_validate(CARD.model_dump() | {"stages": stages})
    made = completed(OPEN, card, Machine(cpus=1, gpus=1))
    assert {name: stage.num_gpus for name, stage in made.stages.items()} == {
        "small": 0.5,
        "large": 0.5,
    }
    assert set(made.link_map()) == {("small", "large"), ("large", "small")}


def test_all_pairs_are_linked_and_nothing_is_emulated() -> None:
    made = completed(OPEN, NAMED, Machine(cpus=2))
    assert set(made.link_map()) == set(permutations(MODELS, 2))
    assert set(made.link_map().values()) == {Link(1e9, 0.0)}
    assert not made.emulates
    assert made.hop_timeout_s == OPEN.hop_timeout_s
    assert made.defaults == OPEN.defaults


def test_stages_that_are_written_stay_as_they_are() -> None:
    written = settings()
    assert completed(written, CARD, Machine(cpus=8, gpus=8)) is written


def test_what_does_not_agree_with_the_stages_is_told() -> None:
    cheap = OPEN.model_copy(update={"prices_per_s": {"cloud": 1.0}})
    with pytest.raises(ConfigError, match="no price for 'device', the tier of the stage 'tiny'"):
        completed(cheap, NAMED, Machine(cpus=2))
    planned = Settings.model_validate({"family": "x", "plan": "whol:4"})
    with pytest.raises(ConfigError, match="no stage 'whol'; did you mean 'whole'"):
        completed(planned, NAMED, Machine(cpus=2))


@given(stages=st.integers(1, 12), gpus=st.integers(1, 16))
def test_shares_of_gpus_are_equal_and_fit(stages: int, gpus: int) -> None:
    """Each stage on one GPU, first come first served; a whole GPU where there are enough."""
    share = gpu_share(stages, gpus)
    free = [1.0] * gpus
    for _ in range(stages):
        fullest = min((g for g in range(gpus) if free[g] + 1e-9 >= share), key=free.__getitem__)
        free[fullest] -= share
    assert share * stages <= gpus
    assert (share == 1.0) == (gpus >= stages)


def test_no_gpus_no_shares() -> None:
    assert gpu_share(3, 0) == 0.0


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


def test_a_machine_is_what_rays_live_nodes_have() -> None:
    assert Machine.of([node(CPU=8, GPU=2)]) == Machine(8, 2)
    nodes = [node(CPU=8, GPU=2), node(CPU=4, GPU=1), node(alive=False, CPU=1, GPU=4)]
    assert Machine.of(nodes) == Machine(4, 3)
    assert Machine.of([node(GPU=1)]) == Machine(1, 1)
    assert Machine.of([]) == Machine(1, 0)
