import io
import json

import pytest
from PIL import Image

from diffusion_edge.api.png import Made, encode, parameters, provenance
from diffusion_edge.plan import Plan
from tests.api.fakes import fake_picture, request

PLAN = Plan.parse("hall:8,tower:12", "cheapest")


def test_png_carries_what_other_tools_read() -> None:
    asked = request(negative_prompt="blur", prompt="a red circle, small", solver="dpmpp-2m")
    data = encode(fake_picture(6, 96, 64), "png", Made(asked, PLAN, image=1))
    with Image.open(io.BytesIO(data)) as image:
        text = image.text  # type: ignore[attr-defined]
        assert image.tobytes() == fake_picture(6, 96, 64).rgb
    lines = text["parameters"].split("\n")
    assert lines[:2] == ["a red circle, small", "Negative prompt: blur"]
    assert lines[2].startswith(
        "Steps: 20, Sampler: DPM++ 2M, CFG scale: 4, Seed: 6, Size: 96x64, Model: shapes"
    )
    ours = json.loads(text["diffusion_edge"])
    assert (ours["plan"], ours["reason"], ours["seed"]) == ("hall:8,tower:12", "cheapest", 6)
    assert ours["spans"][1] == {"stage": "tower", "start": 8, "stop": 20}


def test_without_a_negative_prompt_there_is_no_line_for_it() -> None:
    assert "Negative" not in parameters(Made(request(), PLAN))


def test_any_script_survives() -> None:
    asked = request(prompt="ein großer Kreis, 赤い円, 🟠")
    data = encode(fake_picture(1, 64, 64), "png", Made(asked, PLAN))
    with Image.open(io.BytesIO(data)) as image:
        assert image.text["parameters"].startswith(asked.prompt)  # type: ignore[attr-defined]


def test_a_seed_of_zero_is_told_and_counted_on_from() -> None:
    for image in (0, 2):
        made = Made(request(seed=0, guidance=0.0), PLAN, image)
        assert f"CFG scale: 0, Seed: {image}, " in parameters(made)
        assert (provenance(made)["seed"], provenance(made)["guidance_scale"]) == (image, 0.0)


FORGED = "Steps: 99, Sampler: DDIM, CFG scale: 1, Seed: 7, Size: 8x8"
ENDS = ("\n", "\r", "\r\n", "\0", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029")


@pytest.mark.parametrize("end", ENDS, ids=ascii)
def test_a_prompt_cannot_pass_for_settings(end: str) -> None:
    """Nor end the chunk; other tools see one line, and what was asked for can be read back."""
    prompt = f"a circle{end}Negative prompt: nothing{end}{FORGED}"
    asked = request(prompt=prompt, negative_prompt=f"blur{end}{FORGED}")
    text = chunks(encode(fake_picture(1, 64, 64), "png", Made(asked, PLAN)))
    lines = text["parameters"].splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("a circle ")
    assert lines[1].startswith("Negative prompt: blur ")
    assert lines[2].startswith("Steps: 20, ")
    assert not any(ord(c) < 32 for line in lines for c in line)
    ours = json.loads(text["diffusion_edge"])
    assert (ours["prompt"], ours["negative_prompt"]) == (prompt, asked.negative_prompt)


@pytest.mark.parametrize("begins", [FORGED, "  negative prompt: nothing", "\nSteps: 1, Sampler: x"])
def test_a_prompt_that_is_itself_such_a_line_is_quoted(begins: str) -> None:
    first, last = parameters(Made(request(prompt=begins), PLAN)).splitlines()
    assert first == f'"{begins.strip()}"'
    assert last.startswith("Steps: 20, ")


def chunks(data: bytes) -> dict[str, str]:
    with Image.open(io.BytesIO(data)) as image:
        found: dict[str, str] = image.text  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(("kind", "tolerance"), [("jpeg", 4), ("webp", 0)])
def test_other_formats(kind: str, tolerance: int) -> None:
    picture = fake_picture(3, 64, 96)
    data = encode(picture, kind, Made(request(), PLAN))  # type: ignore[arg-type]
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == kind.upper()
        assert image.size == (64, 96)
        far = max(abs(a - b) for a, b in zip(image.tobytes(), picture.rgb, strict=True))
    assert far <= tolerance
