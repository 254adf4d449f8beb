from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from diffusion_edge.commands.app import app
from diffusion_edge.routing.policies import RULES
from tests.answering import answering, behind_a_dead_proxy
from tests.serve.live import EMULATED


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def generate(tiny_family: Path, out: Path, *more: str) -> Result:
    prompt = "a red circle on a white background"
    return run("generate", prompt, "--family", tiny_family, "--out", out, *more)


def test_help_names_the_commands_and_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from typer.testing import CliRunner;"
        "from diffusion_edge.commands.app import app;"
        "print(CliRunner().invoke(app, ['--help']).output);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'ray', 'diffusers', 'httpx', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for command in ("serve", "generate", "plan", "check", "profile", "plots"):
        assert command in done.stdout


def test_generate_writes_the_image_and_says_how(tiny_family: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    result = generate(
        tiny_family, out, "--plan", "cloud:3,edge:4,device:3", "--seed", "5", "--json"
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["plan"] == "cloud:3,edge:4,device:3"
    assert [span["stage"] for span in report["spans"]] == ["cloud", "edge", "device"]
    assert [span["hop_bytes"] > 0 for span in report["spans"]] == [True, True, False]
    with Image.open(out) as image:
        assert image.size == (16, 16)
        assert "Seed: 5" in image.text["parameters"]  # type: ignore[attr-defined]
        chunk = json.loads(image.text["diffusion_edge"])  # type: ignore[attr-defined]  # of PNG files
    assert chunk["plan"] == "cloud:3,edge:4,device:3"


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_a_split_on_one_model_is_the_same_image(tiny_family: Path, tmp_path: Path) -> None:
    whole, split, mixed = (tmp_path / f"{n}.png" for n in ("whole", "split", "mixed"))
    generate(tiny_family, whole, "--plan", "cloud:10", "--seed", "5")
    generate(tiny_family, split, "--plan", "cloud:4,cloud:6", "--seed", "5")
    generate(tiny_family, mixed, "--plan", "cloud:4,device:6", "--seed", "5")
    assert pixels(whole) == pixels(split)
    assert pixels(whole) != pixels(mixed)


@pytest.mark.parametrize(("codec", "carried"), [("int8", "int8"), ("auto", "exact")])
def test_the_codec_is_that_of_every_hop(
    tiny_family: Path, tmp_path: Path, codec: str, carried: str
) -> None:
    plan = ("--plan", "cloud:4,edge:3,cloud:3", "--json")
    result = generate(tiny_family, tmp_path / "a.png", *plan, "--codec", codec)
    assert json.loads(result.stdout.splitlines()[-1])["codecs"] == [carried, carried]
    with Image.open(tmp_path / "a.png") as image:
        chunk = json.loads(image.text["diffusion_edge"])  # type: ignore[attr-defined]  # of PNG files
    assert chunk["codecs"] == [carried, carried]


@pytest.fixture
def rectangles(tiny_family: Path, tmp_path: Path) -> Path:
    """The tiny family with rectangles by rule, and a cloud that has guidance of its own."""
    for stage in ("device", "edge", "cloud"):
        (tmp_path / stage).symlink_to(tiny_family / stage)
    card = (tiny_family / "family.yaml").read_text()
    for old, new in (
        ("sizes: [16, 32]", "sizes: {multiple_of: 8, least: 16, most: 48, pixels: 1024}"),
        ("folder: cloud, tier: cloud", "folder: cloud, tier: cloud, guidance: 1.5"),
    ):
        assert old in card
        card = card.replace(old, new)
    (tmp_path / "family.yaml").write_text(card)
    return tmp_path


def test_sizes_may_be_rectangles(rectangles: Path) -> None:
    out, plan = rectangles / "a.png", ("--plan", "cloud:1,edge:1", "--size")
    assert generate(rectangles, out, *plan, "40x24").exit_code == 0
    with Image.open(out) as image:
        assert image.size == (40, 24)
    refused = generate(rectangles, out, *plan, "48x24")
    assert refused.exit_code == 1
    assert (
        "size '48x24' is not one of this model's: WIDTHxHEIGHT in multiples of 8 from 16 to 48, "
        "1024 pixels at most" in refused.stderr
    )


def test_guidance_may_differ_by_stage(rectangles: Path) -> None:
    """A span's own is the command's, then its model's; it is the request's for the other spans."""

    def made(plan: str, *more: str) -> tuple[str, bytes]:
        out = rectangles / "a.png"
        result = generate(rectangles, out, "--plan", plan, "--seed", "5", "--json", *more)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout.splitlines()[-1])["plan"], pixels(out)

    plan, filled = made("cloud:3,edge:3")
    assert plan == "cloud:3@1.5,edge:3"
    assert made("cloud:3@1.5,edge:3@4") == ("cloud:3@1.5,edge:3@4", filled)
    assert made("cloud:3,edge:3", "--guidance-scale", "4") == (plan, filled)
    assert made("cloud:3@9,edge:3")[1] != filled


def test_unknown_words_are_a_warning(tiny_family: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    result = run("generate", "a red zebra", "--family", tiny_family, "--out", out, "--steps", "1")
    assert result.exit_code == 0
    assert "zebra" in result.stderr


WRONG = {
    "a plan that is none": (("--plan", "cloud"), "stage:steps"),
    "an unknown stage": (("--plan", "moon:4"), "device, edge, cloud"),
    "steps that differ": (("--plan", "cloud:4", "--steps", "5"), "4 steps"),
    "an unknown solver": (("--solver", "heun"), "ddim, euler, euler-ancestral, dpmpp-2m"),
    "steps that nobody can make": (("--solver", "ddim", "--steps", "122"), "come out as 123"),
    "an unknown size": (("--size", "17"), "16, 32"),
    "an unknown codec": (("--codec", "fp4"), "exact, bf16, int8, auto"),
    "a folder that is no family": (("--family", "/nonexistent"), "no folder /nonexistent with a"),
    "an ending of no image": (("--out", "image.txt"), ".png"),
    "a file as the family": (("--family", __file__), "with a family.yaml"),
    "a file that cannot be": (("--steps", "1", "--out", "/proc/a.png"), "/proc/a.png: No such"),
    "a negative prompt of no text": (("--negative-prompt", "\udcff"), "is not UTF-8 text"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_end_with_a_sentence(tiny_family: Path, tmp_path: Path, name: str) -> None:
    arguments, words = WRONG[name]
    result = generate(tiny_family, tmp_path / "a.png", *arguments)
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("prompt", "said"), [("\udcff", "is not UTF-8 text"), ("", "is empty"), (" \n", "is empty")]
)
def test_a_prompt_of_no_text_is_told(
    tiny_family: Path, tmp_path: Path, prompt: str, said: str
) -> None:
    made = ("--family", str(tiny_family), "--out", str(tmp_path / "a.png"))
    for command in (("generate", *made), ("plan", "--url", "http://x")):
        result = run(command[0], prompt, *command[1:])
        assert (result.exit_code, said in result.stderr) == (1, True)


def test_a_picture_does_not_replace_a_folder(tiny_family: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    result = generate(tiny_family, tmp_path / "a.png")
    assert (result.exit_code, "this is a folder" in result.stderr) == (1, True)


def test_seeds_are_those_that_a_generator_takes(tiny_family: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    assert generate(tiny_family, out, "--steps", "1", "--seed", str(2**64 - 1)).exit_code == 0
    for command in (
        ("generate", "a", "--family", tiny_family),
        ("profile", tiny_family),
        ("codecs", tiny_family),
        ("bench", "engine", tiny_family),
    ):
        result = run(*command, "--seed", str(2**64))
        assert result.exit_code == 2
        assert "Invalid value for '--seed'" in result.stderr


def test_files_that_are_no_text_are_told(tiny_family: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.md"
    odd.write_bytes(b"\xff")
    for command in (
        ("profile", tiny_family, "--prompts", odd),
        ("codecs", tiny_family, "--prompts", odd),
        ("bench", "engine", tiny_family, "--page", odd),
        ("check", odd),
    ):
        result = run(*command)
        assert result.exit_code == 1
        assert f"{command[-1]}: cannot be read" in result.stderr


def test_a_file_of_any_name_is_written_and_said(tiny_family: Path, tmp_path: Path) -> None:
    """Names of files are bytes, and some are no text."""
    out = tmp_path / "a\udcff.png"
    result = generate(tiny_family, out, "--steps", "1")
    assert result.exit_code == 0
    assert out.is_file()
    assert "a\\udcff.png: plan" in result.stdout


ANSWERS = (
    b"[]",
    b"null",
    b'"x"',
    b"{",
    b"\xff",
    b"[" * 100_000,
    b'{"error": null}',
    b'{"error": 3}',
)


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: str(answer[:16]))
def test_an_odd_answer_to_plan_is_told(
    answer: bytes, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httpx, "post", lambda *_, **__: httpx.Response(status, content=answer))
    result = run("plan", "a red circle")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize("url", ["", "x", "http://\0", "http://[", "\udcff", "ftp://x"])
def test_a_url_that_is_none_is_told(url: str) -> None:
    result = run("plan", "a red circle", "--url", url)
    assert (result.exit_code, "error: " in result.stderr) == (1, True)


def test_plan_without_a_server_says_so() -> None:
    result = run("plan", "a red circle", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "does not answer" in result.stderr


def test_check_accepts_what_is_shipped_and_names_a_wrong_key(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "serve_configs"
    for config in sorted(shipped.glob("*.yaml")):
        result = run("check", config)
        assert result.exit_code == 0, result.output
        assert "good; stages device, edge, cloud" in result.stdout
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(EMULATED.read_text().replace("capacity:", "capasity:", 1))
    result = run("check", wrong)
    assert result.exit_code == 1
    assert "capasity" in result.stderr
    assert "capacity" in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "policy: elastic",
            "policy: elastc",
            "line 16: applications[0].args.policy: unknown policy 'elastc'; known: elastic, "
            f"{', '.join(list(RULES)[1:])}; did you mean 'elastic'?",
        ),
        (
            "model: edge",
            "model: egde",
            "applications[0].args.stages.tower.model: family 'shapes' has no stage model 'egde'; "
            "it has device, edge, cloud; did you mean 'edge'?",
        ),
        (
            "policy: elastic",
            "policy: elastic\n      emulate: {packet_bytes: sdlx}",
            "applications[0].args.emulate.packet_bytes: family 'sdlx': there is no folder sdlx",
        ),
        (
            "family: stage_models/shapes",
            "family: shape",
            "applications[0].args.family: family 'shape': there is no folder shape",
        ),
    ],
    ids=["policy", "model", "packet_bytes", "family"],
)
def test_names_that_are_not_known_are_told_before_anything_starts(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    """`serve` refuses the same file with the same words."""
    config = tmp_path / "config.yaml"
    text = EMULATED.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    for command in ("check", "serve"):
        result = run(command, config)
        assert result.exit_code == 1, result.output
        assert f"{config}, line " in result.stderr
        assert said in result.stderr


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "applications[0].args.links[0].trace: there is no file trace.csv"),
        ("t,rate\n0,1\n", "must have numbers in its columns t_s, bytes_per_s"),
        ("t_s,bytes_per_s\n0,0\n1,0\n", "its rate is always 0; nothing would ever pass"),
        ("t_s,bytes_per_s\n0,5\n1,-1\n", "must be finite and not negative"),
    ],
    ids=["none", "other columns", "nothing", "negative"],
)
def test_a_trace_that_no_link_can_follow_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str | None, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if rows is not None:
        (tmp_path / "trace.csv").write_text(rows)
    config = tmp_path / "config.yaml"
    text = EMULATED.read_text()
    between = "{between: [phone, tower], "
    assert between in text
    config.write_text(text.replace(between, f"{between}trace: trace.csv, ", 1))
    result = run("check", config)
    assert result.exit_code == 1, result.output
    assert f"{config}, line " in result.stderr
    assert said in result.stderr


def test_a_link_is_throttled_by_a_command() -> None:
    told = {"between": ["device", "cloud"], "factor": 0.1, "restart": True}
    with answering(json.dumps(told)) as url:
        result = run("throttle", "cloud", "device", "--factor", "0.1", "--restart", "--url", url)
    assert result.exit_code == 0, result.output
    assert "device-cloud: 0.1 times its rate" in result.stdout
    assert "its trace has begun again" in result.stdout
    refusal = {"error": {"message": "there is no emulated link between 'a' and 'b'"}}
    with answering(json.dumps(refusal), status=400) as url:
        result = run("throttle", "a", "b", "--factor", "2", "--url", url)
    assert result.exit_code == 1
    assert "there is no emulated link between 'a' and 'b'" in result.stderr
    assert run("throttle", "a", "b", "--factor", "0").exit_code == 2


def test_a_server_on_this_machine_is_asked_without_the_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    behind_a_dead_proxy(monkeypatch)
    with answering('{"plan": "cloud:20"}') as url:
        result = run("plan", "a red circle", "--url", url, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"plan": "cloud:20"}


def test_another_machine_is_asked_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy of this network answers for it."""
    behind_a_dead_proxy(monkeypatch)
    with answering('{"plan": "edge:20"}') as proxy:
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, proxy)
        result = run("plan", "a red circle", "--url", "http://edge.invalid:8000", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"plan": "edge:20"}
