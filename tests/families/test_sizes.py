"""Which sizes are allowed, and how they are said."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from diffusion_edge.families.sizes import GivenSizes, Sizes, parse_size

RULE = {"multiple_of": 16, "least": 256, "most": 1024, "pixels": 512 * 768}


def sizes(given: object) -> Sizes:
    found: Sizes = TypeAdapter(GivenSizes).validate_python(given)
    return found


def test_a_list_is_one_of_squares() -> None:
    squares = sizes([64, 128])
    assert squares.allows(64, 64)
    assert squares.allows(128, 128)
    assert not squares.allows(64, 128)
    assert not squares.allows(96, 96)
    assert str(squares) == "64x64, 128x128"
    assert squares.described() == ["64x64", "128x128"]


@pytest.mark.parametrize(
    ("width", "height", "allowed"),
    [
        (512, 512, True),
        (512, 768, True),
        (768, 512, True),
        (256, 1024, True),
        (528, 512, True),
        (520, 512, False),
        (240, 512, False),
        (1040, 256, False),
        (768, 768, False),
    ],
)
def test_a_rule_bounds_edges_and_pixels(width: int, height: int, allowed: bool) -> None:
    assert sizes(RULE).allows(width, height) is allowed


def test_a_rule_says_itself() -> None:
    rule = sizes(RULE)
    assert str(rule) == "WIDTHxHEIGHT in multiples of 16 from 256 to 1024, 393216 pixels at most"
    assert rule.described() == RULE
    assert sizes({"most": 64}).allows(64, 64)


@pytest.mark.parametrize("given", [{}, {"squares": [64], "most": 64}, {"most": 64, "leest": 8}])
def test_neither_both_nor_an_unknown_key(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        sizes(given)


@pytest.mark.parametrize("text", ["512x768", "512X768"])
def test_a_size_is_read(text: str) -> None:
    assert parse_size(text) == (512, 768)


@pytest.mark.parametrize("text", ["", "512", "512x", "512x768x3", "-1x5", "5.0x5", "²x5", "9" * 6])
def test_what_is_no_size_is_none(text: str) -> None:
    assert parse_size(text) is None
