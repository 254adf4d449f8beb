"""Whether the nodes of a Ray can hold the stages, and what is missing if not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusion_edge.config import StageConfig
from diffusion_edge.errors import PlacementError

# A share of the node's custom resource: enough to be counted, small enough for many stages.
SHARE = 0.01
Node = Mapping[str, Any]


def actor_options(stage: StageConfig) -> dict[str, Any]:
    """Ray's options for a replica of this stage; both keys of the node have to fit."""
    options: dict[str, Any] = {"num_cpus": stage.num_cpus}
    if stage.num_gpus:
        options["num_gpus"] = stage.num_gpus
    if stage.resource:
        options["resources"] = {stage.resource: SHARE}
    if stage.label:
        options["label_selector"] = {stage.label: "true"}
    return options


def lacks(stage: StageConfig, node: Node) -> list[str]:
    """What a node (an entry of `ray.nodes()`) lacks to hold the stage."""
    resources, labels = node["Resources"], node.get("Labels", {})
    missing = []
    if stage.label and labels.get(stage.label) != "true":
        missing.append(f"the label {stage.label}=true")
    if stage.resource and resources.get(stage.resource, 0.0) < SHARE:
        missing.append(f"the resource {stage.resource}")
    if resources.get("CPU", 0.0) < stage.num_cpus:
        missing.append(f"{stage.num_cpus:g} CPUs")
    if resources.get("GPU", 0.0) < stage.num_gpus:
        missing.append(f"{stage.num_gpus:g} GPUs")
    return missing


def has_room(stage: StageConfig | None, free: Mapping[str, float]) -> bool:
    """Whether what is free in a cluster could hold the stage; None is the ingress, which needs
    nothing."""
    if stage is None:
        return True
    needed = {"CPU": stage.num_cpus, "GPU": stage.num_gpus}
    if stage.resource:
        needed[stage.resource] = SHARE
    return all(free.get(name, 0.0) >= amount for name, amount in needed.items())


def missing(stages: Mapping[str, StageConfig], nodes: Sequence[Node]) -> dict[str, str]:
    """By stage that no live node can hold: the least that some node lacks."""
    alive = [node for node in nodes if node["Alive"]]
    found = {}
    for name, stage in stages.items():
        shortest = min((lacks(stage, node) for node in alive), key=len, default=["any live node"])
        if shortest:
            found[name] = " and ".join(shortest)
    return found


def await_nodes(
    stages: Mapping[str, StageConfig],
    timeout_s: float,
    nodes: Callable[[], Sequence[Node]],
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Returns when every stage has a node that can hold it; PlacementError after `timeout_s`."""
    give_up = now() + timeout_s
    while lacking := missing(stages, nodes()):
        if now() >= give_up:
            alive = sum(bool(node["Alive"]) for node in nodes())
            parts = [f"the stage {name!r} lacks {what}" for name, what in lacking.items()]
            raise PlacementError(
                f"no node can hold a stage after {timeout_s:g} s with {alive} nodes alive: "
                + "; ".join(parts)
            )
        sleep(min(0.5, max(give_up - now(), 0.0)))
