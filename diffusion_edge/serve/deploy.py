"""The application on a Ray that is connected: put it there, wait for it, let it finish."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

import httpx
import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from diffusion_edge.config import ServeConfig
from diffusion_edge.errors import EdgeError, PlacementError
from diffusion_edge.serve.app import build
from diffusion_edge.serve.placement import has_room

POLL_S = 0.5  # a status costs the controller some ten milliseconds
# The last answers are still on their way from Serve's proxy when the ingress has none left.
PROXY_GRACE_S = 0.3
_OURS = re.compile(r"diffusion_edge\.errors\.\w+: (.+)")
_FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


def deploy(config: ServeConfig) -> None:
    """Returns when every replica is up and warm. Raises PlacementError, or what Serve says."""
    began, settings = time.monotonic(), config.settings
    serve.start(
        proxy_location=config.proxy_location,
        http_options=config.http_options.model_dump(),
        logging_config=config.logging_config
        or {"log_level": "WARNING", "enable_access_log": False},
    )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    name = config.application.name
    app = build(settings.model_dump(exclude_unset=True))
    target = serve.RunTarget(app, name=name, route_prefix=config.application.route_prefix)
    serve.run_many(
        [target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
    )
    while True:
        overview = serve.status().applications.get(name)
        if overview and overview.status == ApplicationStatus.RUNNING:
            return
        waited_s = time.monotonic() - began
        if overview:
            raise_if_hopeless(
                overview,
                waited_s,
                settings.placement_timeout_s,
                lambda stage: has_room(settings.stages.get(stage), ray.available_resources()),
            )
        if waited_s > settings.start_timeout_s:
            raise EdgeError(
                f"the stages were not up within {settings.start_timeout_s:g} s; "
                "start_timeout_s of the config allows more"
            )
        time.sleep(POLL_S)


def raise_if_hopeless(
    overview: ApplicationStatusOverview,
    waited_s: float,
    placement_timeout_s: float,
    has_room: Callable[[str], bool],
) -> None:
    """Where there is room for a stage that is not up, its process is only slow to start."""
    if overview.status in _FAILED:
        raise EdgeError(f"the stages could not be started: {_reason(overview)}")
    unplaced = [
        deployment.message
        for name, deployment in overview.deployments.items()
        if "to be scheduled" in deployment.message and not has_room(name)
    ]
    if unplaced and waited_s > placement_timeout_s:
        raise PlacementError(f"after {waited_s:.0f} s no node has room: " + " ".join(unplaced))


def _reason(overview: ApplicationStatusOverview) -> str:
    """What a stage raised, if it was an error of ours; Serve gives tracebacks as text."""
    messages = [deployment.message for deployment in overview.deployments.values()]
    for message in (*messages, overview.message):
        ours = _OURS.findall(message)
        if ours:
            return str(ours[-1])
    return str(overview.message).strip()


def await_ready(url: str, timeout_s: float = 60.0) -> None:
    """Returns when `/ready` answers 200 through the real endpoint."""
    give_up = time.monotonic() + timeout_s
    said = "no answer"
    while time.monotonic() < give_up:
        try:
            answer = httpx.get(f"{url}/ready", timeout=5.0, trust_env=False)
        except httpx.TransportError as error:
            said = str(error)
        else:
            if answer.status_code == httpx.codes.OK:
                return
            said = answer.text
        time.sleep(0.05)
    raise EdgeError(f"the server at {url} was not ready within {timeout_s:g} s: {said}")


def drain(app_name: str, limit_s: float) -> None:
    """Lets running requests finish within the limit; the ingress refuses new ones, and ends what
    still runs then."""
    try:
        ingress = serve.get_app_handle(app_name)
        ingress.drain.remote(limit_s).result(timeout_s=limit_s + 5.0)
        time.sleep(PROXY_GRACE_S)
    except Exception as error:  # whatever is broken by now, the end is to come
        logging.getLogger(__name__).debug("not drained: %s", error)
