"""Sizes in memory, told from headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_edge.families.weights import (
    elements,
    header,
    human,
    is_whole,
    needed_bytes,
    weight_files,
)

TENSORS = {"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float16)}


def save(path: Path) -> Path:
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def test_values_are_counted_whatever_they_are_stored_in(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors")
    assert elements(tmp_path) == 22
    assert needed_bytes([tmp_path], "float32") == 88
    assert needed_bytes([tmp_path, tmp_path], "bfloat16") == 88


def test_shards_add_up_and_variants_do_not(tmp_path: Path) -> None:
    save(tmp_path / "model-00001-of-00002.safetensors")
    save(tmp_path / "model-00002-of-00002.safetensors")
    save(tmp_path / "model.fp16.safetensors")
    save(tmp_path / "model.fp16-00001-of-00002.safetensors")
    assert len(weight_files(tmp_path)) == 2
    assert elements(tmp_path) == 44


def test_a_variant_counts_where_there_is_nothing_else(tmp_path: Path) -> None:
    save(tmp_path / "model.fp16.safetensors")
    assert elements(tmp_path) == 22
    assert elements(tmp_path / "nowhere") == 0


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
