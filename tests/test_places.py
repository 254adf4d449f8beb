from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_edge.errors import ConfigError
from diffusion_edge.places import REPOSITORY, family_folder, trace_file


def test_a_trace_is_found_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("t_s,bytes_per_s\n0,1\n")
    assert trace_file("mine.csv") == trace_file(str(tmp_path / "mine.csv")) == tmp_path / "mine.csv"
    assert trace_file("serve_configs/local.yaml") == REPOSITORY / "serve_configs" / "local.yaml"
    with pytest.raises(ConfigError, match=r"there is no file yours\.csv, here or in"):
        trace_file("yours.csv")


def test_a_family_folder_is_found_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "family.yaml").write_text("name: mine\n")
    assert family_folder("mine") == tmp_path / "mine"
    assert family_folder(str(tmp_path / "mine")) == tmp_path / "mine"
    assert family_folder("shapes") == REPOSITORY / "stage_models" / "shapes"
    (tmp_path / "stage_models" / "ours").mkdir(parents=True)
    (tmp_path / "stage_models" / "ours" / "family.yaml").write_text("name: ours\n")
    assert family_folder("ours") == tmp_path / "stage_models" / "ours"
    with pytest.raises(ConfigError, match=r"nowhere.*ours.*shapes"):
        family_folder("nowhere")
    with pytest.raises(ConfigError, match="did you mean 'shapes'"):
        family_folder("shape")
