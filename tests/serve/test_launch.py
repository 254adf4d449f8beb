"""What is checked before a server starts, without Ray."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_edge.config import HttpOptions, load_config
from diffusion_edge.errors import ConfigError
from diffusion_edge.places import REPOSITORY
from diffusion_edge.serve.launch import (
    check_models,
    claimed_port,
    environment,
    own_variables,
    serve,
)
from tests.serve.live import config_file, free_port


@pytest.fixture
def config(tiny_family: Path, tmp_path: Path) -> Path:
    return config_file(tmp_path, tiny_family)


def test_a_port_in_use(config: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 cannot be used"):
            serve(config, port)


def test_a_port_that_another_start_is_about_to_take(config: Path) -> None:
    port = free_port()
    http = HttpOptions(port=port)
    with claimed_port(http), pytest.raises(ConfigError, match="another server is starting on it"):
        serve(config, port)
    with claimed_port(http):
        pass


def test_a_port_that_is_none(config: Path) -> None:
    with pytest.raises(ConfigError, match="port 70000 is not between 1 and 65535"):
        serve(config, 70000)


def test_models_that_are_not_there(tiny_family: Path, tmp_path: Path) -> None:
    unknown = config_file(tmp_path, tiny_family, ("model: cloud", "model: giant"))
    with pytest.raises(ConfigError, match="no stage model 'giant'"):
        check_models(load_config(unknown).settings)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "family.yaml").write_text((tiny_family / "family.yaml").read_text())
    with pytest.raises(ConfigError, match="the model 'device' of the stage 'phone' is not on disk"):
        check_models(load_config(config_file(tmp_path, bare)).settings)


HUB_CARD = """name: far
title: models of the hub that nobody fetched
architecture: sd
licence: unknown
stages:
  edge: {hub: nobody/small, tier: edge}
  cloud: {hub: nobody/large, tier: cloud}
sizes: {multiple_of: 8, least: 64, most: 128}
latent_channels: 4
factor: 8
max_tokens: 77
defaults: {size: 64, steps: 4, guidance: 7.5, solver: ddim}
"""


def test_a_family_that_is_not_on_disk_stops_with_the_command_that_fetches_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "family.yaml").write_text(HUB_CARD)
    machine = REPOSITORY / "serve_configs" / "machine.yaml"
    with pytest.raises(ConfigError, match="`diffusion-edge models pull far` fetches it"):
        serve(machine, free_port(), family=str(tmp_path))


def test_the_family_may_be_another_than_the_configs(config: Path) -> None:
    """Whose models the config's stages then have to be."""
    text = config.read_text().replace("model: cloud", "model: giant")
    config.write_text(text)
    with pytest.raises(ConfigError, match="family 'shapes' has no stage model 'giant'"):
        serve(config, free_port(), family="shapes")
    with pytest.raises(ConfigError, match="no such family in stage_models"):
        serve(config, free_port(), family="attic")


def test_surroundings_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    with environment(own_variables()):
        assert "RAY_ADDRESS" not in os.environ
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert os.environ["RAY_ADDRESS"] == "elsewhere:6379"
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("diffusion_edge.serve.launch", {"ray", "torch"}),
        ("diffusion_edge.serve.app", {"torch", "diffusers"}),
    ],
)
def test_what_deploys_does_not_import_what_runs(module: str, absent: set[str]) -> None:
    script = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert not absent & set(done.stdout.split())
