from __future__ import annotations

import pytest

from diffusion_edge.urls import is_this_machine


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000",
        "http://127.1.2.3",
        "http://localhost:8000/v1",
        "http://LOCALHOST.:8000",
        "http://a.localhost",
        "http://[::1]:8000",
        "http://[::ffff:127.0.0.1]:8000",
        "http://0.0.0.0:8000",
    ],
)
def test_addresses_of_this_machine(url: str) -> None:
    assert is_this_machine(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.7:8000",
        "http://localhost.example.org",
        "http://127.0.0.1.example.org",
        "http://127.0.0.1@example.org",
        "https://[2001:db8::1]",
        "no url",
        "http://[half",
        "",
    ],
)
def test_other_addresses(url: str) -> None:
    assert not is_this_machine(url)
