"""Throttling an emulated link over HTTP: who is told, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from diffusion_edge.api.http import create_app
from diffusion_edge.api.service import Service, Throttle
from diffusion_edge.config import load_config
from diffusion_edge.emulation import LinkConfig
from diffusion_edge.errors import StageLost
from tests.api.fakes import service
from tests.api.test_http import post, refused
from tests.serve.live import EMULATED

PATH = "/v1/throttle"
GOOD = {"between": ["hall", "phone"], "factor": 0.1}


CONFIG = load_config(EMULATED).settings


def serving(throttle: Throttle | None, emulated: int = 3) -> Service:
    """So many of three links are emulated."""
    links = [
        LinkConfig(between=link.between, bytes_per_s=1e7, emulate=number < emulated)
        for number, link in enumerate(CONFIG.links)
    ]
    return service(config=CONFIG.model_copy(update={"links": links}), throttle=throttle)


class Stages:
    """Keeps what they are told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, float, bool]] = []

    async def throttle(self, source: str, target: str, factor: float, restart: bool) -> None:
        self.told.append((source, target, factor, restart))


async def asked(body: Any, emulated: int = 3) -> tuple[httpx.Response, Stages]:
    stages = Stages()
    return await post(body, serving(stages.throttle, emulated), PATH), stages


@pytest.mark.parametrize("restart", [False, True])
async def test_both_ends_are_told(restart: bool) -> None:
    response, stages = await asked(GOOD | {"restart": restart})
    assert response.status_code == 200, response.text
    assert response.json() == {
        "object": "throttle",
        "between": ["phone", "hall"],
        "factor": 0.1,
        "restart": restart,
        "emulated": True,
    }
    assert stages.told == [("phone", "hall", 0.1, restart), ("hall", "phone", 0.1, restart)]


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"between": ["hall", "attic"]}, "between", "no emulated link between 'hall' and"),
        ({"between": ["hall", "hall"]}, "between", "those between phone and tower, tower and"),
        ({"between": ["hall"]}, "between.1", "is missing"),
        ({"factor": 0}, "factor", "greater than or equal to 0.001"),
        ({"factor": 1e9}, "factor", "less than or equal to 1000"),
        ({"factor": "slow"}, "factor", "valid number"),
        ({"factr": 1}, "factr", "did you mean 'factor'?"),
        ({"restart": 1}, "restart", "valid boolean"),
    ],
    ids=str,
)
async def test_what_is_wrong_is_told_and_nothing_changes(
    changes: dict[str, Any], param: str, said: str
) -> None:
    response, stages = await asked(GOOD | changes)
    error = refused(response)
    assert (response.status_code, error["param"]) == (400, param)
    assert said in error["message"]
    assert stages.told == []


async def test_a_body_that_is_no_object_is_told_what_one_looks_like() -> None:
    response, _ = await asked(b"[]")
    assert '{"between": ["device", "cloud"], "factor": 0.1}' in refused(response)["message"]


async def test_real_links_cannot_be_throttled() -> None:
    """Where none is emulated there is no such endpoint; where some are, only these."""
    response, stages = await asked(GOOD, emulated=0)
    assert (response.status_code, refused(response)["code"]) == (404, "not_found")
    response, stages = await asked(GOOD, emulated=1)
    assert response.status_code == 400
    assert "those between phone and tower" in refused(response)["message"]
    assert stages.told == []


async def test_a_stage_that_is_lost_is_told() -> None:
    async def lost(*_: Any) -> None:
        raise StageLost("the stage 'phone' was lost", stage="phone")

    assert (await post(GOOD, serving(lost), PATH)).status_code == 503


def test_the_endpoint_is_described() -> None:
    def paths(made: Service) -> set[str]:
        return set(create_app(made).openapi()["paths"])

    assert paths(serving(Stages().throttle)) - paths(serving(None)) == {PATH}
