"""The real thing on one machine: Ray, three stages, HTTP."""

from __future__ import annotations

import base64
import io
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from diffusion_edge.families.card import load_card
from diffusion_edge.generate import generate
from diffusion_edge.places import REPOSITORY
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from tests.large import LARGE, PACKET_BYTES, make_large_family
from tests.serve.live import Server, config_file, free_port

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
STEP_S = 0.05


@pytest.fixture(scope="module")
def config(tiny_family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return config_file(
        tmp_path_factory.mktemp("live"),
        tiny_family,
        ("step_s: 0.12", f"step_s: {STEP_S}"),
        ("step_s: 0.08", "step_s: 0.04"),  # so that an idle cloud is the fastest stage
        ("capacity: 32", "capacity: 2"),
    )


@pytest.fixture(scope="module")
def server(config: Path) -> Iterator[Server]:
    server = Server(config, free_port())
    try:
        yield server.await_ready()
    finally:
        server.end()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_large_family(tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def second(server: Server, large: Path) -> Iterator[Server]:
    """Beside the first one: machine.yaml, and a user's folder."""
    machine = REPOSITORY / "serve_configs" / "machine.yaml"
    second = Server(machine, free_port(), "--family", str(large))
    try:
        yield second.await_ready(200.0)
    finally:
        second.end()


def pixels(response: httpx.Response, image: int = 0) -> np.ndarray[Any, Any]:
    assert response.status_code == 200, response.text
    data = base64.b64decode(response.json()["data"][image]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.int16)


def in_one_process(folder: Path, plan: str, size: int, seed: int = 7) -> np.ndarray[Any, Any]:
    """What a plan over models makes without a server, of the prompt of `Server.generate`."""
    card, parsed = load_card(folder), Plan.parse(plan)
    request = ImageRequest(
        prompt="a red circle",
        family=card.name,
        steps=parsed.steps,
        seed=seed,
        solver=card.defaults.solver,
        guidance=card.defaults.guidance,
        width=size,
        height=size,
    )
    picture = generate(card, request, parsed, lambda: None).picture
    flat = np.frombuffer(picture.rgb, dtype=np.uint8).astype(np.int16)
    return flat.reshape(picture.height, picture.width, 3)


def test_requests_cross_three_stages_beside_each_other(server: Server, tiny_family: Path) -> None:
    """One for two pictures, and one of another size on another way."""
    plan, other = "hall:4,tower:3,phone:3", "phone:2,tower:5"
    with ThreadPoolExecutor(1) as pool:
        two = pool.submit(server.generate, plan, n=2)
        large = server.generate(other, seed=60, size="32x32")
        response = two.result()
    told = response.json()["diffusion_edge"]
    assert told["plan"] == plan
    assert set(told["emulated"]["stages"]) == {"phone", "tower", "hall"}
    for number, image in enumerate(told["images"]):
        assert [span["stage"] for span in image["spans"]] == ["hall", "tower", "phone"]
        assert [hop["target"] for hop in image["hops"]] == ["tower", "phone"]
        assert all(500 < hop["nbytes"] < 8000 for hop in image["hops"])
        assert image["spans"][2]["emulated_s"] > 0
        alone = in_one_process(tiny_family, "cloud:4,edge:3,device:3", 16, 7 + number)
        assert np.abs(pixels(response, number) - alone).max() <= 1
    assert large.json()["diffusion_edge"]["plan"] == other
    alone = in_one_process(tiny_family, "device:2,edge:5", 32, 60)
    assert np.abs(pixels(large) - alone).max() <= 1


def test_a_plan_cut_on_one_stage_is_the_plan_uncut(server: Server) -> None:
    whole = pixels(server.generate("hall:20"))
    assert np.array_equal(pixels(server.generate("hall:8,hall:12")), whole)
    assert np.abs(pixels(server.generate("tower:20")) - whole).max() > 1


def test_the_router_chooses_when_no_plan_is_given(server: Server) -> None:
    response = server.http.post("/v1/images/generations", json={"prompt": "a red circle"})
    assert response.status_code == 200, response.text
    assert response.json()["diffusion_edge"]["policy"] == "elastic"


def test_real_load_on_the_cloud_moves_the_hand_off(server: Server) -> None:
    """A deadline that nothing meets: the fastest plan wins, and that depends on what is due before.
    So the load has such a deadline, too: it was due first."""
    ours = {"deadline_ms": 1, "quality_floor": 0}
    body = {"prompt": "a red circle", "num_inference_steps": 20, "diffusion_edge": ours}

    def chosen() -> dict[str, int]:
        """Steps by stage."""
        response = server.http.post("/v1/plan", json=body)
        assert response.status_code == 200, response.text
        answer = response.json()
        assert "fastest" in answer["reason"]
        return {span["stage"]: span["stop"] - span["start"] for span in answer["spans"]}

    def hall_queue_s() -> float:
        stages = server.http.get("/ready").json().get("stages", {})
        return float(stages["hall"]["queue_s"]) if "hall" in stages else 0.0

    while hall_queue_s() > 0:  # what the test before left on the board
        pass
    assert chosen() == {"hall": 20}
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(server.generate, "hall:100", diffusion_edge={"deadline_ms": 1})
        while hall_queue_s() < 1.5:
            assert not load.done(), f"ended before the board saw it: {load.result().text[:500]}"
        under_load = chosen()
        assert load.result().status_code == 200
    assert under_load.get("hall", 0) < 20
    while hall_queue_s() > 0:
        pass
    assert chosen() == {"hall": 20}


def test_a_link_is_throttled_while_the_server_runs(server: Server) -> None:
    def hop_s() -> float:
        (image,) = server.generate("tower:2,hall:2").json()["diffusion_edge"]["images"]
        return float(image["hops"][0]["emulated_s"])

    for factor, least_s, most_s in [(1.0, 0.0, 0.08), (0.001, 0.1, 10.0), (1.0, 0.0, 0.08)]:
        body = {"between": ["hall", "tower"], "factor": factor}
        assert server.http.post("/v1/throttle", json=body).status_code == 200
        assert least_s < hop_s() < most_s


def test_errors_are_typed_all_the_way(server: Server) -> None:
    for body, code in [
        ({"prompt": "a", "colour": "red"}, "invalid_value"),
        ({"prompt": "a", "diffusion_edge": {"plan": "attic:4"}}, "invalid_plan"),
        ({"prompt": "a", "solver": "magic"}, "unsupported_solver"),
    ]:
        response = server.http.post("/v1/images/generations", json=body)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == code, error
        assert "Traceback" not in response.text


def test_a_full_stage_answers_429_with_retry_after(server: Server) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: server.generate("phone:20"), range(6)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len([answer for answer in answers if answer.status_code == 200]) >= 2
    assert len(refused) >= 1
    assert refused[0].json()["error"]["code"] == "queue_full"
    assert int(refused[0].headers["retry-after"]) >= 1


def test_a_client_that_leaves_frees_the_stage(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        server.http.post(
            "/v1/images/generations",
            json={"prompt": "a", "diffusion_edge": {"plan": "hall:1,phone:90"}},
            timeout=httpx.Timeout(60.0, read=1.0),
        )
    (image,) = server.generate("phone:2").json()["diffusion_edge"]["images"]
    assert image["spans"][0]["queue_s"] < 90 * STEP_S / 4


def test_all_processes_together_stay_within_4_gb(server: Server) -> None:
    shares = []
    for process in server.remember():
        try:
            shares.append(process.memory_full_info().pss)
        except psutil.Error:
            continue
    assert len(shares) > 8
    assert sum(shares) < 4e9


def test_every_link_is_measured_also_where_no_picture_went(server: Server) -> None:
    """Few of these tests' plans begin on the phone; by now its links were quiet for long."""
    ended, pause = time.monotonic() + 60.0, threading.Event()
    while True:
        response = server.http.post("/v1/plan", json={"prompt": "a red circle"})
        assert response.status_code == 200, response.text
        links = {(link["source"], link["target"]): link for link in response.json()["links"]}
        assert len(links) == 6
        if {link["known"] for link in links.values()} <= {"measured", "stale"}:
            break
        assert time.monotonic() < ended, links
        pause.wait(0.5)
    probed = [link for link in links.values() if link["hops"] == link["probes"] >= 1]
    assert probed
    for link in probed:
        assert link["emulated"]
        assert link["delay_s"] + 2048 / link["bytes_per_s"] >= 0.004  # 0.005 are stated at least
    assert links["hall", "tower"]["hops"] > links["hall", "tower"]["probes"]


def test_a_stage_that_dies_is_told_and_comes_back(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(server.generate, "hall:1,tower:90")
        victim = server.replica("tower")
        is_busy(server)
        victim.kill()
        killed = time.monotonic()
        answer = held.result(timeout=30)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "stage_lost"
    assert time.monotonic() - killed < 5
    assert server.generate("hall:2").status_code == 200
    while (again := server.generate("hall:1,tower:2")).status_code != 200:
        assert again.status_code == 503, again.text
        assert time.monotonic() - killed < 60
    server.remember()


def test_work_does_not_outlive_who_asked_for_it(server: Server) -> None:
    """One request comes to the tower from the hall, one from the ingress; both of these die.

    At 0.1 s a step the tower does 60 steps until it gives up, of the 280 asked for.
    """
    with ThreadPoolExecutor(2) as pool:
        held = [pool.submit(server.generate, plan) for plan in ("hall:1,tower:140", "tower:140")]
        while told_of(server, "tower")["queued"] < 2:
            assert not any(answer.done() for answer in held)
        before = told_of(server, "tower")["steps_run"]
        for caller in [server.replica(name) for name in ("hall", "ingress")]:
            caller.kill()
        assert all(answer.result(timeout=30).status_code >= 500 for answer in held)
    ended = time.monotonic() + 90
    while (tower := told_of(server, "tower")) == {} or tower["queued"]:
        assert time.monotonic() < ended
        assert tower.get("steps_run", 0) < before + 100
    assert tower["steps_run"] < before + 100
    while server.generate("hall:1,tower:2").status_code != 200:
        assert time.monotonic() < ended
    server.remember()


def told_of(server: Server, stage: str) -> dict[str, Any]:
    """What the board has of a stage; nothing while there is no board."""
    body = {"prompt": "a", "diffusion_edge": {"plan": f"{stage}:4"}}
    answer = server.http.post("/v1/plan", json=body)
    found: dict[str, Any] = answer.json()["stages"][stage] if answer.status_code == 200 else {}
    return found


def is_busy(server: Server, stage: str = "tower") -> None:
    """Returns when the stage steps: it has taken more than when it was first asked."""
    before = None
    ended = time.monotonic() + 20.0
    while time.monotonic() < ended:
        steps_run = told_of(server, stage).get("steps_run")
        if before is not None and steps_run is not None and steps_run > before:
            return
        before = steps_run if before is None else before
    raise AssertionError("the stage never became busy")


# ---------------------------------------------------------------------------- a second server

LARGE_SIZE = f"{LARGE}x{LARGE}"


def test_packets_of_16_mib_cross(second: Server, large: Path) -> None:
    """More than Ray's handles carry by value. The picture is the one that one process makes."""
    plan = "edge:1,cloud:1,edge:1"
    (listed,) = second.http.get("/v1/models").json()["data"]
    assert listed["diffusion_edge"]["stages"] == {"edge": "edge", "cloud": "cloud"}
    answer = second.generate(plan, size=LARGE_SIZE)
    made = pixels(answer)
    told = answer.json()["diffusion_edge"]
    assert told["emulated"] == {"stages": [], "links": [], "packet_bytes": None}
    (image,) = told["images"]
    assert PACKET_BYTES == 16 * 2**20
    assert len(image["hops"]) == 2
    assert all(0 < hop["nbytes"] - PACKET_BYTES < 4096 for hop in image["hops"])
    assert np.abs(made - in_one_process(large, plan, LARGE)).max() <= 1


def test_two_servers_side_by_side_and_an_orderly_end(server: Server, second: Server) -> None:
    """SIGTERM with a request running, and with half a body that a client holds."""
    assert server.generate("hall:1").status_code == 200
    holds = socket.create_connection(("127.0.0.1", int(second.url.rpartition(":")[2])))
    with holds, ThreadPoolExecutor(1) as pool:
        running = pool.submit(second.generate, "edge:60", size=LARGE_SIZE)
        holds.sendall(
            b"POST /v1/plan HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"
            b"content-length: 100\r\n\r\n{"
        )
        is_busy(second, "edge")
        second.process.send_signal(signal.SIGTERM)
        refused = await_refusal(second)
        assert refused.json()["error"]["code"] == "shutting_down"
        assert running.result(timeout=60).status_code == 200
        done = time.monotonic()
        assert second.stop() == 0
        assert time.monotonic() - done < 15, "not the 30 s that running requests may take"
        assert b"shutting_down" in holds.recv(2000)
    assert second.left_behind() == []
    assert server.generate("hall:1").status_code == 200


def await_refusal(server: Server) -> httpx.Response:
    for _ in range(200):
        answer = server.http.get("/v1/models")
        if answer.status_code == 503:
            return answer
    raise AssertionError("new requests were never refused")


# ---------------------------------------------------------------------------- starts and ends


def test_a_port_in_use_is_told_before_anything_starts(server: Server, config: Path) -> None:
    port = int(server.url.rpartition(":")[2])
    began = time.monotonic()
    late = Server(config, port)
    _, errors = late.process.communicate(timeout=60)
    late.http.close()
    assert late.process.returncode == 1
    assert f"port {port} on 127.0.0.1 cannot be used" in errors
    assert time.monotonic() - began < 10
    assert server.http.get("/health").status_code == 200


def test_a_signal_during_the_start_leaves_nothing(config: Path) -> None:
    server = Server(config, free_port())
    try:
        raylet_is_up(server)
        assert server.stop(signal.SIGINT) == 0
        assert server.output[0] == ""
        assert server.left_behind() == []
    finally:
        server.end()


def raylet_is_up(server: Server) -> None:
    give_up = time.monotonic() + 60
    pause = threading.Event()
    while not any("raylet" in process.name() for process in server.remember()):
        assert server.process.poll() is None
        assert time.monotonic() < give_up
        pause.wait(0.05)


def test_a_second_signal_does_not_wait_for_requests(server: Server) -> None:
    """The last test of this server."""
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(server.generate, "phone:1,tower:99")
        is_busy(server)
        server.process.send_signal(signal.SIGINT)
        await_refusal(server)
        assert server.stop(signal.SIGINT) == 0
        assert held.exception(timeout=30) or held.result().status_code != 200
    assert server.left_behind() == []
