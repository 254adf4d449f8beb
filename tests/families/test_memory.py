"""What does not fit is told from the checkpoints' headers, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from diffusion_edge.errors import ConfigError, DoesNotFit
from diffusion_edge.families import pipeline
from diffusion_edge.families.card import load_card
from diffusion_edge.families.load import load_family
from diffusion_edge.families.pipeline import Loading
from diffusion_edge.families.weights import needed_bytes

CPU = Loading(device="cpu")


def needed(family: Path, stage: str, dtype: str = "float32") -> int:
    return needed_bytes(
        [family / stage / part for part in ("text_encoder", "transformer", "vae")], dtype
    )


def free(monkeypatch: pytest.MonkeyPatch, nbytes: float) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int(nbytes)))


def loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(pipeline, "_model", fail)


def test_a_stage_that_does_not_fit_is_refused_before_it_is_loaded(
    tiny_family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads_nothing(monkeypatch)
    free(monkeypatch, 10_000)
    with pytest.raises(DoesNotFit, match=r"'cloud' needs 145 kB .* main memory has 10 kB") as told:
        load_family(load_card(tiny_family), "cloud", CPU)
    assert "float16 needs half of it" in told.value.message


def test_room_to_work_is_asked_for_as_well(
    tiny_family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, nbytes = load_card(tiny_family), needed(tiny_family, "edge")
    free(monkeypatch, nbytes * pipeline.ROOM + 1)
    assert load_family(card, "edge", CPU).stage == "edge"
    free(monkeypatch, nbytes * pipeline.ROOM - 1)
    with pytest.raises(DoesNotFit, match="to work with"):
        load_family(card, "edge", CPU)


def test_half_precision_needs_half(tiny_family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card, nbytes = load_card(tiny_family), needed(tiny_family, "cloud", "bfloat16")
    free(monkeypatch, nbytes * pipeline.ROOM + 1)
    half = Loading(device="cpu", dtype="bfloat16")
    assert load_family(card, "cloud", half).stage == "cloud"
    free(monkeypatch, nbytes)
    with pytest.raises(DoesNotFit, match="in bfloat16") as told:
        load_family(card, "cloud", half)
    assert "half of it" not in told.value.message


def test_a_gpu_needs_room_for_all_or_offload(
    tiny_family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {name: tiny_family / "cloud" / name for name in ("text_encoder", "transformer", "vae")}
    largest = max(needed_bytes([folder], "float32") for folder in parts.values())
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(largest * pipeline.ROOM) + 1, 0))
    with pytest.raises(DoesNotFit, match="the GPU cuda:0"):
        pipeline._check_memory(parts, "float32", gpu, False, "cloud")
    free(monkeypatch, 10**9)
    pipeline._check_memory(parts, "float32", gpu, True, "cloud")
    free(monkeypatch, 1000)
    with pytest.raises(DoesNotFit, match="main memory"):
        pipeline._check_memory(parts, "float32", gpu, True, "cloud")


def test_offload_needs_a_gpu(tiny_family: Path) -> None:
    with pytest.raises(ConfigError, match="there is no GPU"):
        load_family(load_card(tiny_family), "cloud", Loading(device="cpu", offload=True))
