"""A packet larger than what Ray's handles carry by value crosses real handles of a real server."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_edge.config import REPOSITORY
from diffusion_edge.families.card import load_card
from diffusion_edge.generate import generate
from diffusion_edge.types import ImageRequest, Plan
from tests.large import LARGE, PACKET_BYTES, make_large_family
from tests.serve.live import Server, free_port

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
MACHINE = REPOSITORY / "serve_configs" / "machine.yaml"
PLAN = "edge:1,cloud:1,edge:1"


def test_packets_of_16_mib_cross(tmp_path: Path) -> None:
    """The picture is the one that a single process makes; machine.yaml serves a user's folder."""
    family = make_large_family(tmp_path)
    server = Server(MACHINE, free_port(), "--family", str(family))
    try:
        server.await_ready(200.0)
        (listed,) = server.http.get("/v1/models").json()["data"]
        answer = server.generate(PLAN, size=f"{LARGE}x{LARGE}")
        assert server.stop() == 0
    finally:
        server.end()
    assert listed["diffusion_edge"]["stages"] == {"edge": "edge", "cloud": "cloud"}
    assert answer.status_code == 200, answer.text
    told = answer.json()["diffusion_edge"]
    assert told["emulated"] == {"stages": [], "links": [], "packet_bytes": None}
    (image,) = told["images"]
    assert PACKET_BYTES == 16 * 2**20
    assert len(image["hops"]) == 2
    assert all(0 < hop["nbytes"] - PACKET_BYTES < 4096 for hop in image["hops"])
    data = base64.b64decode(answer.json()["data"][0]["b64_json"])
    served = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.int16)
    assert np.abs(served - in_one_process(family)).max() <= 1


def in_one_process(family: Path) -> np.ndarray[Any, Any]:
    card, plan = load_card(family), Plan.parse(PLAN)
    request = ImageRequest("a red circle", "large", plan.steps, 7, "unipc", 1.0, LARGE, LARGE)
    picture = generate(card, request, plan, lambda: None).picture
    flat = np.frombuffer(picture.rgb, dtype=np.uint8).astype(np.int16)
    return flat.reshape(picture.height, picture.width, 3)
