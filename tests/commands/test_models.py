"""`models list`, `check` and `pull`, against a hub on this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner, Result

from diffusion_edge.commands import models
from diffusion_edge.commands.app import app
from tests.fakehub import FakeHub, run, serving
from tests.tiny import STAGES

NOWHERE = "http://127.0.0.1:9"


def here(*arguments: str) -> Result:
    """In this process: commands that do not ask the hub."""
    return CliRunner().invoke(app, ["models", *arguments])


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory, tiny_family: Path) -> Path:
    """The tiny family's stages as they would lie in repositories, with files that nobody wants."""
    root = tmp_path_factory.mktemp("repositories")
    for stage in STAGES:
        shutil.copytree(tiny_family / stage, root / stage)
        for unwanted in ("pipeline.py", "vae/diffusion_pytorch_model.bin", "model.ckpt"):
            (root / stage / unwanted).write_bytes(b"unsafe")
    return root


@pytest.fixture
def hub(repositories: Path) -> Iterator[FakeHub]:
    with serving(FakeHub({f"tiny/{stage}": repositories / stage for stage in STAGES})) as found:
        yield found


@pytest.fixture
def card(tmp_path: Path, tiny_family: Path) -> Path:
    """The folder of a card whose models are on the hub."""
    text = (tiny_family / "family.yaml").read_text()
    for stage in STAGES:
        text = text.replace(f"folder: {stage},", f"hub: tiny/{stage},")
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "family.yaml").write_text(text + "shared: cloud\n")
    return tmp_path / "card"


def test_a_family_is_fetched_once_and_checked(hub: FakeHub, card: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    before = run(home, hub.url, "check", str(card))
    assert before.returncode == 1
    assert "device: tiny/device at main: missing; 110 kB to fetch" in before.stdout
    assert hub.asked == []

    pulled = run(home, hub.url, "pull", str(card))
    assert pulled.returncode == 0, pulled.stderr
    assert hub.commit("tiny/edge") in pulled.stdout
    assert "licence: fake-licence" in pulled.stdout
    sent = [name.partition("@")[0] for name in hub.asked]
    assert not [name for name in sent if name.endswith((".py", ".bin", ".ckpt"))]
    texts = [name for name in sent if "/text" in name or "/token" in name]
    assert len(texts) == 4
    assert all(name.startswith("tiny/cloud/") for name in texts)

    after = run(home, NOWHERE, "check", str(card))
    assert after.returncode == 0, after.stdout + after.stderr
    assert "latent space: one for device, edge, cloud (latent_channels 4" in after.stdout
    assert "cloud: tiny/cloud at main: on disk\n  memory: 145 kB in float32" in after.stdout

    again = run(home, NOWHERE, "pull", str(card))
    assert again.returncode == 0
    assert "tiny is on disk" in again.stdout


def test_what_is_half_there_is_missing_and_comes_by_itself(
    hub: FakeHub, card: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    assert run(home, hub.url, "pull", str(card)).returncode == 0
    cache = home / "hub" / "models--tiny--edge" / "snapshots" / hub.commit("tiny/edge")
    (cache / "vae" / "config.json").unlink()
    hub.asked.clear()
    told = run(home, NOWHERE, "check", str(card))
    assert told.returncode == 1
    assert "edge: tiny/edge at main: missing vae/config.json; size not known: no answer" in (
        told.stdout
    )
    assert "Traceback" not in told.stderr
    assert run(home, hub.url, "pull", str(card)).returncode == 0
    assert len(hub.asked) <= 1
    assert run(home, NOWHERE, "check", str(card)).returncode == 0


def test_a_fetch_that_was_cut_goes_on(
    hub: FakeHub, card: Path, tmp_path: Path, repositories: Path
) -> None:
    """The hub's client keeps what it has in pieces of 10 MiB."""
    large, name = tmp_path / "large", "transformer/diffusion_pytorch_model.safetensors"
    shutil.copytree(repositories / "device", large)
    save_file({"w": np.arange(6_000_000, dtype=np.float32)}, large / name)
    hub.repositories["tiny/device"] = large
    hub.cut = {name}
    results = [run(tmp_path / "home", hub.url, "pull", str(card)) for _ in range(2)]
    assert results[1].returncode == 0, results[1].stderr
    assert not any("Traceback" in result.stderr for result in results)
    sent = [at for at in hub.asked if at.startswith(f"tiny/device/{name}")]
    assert [at.partition("@")[2] for at in sent] == ["0", str(10 * 2**20)]


def test_a_gated_model_says_what_to_do(hub: FakeHub, card: Path, tmp_path: Path) -> None:
    hub.gated = {"tiny/device"}
    told = run(tmp_path / "home", hub.url, "pull", str(card))
    assert told.returncode == 1
    assert "gated: accept the licence on https://huggingface.co/tiny/device" in told.stdout
    assert "tiny/device is gated: accept its licence" in told.stderr
    assert "hf auth login" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("hub: tiny/edge,", "hub: tiny/moon,"), "the hub knows no tiny/moon"),
        (("hub: tiny/edge,", "hub: tiny/edge, revision: nowhere,"), "no revision 'nowhere'"),
    ],
)
def test_what_the_hub_does_not_have_is_told(
    hub: FakeHub, card: Path, tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    yaml = card / "family.yaml"
    yaml.write_text(yaml.read_text().replace(*change))
    for command in ("pull", "check"):
        told = run(tmp_path / "home", hub.url, command, str(card))
        assert told.returncode == 1
        assert said in told.stdout + told.stderr
        assert "Traceback" not in told.stderr
    assert hub.asked == []


def test_unsafe_weights_are_refused_by_name(
    hub: FakeHub, card: Path, tmp_path: Path, repositories: Path
) -> None:
    unsafe = tmp_path / "unsafe"
    shutil.copytree(repositories / "edge", unsafe)
    (unsafe / "transformer" / "diffusion_pytorch_model.safetensors").rename(
        unsafe / "transformer" / "diffusion_pytorch_model.bin"
    )
    hub.repositories["tiny/edge"] = unsafe
    told = run(tmp_path / "home", hub.url, "pull", str(card))
    assert told.returncode == 1
    assert "tiny/edge has no safetensors weights for transformer; unsafe formats" in told.stderr
    assert hub.asked == []


def test_no_network_is_told(card: Path, tmp_path: Path) -> None:
    told = run(tmp_path / "home", NOWHERE, "pull", str(card))
    assert told.returncode == 1
    assert told.stderr.strip() == f"error: no answer from the hub at {NOWHERE}"
    checked = run(tmp_path / "home", NOWHERE, "check", str(card))
    assert checked.returncode == 1
    assert checked.stdout.count(f"size not known: no answer from the hub at {NOWHERE}") == 3


# ---------------------------------------------------------------------------- without the hub


def test_all_families_are_listed_in_plain_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    result = here("list")
    assert result.exit_code == 0
    assert "sdxl (sdxl): " in result.stdout
    assert "  edge  edge  segmind/SSD-1B  apache-2.0  missing\n" in result.stdout
    assert "  cloud  cloud  stage_models/shapes/cloud  Apache-2.0  on disk\n" in result.stdout


def test_where_no_families_are_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "FAMILIES", tmp_path / "stage_models")
    result = here("list")
    assert result.exit_code == 1
    assert f"there are no families in {tmp_path / 'stage_models'}" in result.stderr


def test_the_built_in_family_passes_its_check() -> None:
    result = here("check", "shapes")
    assert result.exit_code == 0
    assert "latent space: one for device, edge, cloud" in result.stdout


@pytest.fixture
def family(tmp_path: Path, tiny_family: Path) -> Path:
    shutil.copytree(tiny_family, tmp_path / "family")
    config = tmp_path / "family" / "edge" / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5}))
    return tmp_path / "family"


def test_another_latent_space_is_told(family: Path) -> None:
    result = here("check", str(family))
    assert result.exit_code == 1
    assert (
        "latent space: the VAE of edge is not that of cloud: scaling_factor is 0.5, not 1. "
        "They cannot hand off to each other" in result.stdout
    )
    yaml = family / "family.yaml"
    yaml.write_text(yaml.read_text() + "vae: cloud\n")
    assert here("check", str(family)).exit_code == 1


def test_another_copy_of_the_vae_is_well_if_the_card_says_so(family: Path) -> None:
    shutil.copy(family / "cloud" / "vae" / "config.json", family / "edge" / "vae")
    weights = family / "edge" / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: 2 * values for name, values in load_file(weights).items()}, weights)
    result = here("check", str(family))
    assert result.exit_code == 1
    assert "tensors differ, the first is " in result.stdout
    yaml = family / "family.yaml"
    yaml.write_text(yaml.read_text() + "vae: cloud\n")
    result = here("check", str(family))
    assert result.exit_code == 0
    assert "The card says that cloud's stands for all" in result.stdout


def test_another_noise_is_told(tmp_path: Path, tiny_family: Path) -> None:
    folder = shutil.copytree(tiny_family, tmp_path / "family")
    config = folder / "device" / "scheduler" / "scheduler_config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps(said | {"timestep_spacing": "leading"}))
    result = here("check", str(folder))
    assert result.exit_code == 0
    assert "timestep_spacing is leading, not trailing. Those of cloud are taken" in result.stdout
    config.write_text(json.dumps(said | {"prediction_type": "epsilon"}))
    result = here("check", str(folder))
    assert result.exit_code == 1
    assert (
        "noise: the model of the stage 'device' was trained otherwise than that of 'cloud': "
        "prediction_type is epsilon, not v_prediction. They cannot hand off to each other"
        in result.stdout
    )


def test_files_of_a_local_family_that_are_missing_are_named(family: Path) -> None:
    shutil.rmtree(family / "device" / "transformer")
    result = here("check", str(family))
    assert result.exit_code == 1
    assert "missing transformer/config.json, transformer/safetensors weights" in result.stdout
    pulled = here("pull", str(family))
    assert pulled.exit_code == 1
    assert "they are not on the hub" in pulled.stderr


def test_an_unknown_family_is_told_with_those_that_are_known() -> None:
    result = here("check", "moon")
    assert result.exit_code == 1
    assert "no such family in stage_models (flux, sd15, sd35, sdxl, shapes)" in result.stderr
