"""What is told of an application that does not start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

from ray.serve.schema import ApplicationStatus

from diffusion_edge.errors import EdgeError, PlacementError
from diffusion_edge.serve.deploy import raise_if_hopeless

TRACEBACK = """The deployment failed to start 3 times in a row. This may be due to a problem
with its constructor or initial health check failing. Error:
ray.exceptions.RayTaskError(DoesNotFit): ray::ServeReplica:diffusion-edge:cloud
  File "pipeline.py", line 100, in load
diffusion_edge.errors.DoesNotFit: the stage 'cloud' needs 24.0 GB for its weights in float32
"""


def overview(status: ApplicationStatus, message: str, *deployments: str) -> Any:
    told = {str(i): SimpleNamespace(message=text) for i, text in enumerate(deployments)}
    return SimpleNamespace(status=status, message=message, deployments=told)


def test_an_error_of_ours_is_told_without_its_traceback() -> None:
    failed = overview(ApplicationStatus.DEPLOY_FAILED, "cloud failed", "", TRACEBACK)
    with pytest.raises(EdgeError) as caught:
        raise_if_hopeless(failed, 1.0, 60.0, lambda stage: False)
    assert caught.value.message == (
        "the stages could not be started: the stage 'cloud' needs 24.0 GB for its weights in "
        "float32"
    )


def test_any_other_failure_is_told_as_serve_tells_it() -> None:
    failed = overview(ApplicationStatus.DEPLOY_FAILED, "no such module \n", "")
    with pytest.raises(EdgeError, match=r"could not be started: no such module$"):
        raise_if_hopeless(failed, 1.0, 60.0, lambda stage: False)


def test_a_replica_without_room_is_waited_for_in_vain_only_so_long() -> None:
    waiting = overview(ApplicationStatus.DEPLOYING, "", "1 replica has yet to be scheduled")
    raise_if_hopeless(waiting, 59.0, 60.0, lambda stage: False)
    raise_if_hopeless(waiting, 61.0, 60.0, lambda stage: True)
    with pytest.raises(PlacementError, match="after 61 s no node has room"):
        raise_if_hopeless(waiting, 61.0, 60.0, lambda stage: stage != "0")
