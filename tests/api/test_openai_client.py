"""The unmodified `openai` client against the app, in one process."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator

import httpx
import openai
import pytest
from PIL import Image

from diffusion_edge.api.http import create_app
from diffusion_edge.api.service import Service
from diffusion_edge.errors import QueueFull
from tests.api.fakes import failing, fake_picture, service


def connected(made: Service) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url="http://test/v1",
        api_key="unused",
        max_retries=0,
        http_client=httpx.AsyncClient(transport=httpx.ASGITransport(create_app(made))),
    )


@pytest.fixture
async def client() -> AsyncIterator[openai.AsyncOpenAI]:
    async with connected(service()) as made:
        yield made


async def test_images_generate(client: openai.AsyncOpenAI) -> None:
    answer = await client.images.generate(
        model="shapes",
        prompt="a red circle on a white background",
        n=2,
        size="64x64",  # type: ignore[call-overload]
        response_format="b64_json",
        extra_body={"seed": 11, "diffusion_edge": {"plan": "hall:8,tower:12"}},
    )
    for number, item in enumerate(answer.data):
        with Image.open(io.BytesIO(base64.b64decode(item.b64_json))) as image:
            assert image.tobytes() == fake_picture(11 + number, 64, 64).rgb
    assert answer.model_extra["diffusion_edge"]["plan"] == "hall:8,tower:12"


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["shapes"]
    assert (await client.models.retrieve("shapes")).id == "shapes"


async def test_errors_arrive_as_the_client_s_own(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.images.generate(prompt="", model="shapes")
    assert (wrong.value.param, wrong.value.code) == ("prompt", "invalid_value")
    async with connected(service(failing(QueueFull("full", retry_after_s=1.0)))) as busy:
        with pytest.raises(openai.RateLimitError) as full:
            await busy.images.generate(prompt="a star", model="shapes")
    assert full.value.response.headers["retry-after"] == "1"
