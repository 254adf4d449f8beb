"""The API over real packets, workers and a tiny family, all in one process. No request is alone."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from diffusion_edge.api.board import Board
from diffusion_edge.api.carriage import carriage
from diffusion_edge.api.http import create_app
from diffusion_edge.api.service import Service
from diffusion_edge.config import Settings
from diffusion_edge.engine.stepper import Entry
from diffusion_edge.engine.worker import Worker
from diffusion_edge.families.card import load_card
from diffusion_edge.families.load import load_family
from diffusion_edge.packet import Packet, read
from diffusion_edge.request import Event, ImageRequest, Times
from diffusion_edge.routing.board import Carriage
from diffusion_edge.routing.quality import QualityTable
from diffusion_edge.sites.local import LocalTransport
from diffusion_edge.view import StageStatus
from tests.api.fakes import settings

pytestmark = pytest.mark.usefixtures("brief_warm_up")
PROMPT = {"prompt": "a red circle on a white background", "seed": 5}
BESIDE = {
    "prompt": "a blue square",
    "seed": 60,
    "num_inference_steps": 7,
    "solver": "ddim",
    "guidance_scale": 2,
    "diffusion_edge": {"plan": "hall:4,tower:3"},
}


def configured(family: Path) -> Settings:
    """Stages that hold five images each."""
    config = settings(family=str(family))
    stages = {n: stage.model_copy(update={"capacity": 5}) for n, stage in config.stages.items()}
    return config.model_copy(update={"stages": stages})


@pytest.fixture
async def workers(tiny_family: Path) -> AsyncIterator[dict[str, Worker]]:
    card, config = load_card(tiny_family), configured(tiny_family)
    made = {
        name: Worker(
            load_family(card, stage.model), stage=name, tier=stage.tier, capacity=stage.capacity
        )
        for name, stage in config.stages.items()
    }
    for worker in made.values():
        await worker.warm_up(16, "ddim")
    yield made
    for worker in made.values():
        worker.close()


@pytest.fixture
async def service(tiny_family: Path, workers: dict[str, Worker]) -> Service:
    card, config = load_card(tiny_family), configured(tiny_family)
    board = seen(workers, config, partial(carriage, card, None, 0.01))
    for name in workers:
        await board.ask_once(name)
    return Service(
        card=card,
        settings=config,
        quality=QualityTable.unknown(card.name, steps=card.defaults.steps),
        board=board,
        transport=LocalTransport(workers),
    )


@pytest.fixture
async def app(service: Service) -> FastAPI:
    return create_app(service)


@pytest.fixture
async def api(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


def seen(
    workers: dict[str, Worker], config: Settings, carried: Callable[[ImageRequest], Carriage]
) -> Board:
    """A board whose clock stands still, so that what was asked once stays fresh."""

    async def ask(worker: Worker) -> StageStatus:
        return worker.status()

    return Board(
        {name: partial(ask, worker) for name, worker in workers.items()},
        config.link_map(),
        config.prices_per_s,
        carried,
        now=lambda: 0.0,
    )


async def pictures(api: httpx.AsyncClient, **changes: Any) -> tuple[list[bytes], dict[str, Any]]:
    """Of a request that another one of another size runs beside, which gets what it asked for."""
    size = "16x16" if changes.get("size") == "32x32" else "32x32"
    asked, beside = await asyncio.gather(
        answered(api, **changes), answered(api, **BESIDE, size=size)
    )
    assert beside[0] == (await answered(api, **BESIDE, size=size))[0]
    assert beside[1]["plan"] == "hall:4,tower:3"
    return asked


async def answered(api: httpx.AsyncClient, **changes: Any) -> tuple[list[bytes], dict[str, Any]]:
    response = await api.post("/v1/images/generations", json=PROMPT | changes)
    assert response.status_code == 200, response.text
    body = response.json()
    found = []
    for item in body["data"]:
        with Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))) as image:
            found.append(image.tobytes())
    return found, body["diffusion_edge"]


async def test_a_cut_within_one_model_changes_no_pixel(api: httpx.AsyncClient) -> None:
    whole, ours = await pictures(api, diffusion_edge={"plan": "hall:10"})
    assert ours["images"][0]["hops"] == []
    cut, ours = await pictures(api, diffusion_edge={"plan": "hall:4,hall:6"})
    assert cut == whole
    assert len(ours["images"][0]["hops"]) == 1


async def test_stages_are_known_by_the_cells_of_what_was_asked_for(api: httpx.AsyncClient) -> None:
    for size, cells in (("16x16", 16), ("32x32", 64)):
        await pictures(api, size=size)
        assert (await api.post("/v1/plan", json=PROMPT | {"size": size})).json()["cells"] == cells


async def test_three_models_share_the_work(api: httpx.AsyncClient) -> None:
    mixed, ours = await pictures(api, diffusion_edge={"plan": "hall:4,tower:3,phone:3"})
    spans = ours["images"][0]["spans"]
    assert [(s["stage"], s["start"], s["stop"]) for s in spans] == [
        ("hall", 0, 4),
        ("tower", 4, 7),
        ("phone", 7, 10),
    ]
    assert all(hop["nbytes"] > 0 for hop in ours["images"][0]["hops"])
    again, _ = await pictures(api, diffusion_edge={"plan": "hall:4,tower:3,phone:3"})
    assert mixed == again
    assert mixed != (await pictures(api, diffusion_edge={"plan": "hall:10"}))[0]


@pytest.mark.parametrize("codec", ["bf16", "int8"])
async def test_a_codec_makes_hops_smaller_and_says_so(api: httpx.AsyncClient, codec: str) -> None:
    plan = {"plan": "hall:4,tower:3,hall:3"}
    exact, before = await pictures(api, diffusion_edge=plan)
    lossy, after = await pictures(api, diffusion_edge=plan | {"codec": codec})
    assert lossy != exact
    values = [(a - b) ** 2 for a, b in zip(lossy[0], exact[0], strict=True)]
    assert sum(values) / len(values) < 16  # a picture of the same thing still
    for smaller, larger in zip(
        after["images"][0]["hops"], before["images"][0]["hops"], strict=True
    ):
        assert (smaller["codec"], larger["codec"]) == (codec, "exact")
        assert smaller["nbytes"] < larger["nbytes"]


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "lms"])
async def test_a_hop_carries_what_was_predicted(api: httpx.AsyncClient, solver: str) -> None:
    """Also what the solver remembers of earlier steps, each as much as the latent: 1024 bytes."""
    asked = {"size": "32x32", "solver": solver, "diffusion_edge": {"plan": "hall:5,tower:5"}}
    planned = (await api.post("/v1/plan", json=PROMPT | asked)).json()
    (image,) = (await pictures(api, **asked))[1]["images"]
    (hop,) = image["hops"]
    assert abs(hop["nbytes"] - planned["packet_bytes"][5]) < 1024 / 2


async def test_images_of_one_request_are_those_of_the_next_seeds(api: httpx.AsyncClient) -> None:
    three, _ = await pictures(api, n=3)
    single = [(await pictures(api, seed=5 + i))[0][0] for i in range(3)]
    assert three == single
    assert len(set(three)) == 3


async def test_words_that_the_family_does_not_know_are_told(api: httpx.AsyncClient) -> None:
    _, ours = await pictures(api, prompt="a red dragon")
    assert ours["warnings"] == ["the word 'dragon' is not known to this family"]


@pytest.mark.parametrize("options", [{}, {"plan": "hall:10"}])
async def test_more_images_than_a_queue_holds(
    api: httpx.AsyncClient, options: dict[str, str]
) -> None:
    """No later time would do, so it is the request that is wrong."""
    body = PROMPT | {"n": 6, "diffusion_edge": options}
    response = await api.post("/v1/images/generations", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "n")
    assert len((await pictures(api, n=4))[0]) == 4


async def test_more_images_than_a_queue_has_room_for(api: httpx.AsyncClient) -> None:
    """Two requests of which each would fit: the stage takes one and refuses the other."""
    body = PROMPT | {"n": 3, "diffusion_edge": {"plan": "hall:10"}}
    posts = [api.post("/v1/images/generations", json=body) for _ in range(2)]
    answers = sorted(await asyncio.gather(*posts), key=lambda answer: answer.status_code)
    assert [answer.status_code for answer in answers] == [200, 429]
    assert int(answers[1].headers["retry-after"]) >= 1
    assert len((await pictures(api))[0]) == 1


async def test_hops_of_pictures_measure_their_links(
    api: httpx.AsyncClient, service: Service
) -> None:
    """Of both images, in their own direction; a picture that was not made tells nothing."""

    async def known() -> dict[tuple[str, str], tuple[str, int]]:
        links = (await api.post("/v1/plan", json=PROMPT)).json()["links"]
        return {(link["source"], link["target"]): (link["known"], link["hops"]) for link in links}

    before = await known()
    assert set(before.values()) == {("stated", 0)}
    stated = service.board.links.link(("hall", "tower"))
    _, ours = await answered(api, n=2, diffusion_edge={"plan": "hall:4,tower:6"})
    assert await known() == before | {("hall", "tower"): ("measured", 2)}
    hops = [image["hops"][0] for image in ours["images"]]
    link = service.board.links.link(("hall", "tower"))
    assert link != stated
    took_s = [hop["seconds"] for hop in hops]  # on a busy machine they differ much
    for hop in hops:
        assert min(took_s) / 2 <= link.transfer_s(hop["nbytes"]) <= 2 * max(took_s)
    options = {"plan": "hall:4,tower:3", "deadline_ms": 0.001}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusion_edge.routing.due.PATIENCE", 0.0)
        late = await api.post("/v1/images/generations", json=PROMPT | {"diffusion_edge": options})
    assert late.status_code == 504
    assert (await known())["hall", "tower"] == ("measured", 2)


class Recorded(LocalTransport):
    """Keeps the packets, by stage."""

    def __init__(self, workers: dict[str, Worker]) -> None:
        super().__init__(workers)
        self.packets: dict[str, Packet] = {}

    async def run(self, stage: str, packet: bytes) -> AsyncGenerator[Event, None]:
        self.packets[stage] = read(packet, self._workers[stage]._family.latent_space)
        async with aclosing(super().run(stage, packet)) as events:
            async for event in events:
                yield event


async def test_a_deadline_goes_all_the_way_and_work_stops_at_another_time(
    api: httpx.AsyncClient,
    service: Service,
    workers: dict[str, Worker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the body to the due time in the batch, and from there to the answer."""
    sites = Recorded(workers)
    monkeypatch.setattr(service, "_transport", sites)
    options = {"plan": "hall:4,tower:6", "deadline_ms": 0.5}
    samples: dict[str, tuple[Times, float]] = {}
    for name in ("hall", "tower"):
        real = workers[name]._parts.stepper.take

        async def take(entry: Entry, name: str = name, real: Any = real) -> None:
            (job,) = workers[name]._queue
            samples[name] = (job.times, entry.sample.due)
            await real(entry)

        monkeypatch.setattr(workers[name]._parts.stepper, "take", take)
    monkeypatch.setattr("diffusion_edge.routing.due.PATIENCE", 1000.0)
    _, ours = await answered(api, diffusion_edge=options)
    assert ours["deadline_met"] is False
    assert any("the deadline of 0.0005 s was missed" in told for told in ours["warnings"])
    for name in ("hall", "tower"):
        left, (times, due) = sites.packets[name].left, samples[name]
        assert left.due is not None
        assert left.give_up is not None
        assert left.due <= 0.0005
        assert left.give_up - left.due == pytest.approx(1000 * ours["predicted_s"] - 0.0005)
        assert due == times.due
    assert sites.packets["tower"].left.due < sites.packets["hall"].left.due

    monkeypatch.setattr("diffusion_edge.routing.due.PATIENCE", 0.0)
    response = await api.post("/v1/images/generations", json=PROMPT | {"diffusion_edge": options})
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"
    assert "given up" in response.json()["error"]["message"]
    assert [worker.status().queued for worker in workers.values()] == [0, 0, 0]


async def test_a_client_that_does_not_read_holds_no_slot(
    app: FastAPI, workers: dict[str, Worker]
) -> None:
    body = json.dumps(PROMPT | {"diffusion_edge": {"plan": "hall:4,tower:3"}}).encode()
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])
    sent: list[Any] = []
    answered = asyncio.Event()

    async def receive() -> Any:
        for message in messages:
            return message
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)
        answered.set()
        await asyncio.Event().wait()

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/images/generations",
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
    }
    serving = asyncio.create_task(app(scope, receive, send))
    await answered.wait()
    assert sent[0]["status"] == 200
    assert [worker.status().queued for worker in workers.values()] == [0, 0, 0]
    assert not serving.done()
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
