"""The Serve config file: strict, and still a file that Ray takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from diffusion_edge.config import REPOSITORY, family_folder, load_config, read_settings
from diffusion_edge.errors import ConfigError
from diffusion_edge.types import Link

CONFIGS = REPOSITORY / "serve_configs"
Edit = Callable[[str, str], Path]


@pytest.fixture
def edited(tmp_path: Path) -> Edit:
    """local.yaml with one piece of text replaced."""

    def edit(old: str, new: str) -> Path:
        text = (CONFIGS / "local.yaml").read_text()
        assert old in text
        path = tmp_path / "edited.yaml"
        path.write_text(text.replace(old, new, 1))
        return path

    return edit


@pytest.mark.parametrize("name", ["local.yaml", "lan.yaml"])
def test_shipped_files_are_accepted_by_us_and_by_ray(name: str) -> None:
    schema = pytest.importorskip("ray.serve.schema")
    settings = load_config(CONFIGS / name).settings
    assert list(settings.stages) == ["device", "edge", "cloud"]
    accepted = schema.ServeDeploySchema.model_validate(yaml.safe_load((CONFIGS / name).read_text()))
    assert read_settings(accepted.applications[0].args) == settings


def test_only_the_local_file_emulates() -> None:
    assert load_config(CONFIGS / "local.yaml").settings.emulates
    assert not load_config(CONFIGS / "lan.yaml").settings.emulates


@pytest.mark.parametrize(
    ("old", "new", "key", "right"),
    [
        ("capacity: 32", "capcity: 32", "applications[0].args.stages.device.capcity", "'capacity'"),
        ("step_s: 0.12", "steps: 0.12", "stages.device.emulate.steps", "'step_s'"),
        ("port: 8000", "prot: 8000", "http_options.prot", "'port'"),
        ("proxy_location:", "proxy_locaton:", "proxy_locaton", "'proxy_location'"),
        ("delay_s: 0.005", "delays: 0.005", "links[0].delays", "'delay_s'"),
        ("policy: elastic", "zzzz: elastic", "args.zzzz", "known are defaults, drain_timeout_s"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_right_one(
    edited: Edit, old: str, new: str, key: str, right: str
) -> None:
    path = edited(old, new)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.file == str(path)
    assert caught.value.key.endswith(key)
    assert str(path) in caught.value.message
    assert "unknown key" in caught.value.message
    assert right in caught.value.message


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("step_s: 0.12", "step_s: -1", "line 27: applications[0].args.stages.device.emulate"),
        ("6250000.0", "6.25e6", "YAML reads this as text, write 6250000.0"),
        ("tier: edge", "tier: egde", "did you mean 'edge'?"),
        ("[device, edge]", "[device, egde]", "there is no stage 'egde'; did you mean 'edge'?"),
        ("[device, edge]", "[edge, edge]", "a link joins two different stages"),
        ("[device, cloud]", "[cloud, edge]", "these two stages have a link already"),
        ("        edge:\n", "        device:\n", "this key stands twice"),
        ("device: 0.0, ", "", "no price for 'device', the tier of the stage 'device'"),
        ("        edge:\n", "        Edge one:\n", "should match pattern"),
        ("policy: elastic", "plan: cloud", "args.plan: 'cloud' in plan 'cloud' is not stage:steps"),
        ("policy: elastic", "plan: clod:4", "no stage 'clod'; did you mean 'cloud'?"),
        ("app:build", "app:bild", "not one of diffusion_edge.serve.app:build"),
        ("placement_timeout_s: 60.0", "placement_timeout_s: 90.0", "less than or equal to 60"),
        ("port: 8000", "port: eight", "not 'eight'"),
        ("route_prefix: /", "route_prefix: [/", "not YAML"),
        ("      family: stage_models/shapes\n", "", "args.family: this key is missing"),
    ],
)
def test_a_wrong_value_says_where_and_what_would_be_right(
    edited: Edit, old: str, new: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(edited(old, new))
    assert said in caught.value.message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "missing.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"empty\.yaml"):
        load_config(tmp_path / "empty.yaml")


def test_links_hold_in_both_directions() -> None:
    settings = load_config(CONFIGS / "local.yaml").settings
    links = settings.link_map()
    assert links[("device", "cloud")] == links[("cloud", "device")] == Link(2500000.0, 0.025)
    assert set(settings.emulated_links("edge")) == {"device", "cloud"}
    assert load_config(CONFIGS / "lan.yaml").settings.emulated_links("edge") == {}


def test_a_family_folder_is_found_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "family.yaml").write_text("name: mine\n")
    assert family_folder("mine") == tmp_path / "mine"
    assert family_folder(str(tmp_path / "mine")) == tmp_path / "mine"
    with pytest.raises(ConfigError, match="nowhere"):
        family_folder("nowhere")


@pytest.mark.parametrize(
    ("plan", "told"), [("cloud:8,egde:4", "did you mean 'edge'"), ("cloud", "is not stage:steps")]
)
def test_a_fixed_plan_names_stages_of_this_file(edited: Edit, plan: str, told: str) -> None:
    right = edited("policy: elastic", "policy: fixed\n      plan: cloud:8,edge:12")
    assert load_config(right).settings.plan == "cloud:8,edge:12"
    wrong = edited("policy: elastic", f"policy: fixed\n      plan: {plan}")
    with pytest.raises(ConfigError, match=told) as caught:
        load_config(wrong)
    assert caught.value.key.endswith("plan")
