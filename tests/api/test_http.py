"""The API over fakes: no socket, no Ray, no model."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import math
import random
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from PIL import Image

from diffusion_edge.api import http as api
from diffusion_edge.api.http import create_app
from diffusion_edge.api.png import encode
from diffusion_edge.api.service import Service
from diffusion_edge.errors import EdgeError, QueueFull, StageLost
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.plan import Plan
from diffusion_edge.request import Event
from diffusion_edge.routing.losses import Model, StageCurve
from tests.api.fakes import (
    BY_RULE,
    CARD,
    RULE,
    FakeBoard,
    FakeTransport,
    failing,
    fake_picture,
    packet_bytes,
    service,
    settings,
)
from tests.routing.views import MODEL, row, table

GENERATE = "/v1/images/generations"
JSON = {"content-type": "application/json"}
GOOD: dict[str, Any] = {"prompt": "a red circle on a white background", "n": 2}


@asynccontextmanager
async def client(made: Service | None = None) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(made or service()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


async def post(body: Any, made: Service | None = None, path: str = GENERATE) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with client(made) as http:
        return await http.post(path, content=content, headers=JSON)


def refused(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer, in the one form that errors have."""
    body = response.json()
    assert set(body) == {"error"}
    more = {"retry_after_s"} if response.status_code == 429 else set()
    assert set(body["error"]) == {"message", "type", "param", "code"} | more
    assert "Traceback" not in response.text
    error: dict[str, Any] = body["error"]
    return error


def rgb(b64_json: str) -> bytes:
    with Image.open(io.BytesIO(base64.b64decode(b64_json))) as image:
        return image.convert("RGB").tobytes()


# ---------------------------------------------------------------------------- good requests


async def test_the_answer() -> None:
    response = await post(GOOD | {"n": 2, "seed": 7, "diffusion_edge": {"deadline_ms": 5000}})
    assert response.status_code == 200
    body = response.json()
    assert isinstance(body["created"], int)
    assert [rgb(item["b64_json"]) for item in body["data"]] == [
        fake_picture(seed, 64, 64).rgb for seed in (7, 8)
    ]
    ours = body["diffusion_edge"]
    assert ours["request_id"] == response.headers["x-request-id"]
    assert ours["spans"][-1]["stop"] == ours["steps"] == 20
    assert (ours["policy"], ours["deadline_ms"], ours["quality_floor"]) == ("elastic", 5000, 0.95)
    assert "cheapest" in ours["reason"]
    assert ours["predicted_s"] > 0
    assert ours["predicted_90_s"] is None  # nothing was served before
    assert ours["runner_up"]["predicted_s"] > 0
    assert ours["deadline_met"] is True
    assert [image["seed"] for image in ours["images"]] == [7, 8]
    assert [image["spans"][0]["run_s"] for image in ours["images"]] == [0.1, 0.2]
    assert ours["images"][0]["spans"][0]["emulated_s"] == 0.05
    assert ours["emulated"]["stages"] == ["phone", "tower", "hall"]
    assert "tower-hall" in ours["emulated"]["links"]


async def test_a_plan_is_carried_out_as_asked() -> None:
    asked = GOOD | {"diffusion_edge": {"plan": "hall:8, tower:6, phone:6"}, "seed": 1}
    ours = (await post(asked)).json()["diffusion_edge"]
    assert ours["plan"] == "hall:8,tower:6,phone:6"
    assert (ours["policy"], ours["reason"].split(";")[0]) == ("fixed", "asked for")
    assert [hop["nbytes"] for hop in ours["images"][0]["hops"]] == [2056, 2062]
    assert ours["quality"] is not None
    ours = (await post(GOOD | {"diffusion_edge": {"plan": "hall:8,hall:12"}})).json()
    assert ours["diffusion_edge"]["quality"] == 1.0


async def test_the_config_may_fix_the_plan() -> None:
    made = service(policy="fixed", plan="tower:4,hall:4")
    ours = (await post(GOOD, made)).json()["diffusion_edge"]
    assert (ours["plan"], ours["steps"]) == ("tower:4,hall:4", 8)
    assert ours["reason"].startswith("fixed by the config")
    assert (await post(GOOD | {"num_inference_steps": 9}, made)).status_code == 400


def knowing(*counts: int) -> Service:
    """A service whose quality table knows the cloud's model in these numbers of steps, each a
    hundredth below the next larger one."""
    worse = {n: 0.01 * k for k, n in enumerate(sorted(counts, reverse=True))}
    curves = tuple(StageCurve(stage="cloud", steps=n, loss=(0.0, by)) for n, by in worse.items())
    rows = (row(1 - by, cloud=n) for n, by in worse.items())
    made = service()
    made.quality = table(*rows, model=Model(power=1.0, curves=curves))
    return made


@pytest.mark.parametrize("path", [GENERATE, "/v1/plan"])
async def test_without_a_number_of_steps_the_router_chooses_one(path: str) -> None:
    made = knowing(5, 10, 20)
    for solver, floor, steps, of in (
        ("ddim", 0.97, 5, [5, 10, 20]),
        ("ddim", 0.985, 10, [5, 10, 20]),
        ("pndm", 0.985, 11, [6, 11, 21]),
    ):
        asked = GOOD | {"solver": solver, "diffusion_edge": {"quality_floor": floor}}
        answer = (await post(asked, made, path)).json()
        told = answer.get("diffusion_edge", answer)
        assert (told["steps"], told["plan"]) == (steps, f"hall:{steps}")
        assert told["steps_chosen_from"] == of
        if path == "/v1/plan":
            assert len(told["packet_bytes"]) == len(told["packet_codecs"]) == steps + 1
        else:
            assert told["spans"][-1]["stop"] == steps
        named = (await post(asked | {"num_inference_steps": 20}, made, path)).json()
        told = named.get("diffusion_edge", named)
        assert (told["steps"], told["steps_chosen_from"]) == (of[-1], None)


async def test_a_number_that_the_solver_cannot_make_is_not_chosen_from() -> None:
    answer = (await post(GOOD, knowing(20, 122), "/v1/plan")).json()
    assert (answer["steps"], answer["steps_chosen_from"]) == (20, None)


async def test_a_plan_comes_with_the_best_of_every_other_kind() -> None:
    asked = GOOD | {"diffusion_edge": {"quality_floor": 0.75, "deadline_ms": 60_000}}
    told = (await post(asked, path="/v1/plan")).json()
    why, others = told["why"], told["why"]["alternatives"]
    assert len(others) + why["kinds_left_out"] == 14
    assert why["plans_above_floor"] > 1
    alone = next(each for each in others if each["kind"] == "cloud alone")
    assert alone["plan"] == "hall:20"
    assert alone["price"] - told["price"] == pytest.approx(alone["dearer_by"])
    assert alone["not_taken"].startswith("dearer by ")
    for each in others:
        change = each["comes_first_with"]
        assert change is None or len(change) == 1
    by_hand = GOOD | {"diffusion_edge": {"plan": "hall:20"}}
    assert (await post(by_hand, path="/v1/plan")).json()["why"] is None
    assert "why" not in (await post(asked)).json()["diffusion_edge"]


async def test_what_is_not_held_is_told_by_how_much() -> None:
    plan = {"plan": "phone:20", "deadline_ms": 500, "quality_floor": 0.9}
    told = (await post(GOOD | {"diffusion_edge": plan}, path="/v1/plan")).json()
    assert told["late_by_s"] == pytest.approx(told["predicted_s"] - 0.5)
    assert told["late_by_s"] > 0
    assert told["below_floor_by"] == pytest.approx(0.9 - 0.4)
    held = {"plan": "hall:20", "deadline_ms": 60_000}
    told = (await post(GOOD | {"diffusion_edge": held}, path="/v1/plan")).json()
    assert (told["late_by_s"], told["below_floor_by"]) == (0, 0)


async def test_a_plan_tells_how_right_predictions_were() -> None:
    told = (await post(GOOD, path="/v1/plan")).json()
    assert told["predicted_90_s"] is None
    calibration = told["calibration"]
    assert (calibration.pop("served"), calibration.pop("slip")) == (0, 1.0)
    assert set(calibration.values()) == {None}


@pytest.mark.parametrize("codec", ["exact", "bf16", "int8"])
async def test_the_codec_is_that_of_every_hop(codec: str) -> None:
    asked = GOOD | {"diffusion_edge": {"plan": "hall:8,tower:6,hall:6", "codec": codec}}
    body = (await post(asked)).json()
    with Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"]))) as image:
        written = json.loads(image.text["diffusion_edge"])  # type: ignore[attr-defined]  # of PNG files
    ours = body["diffusion_edge"]
    assert ours["codec"] == codec
    assert ours["codecs"] == written["codecs"] == [codec, codec]
    planned = (await post(asked, path="/v1/plan")).json()
    assert planned["codecs"] == [codec, codec]
    assert planned["packet_codecs"] == [codec] * 21
    assert planned["packet_bytes"] == list(packet_bytes([codec] * 21))


async def test_the_config_has_a_codec_for_those_who_name_none() -> None:
    made = service(defaults={"codec": "bf16"})
    plan = {"plan": "hall:8,tower:12"}
    ours = (await post(GOOD | {"diffusion_edge": plan}, made)).json()["diffusion_edge"]
    assert (ours["codec"], ours["codecs"]) == ("bf16", ["bf16"])
    asked = GOOD | {"diffusion_edge": plan | {"codec": "exact"}}
    assert (await post(asked, made)).json()["diffusion_edge"]["codecs"] == ["exact"]


async def test_auto_without_measured_losses_is_exact() -> None:
    asked = GOOD | {"diffusion_edge": {"plan": "hall:8,tower:12", "codec": "auto"}}
    ours = (await post(asked)).json()["diffusion_edge"]
    assert (ours["codec"], ours["codecs"]) == ("auto", ["exact"])


async def test_every_field_at_its_neutral_value() -> None:
    neutral = {
        "model": "shapes",
        "n": 1,
        "size": "auto",
        "response_format": "b64_json",
        "output_format": "png",
        "user": "somebody",
        "quality": "auto",
        "style": "vivid",
        "background": "auto",
        "moderation": "auto",
        "output_compression": 100,
        "stream": False,
        "partial_images": 0,
        "negative_prompt": "blur",
        "num_inference_steps": 10,
        "guidance_scale": 3,
        "seed": 0,
        "solver": "euler",
        "diffusion_edge": {"policy": "cloud-only", "codec": "exact", "quality_floor": 0.5},
    }
    ours = (await post(GOOD | neutral)).json()["diffusion_edge"]
    assert (ours["plan"], ours["solver"], ours["guidance_scale"]) == ("hall:10", "euler", 3)
    nothing = dict.fromkeys(set(neutral) - {"prompt"})
    assert (await post(GOOD | nothing)).status_code == 200


@pytest.mark.parametrize(
    "said", [{"quality": "standard"}, {"background": "opaque"}, {"style": "vivid"}], ids=str
)
async def test_what_this_server_does_anyway_may_be_asked_for(said: dict[str, str]) -> None:
    assert (await post(GOOD | said)).status_code == 200


@pytest.mark.parametrize("path", [GENERATE, "/v1/plan"])
async def test_a_zero_is_a_value(path: str) -> None:
    """Of seed, guidance and floor, each of which would be something else if it were left out."""
    zeros = GOOD | {"seed": 0, "guidance_scale": 0, "diffusion_edge": {"quality_floor": 0}}
    body = (await post(zeros, path=path)).json()
    told = body.get("diffusion_edge", body)
    assert (told["seed"], told["guidance_scale"], told["quality_floor"]) == (0, 0, 0)
    assert [span["guidance_scale"] for span in told["spans"]] == [0] * len(told["spans"])
    assert told["plan"] == "phone:20"  # the cheapest of all, which no other floor admits


async def test_guidance_of_zero_is_a_plan_s_or_a_model_s_own() -> None:
    stages = {name: stage.model_dump() for name, stage in CARD.stages.items()}
    stages["edge"]["guidance"] = 0.0
    stages["cloud"]["guidance"] = 3.0
    card = FamilyCard.model_validate(CARD.model_dump() | {"stages": stages})
    asked = ours(plan="hall:8@0,tower:6,phone:6") | {"guidance_scale": 5}
    told = (await post(asked, service(card=card))).json()["diffusion_edge"]
    assert told["plan"] == "hall:8@0,tower:6@0,phone:6"
    assert [span["guidance_scale"] for span in told["spans"]] == [0.0, 0.0, 5.0]


async def test_seed_and_size_and_format() -> None:
    body = (await post(GOOD | {"size": "96x96", "output_format": "webp"})).json()
    assert body["diffusion_edge"]["seed"] == 1234
    assert (body["size"], body["output_format"]) == ("96x96", "webp")
    assert rgb(body["data"][0]["b64_json"]) == fake_picture(1234, 96, 96).rgb


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 512), (512, 128), (80, 96)])
async def test_a_rectangle_by_rule(width: int, height: int) -> None:
    made = service(card=BY_RULE)
    body = (await post(GOOD | {"size": f"{width}x{height}", "seed": 3}, made)).json()
    assert body["size"] == f"{width}x{height}"
    with Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"]))) as image:
        assert image.size == (width, height)
        assert f"Size: {width}x{height}" in image.text["parameters"]  # type: ignore[attr-defined]  # of PNG files


@pytest.mark.parametrize(
    "size", ["100x128", "48x128", "128x528", "512x512", "128", "128x", "64x64x64", "٦٤x64"]
)
async def test_a_rectangle_outside_the_rule(size: str) -> None:
    error = refused(await post(GOOD | {"size": size}, service(card=BY_RULE)))
    assert error["param"] == "size"
    assert error["message"] == (
        f"size {size!r} is not one of this model's: WIDTHxHEIGHT in multiples of 16 from 64 to "
        "512, 65536 pixels at most, or auto"
    )


async def test_models_tell_their_sizes_as_a_list_or_a_rule() -> None:
    for card, sizes in ((CARD, ["64x64", "96x96"]), (BY_RULE, RULE)):
        async with client(service(card=card)) as http:
            (model,) = (await http.get("/v1/models")).json()["data"]
        assert model["diffusion_edge"]["sizes"] == sizes


async def test_guidance_may_differ_by_stage() -> None:
    """A plan's own goes before the model's own, and that before the request's."""
    stages = {name: stage.model_dump() for name, stage in CARD.stages.items()}
    stages["edge"]["guidance"] = 1.0
    card = FamilyCard.model_validate(CARD.model_dump() | {"stages": stages})
    asked = GOOD | {"guidance_scale": 5, "diffusion_edge": {"plan": "hall:8@7.5,tower:6,phone:6"}}
    transport = FakeTransport()
    ours = (await post(asked, service(transport, card=card))).json()["diffusion_edge"]
    assert ours["plan"] == transport.packets[0]["plan"] == "hall:8@7.5,tower:6@1,phone:6"
    assert [span["guidance_scale"] for span in ours["spans"]] == [7.5, 1.0, 5.0]
    chosen = await post(GOOD | {"diffusion_edge": {"policy": "edge-only"}}, service(card=card))
    assert chosen.json()["diffusion_edge"]["plan"] == "tower:20@1"
    elastic = (await post(GOOD, service(card=card), "/v1/plan")).json()
    assert all(
        span["guidance_scale"] == (1.0 if span["stage"] == "tower" else 4.0)
        for span in elastic["spans"]
    )


@pytest.mark.parametrize(
    ("plan", "quality", "carried_out"),
    [("far:20", 1.0, "far:20"), ("cloud:20", 0.7, "cloud:20@1"), (None, 1.0, "far:20")],
)
async def test_quality_and_guidance_are_the_model_s_whatever_its_stage_is_called(
    plan: str | None, quality: float, carried_out: str
) -> None:
    """Premises: the stage `cloud` runs the model `edge`, and another one the model `cloud`."""
    stages = {name: stage.model_dump() for name, stage in CARD.stages.items()}
    stages["edge"]["guidance"] = 1.0
    card = FamilyCard.model_validate(CARD.model_dump() | {"stages": stages})
    named = {"far": {"tier": "cloud", "model": "cloud"}, "cloud": {"tier": "edge", "model": "edge"}}
    made = service(card=card, stages=named, links=[])
    told = (await post(ours(plan=plan), made, "/v1/plan")).json()
    assert (told["plan"], told["quality"]) == (carried_out, pytest.approx(quality))


async def test_the_runner_up_has_its_models_own_guidance() -> None:
    stages = {
        name: stage.model_dump() | {"guidance": own}
        for (name, stage), own in zip(CARD.stages.items(), (1.0, 2.0, 3.0), strict=True)
    }
    card = FamilyCard.model_validate(CARD.model_dump() | {"stages": stages})
    told = (await post(GOOD, service(card=card), "/v1/plan")).json()
    for text in (told["plan"], told["runner_up"]["plan"]):
        spans = Plan.parse(text).spans
        own = {"device": 1.0, "edge": 2.0, "cloud": 3.0}
        assert [span.guidance for span in spans] == [own[MODEL[span.stage]] for span in spans]


@pytest.mark.parametrize(("deadline_ms", "takes_s"), [(5000, 5.5), (5000, 4.5), (1, 0.0)])
async def test_whether_an_answer_is_late_is_told_by_what_it_took(
    deadline_ms: float, takes_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by what was predicted, which is about two seconds."""
    now = [100.0]

    class Taking(FakeTransport):
        def run(self, stage: str, packet: bytes) -> AsyncGenerator[Event, None]:
            now[0] += takes_s / GOOD["n"]
            return super().run(stage, packet)

    clock = SimpleNamespace(monotonic=lambda: now[0], time=lambda: 0.0)
    monkeypatch.setattr("diffusion_edge.api.service.time", clock)
    told = (await post(ours(deadline_ms=deadline_ms), service(Taking()))).json()["diffusion_edge"]
    late = takes_s > deadline_ms / 1000
    assert 0.5 < told["predicted_s"] < 4.5
    assert (told["seconds"], told["deadline_met"]) == (takes_s, not late)
    missed = [f"the deadline of {deadline_ms / 1000:g} s was missed by 0.50 s"]
    assert told["warnings"] == (missed if late else [])


async def test_two_at_once_get_what_each_asked_for() -> None:
    gate = asyncio.Event()
    transport = FakeTransport(gate=gate, expected=3)
    asked = (
        GOOD | {"seed": 3, "n": 2},
        {"prompt": "a blue square", "seed": 9, "size": "96x96", "output_format": "webp"},
    )
    async with client(service(transport)) as http:
        posts = [asyncio.create_task(http.post(GENERATE, json=body)) for body in asked]
        await transport.all_started.wait()
        gate.set()
        small, large = [await answer for answer in posts]
    found = [[rgb(item["b64_json"]) for item in one.json()["data"]] for one in (small, large)]
    assert found[0] == [fake_picture(seed, 64, 64).rgb for seed in (3, 4)]
    assert found[1] == [fake_picture(9, 96, 96).rgb]
    assert small.headers["x-request-id"] != large.headers["x-request-id"]
    for one in (small, large):
        assert one.json()["diffusion_edge"]["request_id"] == one.headers["x-request-id"]


async def test_png_says_how_it_was_made() -> None:
    body = (await post(GOOD | {"seed": 3})).json()
    with Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"]))) as image:
        text = image.text  # type: ignore[attr-defined]
    assert text["parameters"].startswith(GOOD["prompt"])
    assert json.loads(text["diffusion_edge"])["plan"] == body["diffusion_edge"]["plan"]


async def test_plan_shows_what_it_was_decided_from() -> None:
    body = (await post(GOOD, path="/v1/plan")).json()
    assert body["deadline_ms"] == 30_000
    assert body["prices_per_s"] == {"device": 0.0, "edge": 1.0, "cloud": 4.0}
    assert body["stages"]["hall"]["emulated"] is True
    assert body["stages"]["hall"]["step_s"] == {"64": {"1": 0.05}}
    assert body["stages"]["hall"]["decode_s"] == {"64": 0.01}
    assert body["cells"] == 64
    assert (await post(GOOD | {"size": "96x96"}, path="/v1/plan")).json()["cells"] == 144
    assert body["emulated"]["stages"] == ["phone", "tower", "hall"]
    links = {(link["source"], link["target"]): link for link in body["links"]}
    assert links["tower", "hall"] | {"slow": 0} == {
        "source": "tower",
        "target": "hall",
        "bytes_per_s": 1e7,
        "delay_s": 0.0,
        "slow": 0,
        "known": "stated",
        "hops": 0,
        "probes": 0,
        "age_s": None,
        "emulated": True,
    }
    assert len(links) == 6
    assert body["plan"]
    assert body["cost"] >= 0


async def test_what_was_promised_no_time_is_told_without_one() -> None:
    """JSON has no infinity."""
    board = FakeBoard(settings(), busy_s=3.3)
    (held,) = board.statuses()["hall"].held
    assert held.latest_s == math.inf
    body = (await post(GOOD, service(board=board), "/v1/plan")).json()
    (told,) = body["stages"]["hall"]["held"]
    assert told["latest_s"] is None
    assert told["steps"] == held.steps


async def test_models_health_and_readiness() -> None:
    async with client() as http:
        listed = (await http.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["shapes"]
        assert (await http.get("/v1/models/shapes")).json() == listed["data"][0]
        told = listed["data"][0]["diffusion_edge"]["execution"]
        assert told == dict.fromkeys(("hall", "phone", "tower"), "eager")
        told = listed["data"][0]["diffusion_edge"]["attention"]
        assert told == dict.fromkeys(("hall", "phone", "tower"), "sdpa")
        assert refused(await http.get("/v1/models/other"))["code"] == "model_not_found"
        assert (await http.get("/health")).json() == {"status": "live"}
        assert (await http.get("/ready")).json()["status"] == "ready"
    reaching = FakeBoard(settings(), reaches={"tower": ("hall", "phone")})
    async with client(service(board=reaching)) as http:
        stages = (await http.get("/ready")).json()["stages"]
        assert stages["tower"]["reaches"] == ["hall", "phone"]
    async with client(service(board=FakeBoard(settings(), dead={"tower"}))) as http:
        response = await http.get("/ready")
        assert response.status_code == 503
        assert refused(response)["message"] == "waiting for tower"
        assert (await http.get("/health")).status_code == 200


async def test_the_description_of_the_api_can_be_read() -> None:
    async with client() as http:
        described = (await http.get("/openapi.json")).json()
    assert GENERATE in described["paths"]


async def test_others_are_served_while_a_picture_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, writing, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def slow(*picture: Any) -> bytes:
        loop.call_soon_threadsafe(writing.set)
        assert go_on.wait(10), "the loop stood still"
        return encode(*picture)

    monkeypatch.setattr(api, "encode", slow)
    async with client() as http:
        answer = asyncio.create_task(http.post(GENERATE, json=GOOD))
        await writing.wait()
        assert (await http.get("/health")).status_code == 200
        assert not answer.done()
        go_on.set()
        assert (await answer).status_code == 200


# ---------------------------------------------------------------------------- wrong requests


def ours(**options: Any) -> dict[str, Any]:
    return GOOD | {"diffusion_edge": options}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"{", None, "invalid_value"),
        (b"", None, "invalid_value"),
        (b"\xff\xfe", None, "invalid_value"),
        (b'{"prompt": "a", "guidance_scale": NaN}', "guidance_scale", "invalid_value"),
        ([], None, "invalid_value"),
        ("text", None, "invalid_value"),
        ({}, "prompt", "invalid_value"),
        ({"promt": "a"}, "promt", "invalid_value"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": " \n"}, "prompt", "invalid_value"),
        ({"prompt": "a" * 2001}, "prompt", "invalid_value"),
        ({"prompt": ["a"]}, "prompt", "invalid_value"),
        (GOOD | {"negative_prompt": "a" * 2001}, "negative_prompt", "invalid_value"),
        (GOOD | {"n": 0}, "n", "invalid_value"),
        (GOOD | {"n": 11}, "n", "invalid_value"),
        (GOOD | {"n": "2"}, "n", "invalid_value"),
        (GOOD | {"n": True}, "n", "invalid_value"),
        (GOOD | {"num_inference_steps": 0}, "num_inference_steps", "invalid_value"),
        (GOOD | {"num_inference_steps": 151}, "num_inference_steps", "invalid_value"),
        (GOOD | {"size": "65x64"}, "size", "invalid_value"),
        (GOOD | {"size": "big"}, "size", "invalid_value"),
        (GOOD | {"seed": -1}, "seed", "invalid_value"),
        (GOOD | {"seed": 2**53}, "seed", "invalid_value"),
        (GOOD | {"guidance_scale": 51}, "guidance_scale", "invalid_value"),
        (GOOD | {"model": "other"}, "model", "model_not_found"),
        (GOOD | {"solver": "magic"}, "solver", "unsupported_solver"),
        (GOOD | {"output_format": "gif"}, "output_format", "invalid_value"),
        (GOOD | {"response_format": "url"}, "response_format", "unsupported_parameter"),
        (GOOD | {"quality": "hd"}, "quality", "unsupported_parameter"),
        (GOOD | {"style": "natural"}, "style", "unsupported_parameter"),
        (GOOD | {"background": "transparent"}, "background", "unsupported_parameter"),
        (GOOD | {"moderation": "low"}, "moderation", "unsupported_parameter"),
        (GOOD | {"output_compression": 50}, "output_compression", "unsupported_parameter"),
        (GOOD | {"stream": True}, "stream", "unsupported_parameter"),
        (GOOD | {"stream": 0}, "stream", "unsupported_parameter"),
        (GOOD | {"partial_images": 2}, "partial_images", "unsupported_parameter"),
        (ours(polcy="elastic"), "diffusion_edge.polcy", "invalid_value"),
        (ours(policy="clever"), "diffusion_edge.policy", "invalid_value"),
        (ours(policy="fixed"), "diffusion_edge.plan", "invalid_plan"),
        (ours(policy="elastic", plan="hall:20"), "diffusion_edge.policy", "invalid_value"),
        (ours(plan="hall"), "diffusion_edge.plan", "invalid_plan"),
        (ours(plan="hall:0"), "diffusion_edge.plan", "invalid_plan"),
        (ours(plan="hall:4@"), "diffusion_edge.plan", "invalid_plan"),
        (ours(plan="hall:4@51"), "diffusion_edge.plan", "invalid_plan"),
        (ours(plan="hall:100,tower:51"), "diffusion_edge.plan", "invalid_plan"),
        (ours(plan="tpu:20"), "diffusion_edge.plan", "invalid_plan"),
        (ours(plan="hall:8") | {"num_inference_steps": 9}, "diffusion_edge.plan", "invalid_plan"),
        (GOOD | {"num_inference_steps": 122}, "num_inference_steps", "invalid_value"),
        (
            GOOD | {"num_inference_steps": 61, "solver": "pndm"},
            "num_inference_steps",
            "invalid_value",
        ),
        (ours(plan="hall:61,tower:61"), "diffusion_edge.plan", "invalid_plan"),
        (ours(plan="hall:2") | {"solver": "pndm"}, "diffusion_edge.plan", "invalid_plan"),
        (ours(deadline_ms=0), "diffusion_edge.deadline_ms", "invalid_value"),
        (ours(quality_floor=1.1), "diffusion_edge.quality_floor", "invalid_value"),
        (ours(codec="fp4"), "diffusion_edge.codec", "invalid_value"),
        (b'{"prompt": "a \\ud800 circle"}', None, "invalid_value"),
        (GOOD | {"diffusion_edge": 3}, "diffusion_edge", "invalid_value"),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(
    body: Any, param: str | None, code: str
) -> None:
    for path in (GENERATE, "/v1/plan"):
        transport = FakeTransport()
        response = await post(body, service(transport), path)
        assert response.status_code == 400
        error = refused(response)
        assert (error["param"], error["code"]) == (param, code)
        assert error["type"] == "invalid_request_error"
        assert transport.packets == []


async def test_a_misspelt_field_is_told_the_right_one() -> None:
    assert "did you mean 'prompt'?" in refused(await post({"promt": "a"}))["message"]
    told = refused(await post(ours(dedline_ms=1)))["message"]
    assert told == "unknown field 'diffusion_edge.dedline_ms'; did you mean 'deadline_ms'?"


async def test_a_huge_body_is_not_read_to_its_end() -> None:
    body = json.dumps(GOOD).encode()
    assert (await post(body.ljust(65_536))).status_code == 200
    response = await post(body.ljust(65_537))
    assert response.status_code == 413
    error = refused(response)
    assert error["code"] == "body_too_large"
    assert error["message"] == "the body has more than 65536 bytes"


async def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "BODY_S", 0.01)
    sent: list[Any] = []
    parts = iter([{"type": "http.request", "body": b'{"prompt"', "more_body": True}])

    async def receive() -> Any:
        for part in parts:
            return part
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async with asyncio.timeout(10):
        await create_app(service())(a_post(), receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    error = json.loads(sent[1]["body"])["error"]
    assert (error["code"], error["type"]) == ("body_timeout", "invalid_request_error")
    assert error["message"] == "the body did not come to its end within 0.01 s"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", None]
)
@pytest.mark.parametrize("path", [GENERATE, "/v1/plan"])
async def test_a_body_that_does_not_say_that_it_is_json_is_refused(
    kind: str | None, path: str
) -> None:
    """A browser lets any page send these to any server without asking it."""
    headers = {} if kind is None else {"content-type": kind}
    transport = FakeTransport()
    async with client(service(transport)) as http:
        response = await http.post(path, content=json.dumps(GOOD).encode(), headers=headers)
    error = refused(response)
    assert (response.status_code, error["code"]) == (415, "unsupported_media_type")
    assert "content-type: application/json" in error["message"]
    assert transport.packets == []


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
async def test_json_may_be_said_in_other_words(kind: str) -> None:
    async with client() as http:
        body = json.dumps(GOOD).encode()
        response = await http.post("/v1/plan", content=body, headers={"content-type": kind})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"prompt": "a", "prompt": "a"}', "prompt"),
        (b'{"prompt": "a", "n": 1, "p\\u0072ompt": "b"}', "prompt"),
        (b'{"prompt": "a", "diffusion_edge": {"plan": "hall:2", "plan": "tower:2"}}', None),
        (b'{"prompt": "a", "promt": 1, "promt": 2}', "promt"),
        (b'{"prompt": "a", "quality": [{"x": 1, "x": 2}]}', "quality.0.x"),
    ],
)
async def test_a_key_that_stands_twice_is_named(body: bytes, param: str | None) -> None:
    for path in (GENERATE, "/v1/plan"):
        response = await post(body, path=path)
        error = refused(response)
        assert (response.status_code, error["param"]) == (400, param or "diffusion_edge.plan")
        assert f"{error['param']!r} stands twice" in error["message"]


async def test_head_asks_what_get_asks() -> None:
    paths = ("/health", "/ready", "/v1/models", "/v1/models/shapes", "/v1/models/other")
    async with client() as http:
        for path in paths:
            assert (await http.head(path)).status_code == (await http.get(path)).status_code
        wrong = await http.head(GENERATE)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        described = (await http.get("/openapi.json")).json()
    assert list(described["paths"]["/health"]) == ["get"]


async def test_unknown_paths_and_methods() -> None:
    async with client() as http:
        missing, wrong = await http.get("/v2/things"), await http.get(GENERATE)
    assert (missing.status_code, refused(missing)["code"]) == (404, "not_found")
    assert (wrong.status_code, refused(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


def malformed(draw: random.Random) -> bytes:
    """A request that cannot be right, in one of many ways."""
    junk: list[Any] = [None, -1, 1e308, "", "x" * 3000, [], {}, [[[]]], True, "☃", "cloud:x"]
    wrong = draw.choice(
        [
            GOOD | {f"field{draw.random()}": draw.choice(junk)},
            GOOD | {"n": draw.choice([0, -5, 11, 2.5, "1", [], 10**30])},
            GOOD | {"size": draw.choice(["", "x", "64", "64x", "-64x64", 64, "1e9x1e9"])},
            GOOD | {"seed": draw.choice([-1, 1.5, "1", 2**70, {}])},
            GOOD | {"diffusion_edge": draw.choice([1, "x", [], {"a": 1}, {"plan": "a:b"}])},
            ours(plan=draw.choice(["", ",", "hall:", ":4", "hall:-1", "hall:9999", "a" * 500])),
            {"prompt": draw.choice(["", " ", "x" * 5000, 1, [], {}])},
            draw.choice(junk),
        ]
    )
    data = json.dumps(wrong).encode()
    kind = draw.randrange(4)
    if kind == 0:
        return data[: draw.randrange(len(data))]
    if kind == 1:
        return bytes(draw.randrange(256) for _ in range(draw.randrange(200)))
    if kind == 2:
        return b"[" * draw.randrange(1, 30_000)
    return data


async def test_after_500_malformed_requests_the_next_good_one_succeeds() -> None:
    draw = random.Random(2)
    transport = FakeTransport()
    async with client(service(transport)) as http:
        for _ in range(500):
            response = await http.post(GENERATE, content=malformed(draw), headers=JSON)
            assert response.status_code == 400, response.text
            refused(response)
        assert transport.packets == []
        assert (await http.post(GENERATE, json=GOOD)).status_code == 200


# ---------------------------------------------------------------------------- what fails later


async def test_a_full_queue_says_when_to_come_again() -> None:
    full = QueueFull("the stage 'hall' has 32 images in its queue", retry_after_s=2.2)
    response = await post(GOOD, service(failing(full)))
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert refused(response)["code"] == "queue_full"
    board = FakeBoard(settings(), full={"phone", "tower", "hall"})
    response = await post(GOOD, service(board=board))
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")


async def test_what_cannot_be_in_time_and_would_not_be_late_says_when_to_come_again() -> None:
    """In whole seconds in the header, exactly in the body."""
    made = service(board=FakeBoard(settings(), busy_s=3.3))
    asked = ours(deadline_ms=2500, late="refuse", quality_floor=0.95, plan="hall:20")
    response = await post(asked, made)
    assert response.status_code == 429, response.text
    told = refused(response)
    assert told["code"] == "cannot_be_in_time"
    exact_s = told["retry_after_s"]
    assert response.headers["retry-after"] == str(math.ceil(exact_s))
    assert 1.5 < exact_s < 3.3
    never = await post(ours(deadline_ms=10, late="refuse"), made)
    assert never.status_code == 429
    assert refused(never)["retry_after_s"] is None
    assert "retry-after" not in never.headers


async def test_more_images_than_a_stage_ever_holds_are_a_wrong_request() -> None:
    """Whatever the policy, and idle as the stages are; another time would not do."""
    small = settings(
        stages={
            name: {"tier": MODEL[name], "model": MODEL[name], "capacity": capacity}
            for name, capacity in (("phone", 2), ("tower", 6), ("hall", 4))
        }
    )
    for asked in (
        GOOD | {"n": 7},
        ours(policy="cloud-only") | {"n": 5},
        ours(plan="hall:8,phone:12") | {"n": 3},
        ours(quality_floor=0.95) | {"n": 5},
    ):
        for path in (GENERATE, "/v1/plan"):
            response = await post(asked, service(config=small), path)
            error = refused(response)
            assert (response.status_code, error["param"]) == (400, "n"), response.text
            assert f"n is {asked['n']}, more images than" in error["message"]
    answered = await post(ours(quality_floor=0) | {"n": 6}, service(config=small))
    assert answered.status_code == 200


async def test_a_lost_stage_and_a_dead_one() -> None:
    lost = StageLost("the stage 'hall' died", stage="hall")
    response = await post(GOOD, service(failing(lost)))
    assert (response.status_code, refused(response)["code"]) == (503, "stage_lost")
    board = FakeBoard(settings(), dead={"hall"})
    response = await post(GOOD, service(board=board))
    assert (response.status_code, refused(response)["code"]) == (503, "no_plan")
    assert "no live stage runs the model 'cloud'" in refused(response)["message"]


async def test_nobody_sees_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    odd: EdgeError = RuntimeError("secret detail")  # type: ignore[assignment]
    with caplog.at_level(logging.ERROR):
        response = await post(GOOD, service(failing(odd)))
    assert response.status_code == 500
    assert refused(response)["code"] == "internal_error"
    assert "secret" not in response.text
    assert "secret detail" in caplog.text


async def test_an_error_after_the_answer_has_begun_begins_no_other_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The server is to break the connection: what it sent is no whole answer."""
    sent: list[Any] = []

    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("in the middle")

    async def send(message: Any) -> None:
        sent.append(message)

    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError, match="in the middle"):
        await api.NoTraceback(breaks)(a_post(), asyncio.Event().wait, send)  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert "in the middle" in caplog.text


async def test_an_error_that_is_no_request_s_is_not_answered_as_one() -> None:
    """A server that fails to start has to say so itself."""

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("no start")

    async def send(message: Any) -> None:
        pytest.fail(f"sent {message}")

    with pytest.raises(RuntimeError, match="no start"):
        await api.NoTraceback(fails)({"type": "lifespan"}, asyncio.Event().wait, send)  # type: ignore[arg-type]


def a_post() -> dict[str, Any]:
    """As an ASGI server says it."""
    headers = [(name.encode(), value.encode()) for name, value in JSON.items()]
    shape = {"type": "http", "method": "POST", "path": GENERATE, "query_string": b""}
    return shape | {"headers": headers}


async def test_a_client_that_leaves_ends_the_work() -> None:
    transport = FakeTransport(gate=asyncio.Event(), expected=2)
    app = create_app(service(transport))
    body = json.dumps(GOOD | {"n": 2}).encode()
    left = asyncio.Event()
    sent: list[Any] = []
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        for message in messages:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    serving = asyncio.create_task(app(a_post(), receive, send))
    await transport.all_started.wait()
    assert transport.closed == 0
    left.set()
    await transport.all_closed.wait()
    await serving
    assert transport.closed == 2
    assert sent[0]["status"] == 499


async def test_a_server_that_cancels_the_handler_ends_the_work() -> None:
    transport = FakeTransport(gate=asyncio.Event(), expected=2)
    task = asyncio.create_task(post(GOOD, service(transport)))
    await transport.all_started.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert transport.closed == 2
