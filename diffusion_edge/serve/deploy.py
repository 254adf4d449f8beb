"""The application on a Ray that is connected: put it there, wait for it, let it finish."""

from __future__ import annotations

import logging
import time

import httpx
from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from diffusion_edge.config import ServeConfig
from diffusion_edge.errors import EdgeError, PlacementError
from diffusion_edge.serve.app import build

START_TIMEOUT_S = 300.0
POLL_S = 0.5  # a status costs the controller some ten milliseconds
# The last answers are still on their way from Serve's proxy when the ingress has none left.
PROXY_GRACE_S = 0.3
_FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


def deploy(config: ServeConfig) -> None:
    """Returns when every replica is up and warm. Raises PlacementError, or what Serve says."""
    began = time.monotonic()
    serve.start(
        proxy_location=config.proxy_location,
        http_options=config.http_options.model_dump(),
        logging_config=config.logging_config
        or {"log_level": "WARNING", "enable_access_log": False},
    )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    name = config.application.name
    app = build(config.settings.model_dump())
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
            _raise_if_hopeless(overview, waited_s, config.settings.placement_timeout_s)
        if waited_s > START_TIMEOUT_S:
            raise EdgeError(f"the stages were not up within {START_TIMEOUT_S:g} s")
        time.sleep(POLL_S)


def _raise_if_hopeless(
    overview: ApplicationStatusOverview, waited_s: float, placement_timeout_s: float
) -> None:
    if overview.status in _FAILED:
        raise EdgeError(f"the stages could not be started: {overview.message.strip()}")
    unplaced = [
        deployment.message
        for deployment in overview.deployments.values()
        if "to be scheduled" in deployment.message
    ]
    if unplaced and waited_s > placement_timeout_s:
        raise PlacementError(f"after {waited_s:.0f} s no node has room: " + " ".join(unplaced))


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
    """Lets running requests finish within the limit; the ingress refuses new ones."""
    try:
        ingress = serve.get_app_handle(app_name)
        ingress.drain.remote(limit_s).result(timeout_s=limit_s + 5.0)
        time.sleep(PROXY_GRACE_S)
    except Exception as error:  # whatever is broken by now, the end is to come
        logging.getLogger(__name__).debug("not drained: %s", error)
