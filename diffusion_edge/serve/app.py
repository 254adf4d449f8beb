"""The Serve application: an ingress over one deployment per stage."""

from __future__ import annotations

from typing import Any

import ray
from ray import serve
from ray.serve import Application

from diffusion_edge.config import Settings, read_settings
from diffusion_edge.families.card import load_card
from diffusion_edge.places import family_folder
from diffusion_edge.serve.ingress import Ingress
from diffusion_edge.serve.machine import Machine, completed
from diffusion_edge.serve.names import check_names, located
from diffusion_edge.serve.placement import actor_options, await_nodes
from diffusion_edge.serve.stage import Stage

# A request stays with its first stage until its last one is done, so the bound on what a replica
# holds is its own queue's `capacity`, not Serve's.
MANY = 100_000


def build(args: dict[str, Any]) -> Application:
    """The application of a config's `args`; PlacementError if no node can hold a stage, ConfigError
    for a name that is not known.

    Stages that the config leaves out share what Ray says that its nodes have.
    """
    settings = read_settings(args)
    card = load_card(family_folder(settings.family))
    check_names(settings, card)
    settings = located(completed(settings, card, Machine.of(ray.nodes())))
    await_nodes(settings.stages, settings.placement_timeout_s, ray.nodes)
    return application(settings)


def application(settings: Settings) -> Application:
    stages = {name: _stage(name, settings) for name in settings.stages}
    ingress = serve.deployment(Ingress).options(
        name="ingress",
        max_ongoing_requests=MANY,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        ray_actor_options={"num_cpus": 0.0},
        max_constructor_retry_count=3,
    )
    return ingress.bind(settings, stages)


def _stage(name: str, settings: Settings) -> Application:
    deployment = serve.deployment(Stage).options(
        name=name,
        max_ongoing_requests=MANY,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
        ray_actor_options=actor_options(settings.stages[name]),
        # The board asks for the status several times a second.
        logging_config={"enable_access_log": False},
        max_constructor_retry_count=3,
    )
    return deployment.bind(name, settings)
