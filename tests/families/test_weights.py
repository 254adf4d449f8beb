"""Sizes in memory, told from headers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_edge.errors import ConfigError
from diffusion_edge.families.weights import (
    Checkpoint,
    checkpoint,
    header,
    human,
    is_whole,
    needed_bytes,
)

TENSORS = {"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float16)}


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """The folder of a text encoder without weights."""
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text("{}")
    return tmp_path / "text_encoder"


def save(path: Path) -> Path:
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def test_values_are_counted_whatever_they_are_stored_in(part: Path) -> None:
    save(part / "model.safetensors")
    assert needed_bytes([part], "float32") == 88
    assert needed_bytes([part, part], "bfloat16") == 88


def test_shards_add_up_and_variants_do_not(part: Path) -> None:
    shards = [save(part / f"model-0000{n}-of-00002.safetensors") for n in (1, 2)]
    save(part / "model.fp16.safetensors")
    save(part / "model.fp16-00001-of-00002.safetensors")
    which = dict(zip("ab", (shard.name for shard in shards), strict=True))
    index = part / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": which}))
    assert checkpoint(part) == Checkpoint(index, tuple(shards))
    assert needed_bytes([part], "float32") == 176


def test_a_variant_counts_where_there_is_nothing_else(part: Path) -> None:
    save(part / "model.fp16.safetensors")
    assert needed_bytes([part], "float32") == 88


def test_a_folder_without_weights_is_told(part: Path, tmp_path: Path) -> None:
    for folder in (part, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="no safetensors weights in"):
            checkpoint(folder)


@pytest.mark.parametrize("left", [0, 7, 8, 60, -1])
def test_a_cut_file_is_not_whole(tmp_path: Path, left: int) -> None:
    path = save(tmp_path / "model.safetensors")
    assert is_whole(path)
    path.write_bytes(path.read_bytes()[:left])
    assert not is_whole(path)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        header(path)


def test_a_file_that_is_longer_than_it_says_is_not_whole(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes() + b"x")
    assert not is_whole(path)
    assert not is_whole(tmp_path / "nowhere.safetensors")


def test_bytes_are_said_as_people_say_them() -> None:
    said = [human(n) for n in (7, 1500, 2_340_000, 1_700_000_000, 24_000_000_000)]
    assert said == ["7 B", "2 kB", "2 MB", "1.7 GB", "24.0 GB"]
