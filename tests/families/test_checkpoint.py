"""What of a folder is loaded: safetensors files of the folder itself, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from diffusion_edge.bench.stock import StockPipeline
from diffusion_edge.commands.app import app
from diffusion_edge.errors import ConfigError
from diffusion_edge.families import hub
from diffusion_edge.families.card import load_card
from diffusion_edge.families.load import load_family
from diffusion_edge.families.pipeline import Loading, PipelineFamily
from diffusion_edge.families.weights import needed_bytes
from tests.architectures import TINY

PARTS = {"transformer": "diffusion_pytorch_model", "text_encoder": "model"}
PARTS["vae"] = PARTS["transformer"]
OUTSIDE = ("evil.bin", "../vae/diffusion_pytorch_model.safetensors", "in/side.safetensors", "..")


@pytest.fixture
def family(tmp_path: Path, tiny_family: Path) -> Path:
    return shutil.copytree(tiny_family, tmp_path / "family")


@pytest.fixture(autouse=True)
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Fails the test that unpickles anything, also where the failure is caught."""
    asked: list[Any] = []

    def fail(file: Any, *_: Any, **__: Any) -> None:
        asked.append(file)
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", fail)
    yield asked
    assert asked == []


def check(family: Path) -> Result:
    return CliRunner().invoke(app, ["models", "check", str(family)])


def refused_by_both(family: Path, said: str) -> None:
    """By `models check` and by loading, for the same reason."""
    with pytest.raises(ConfigError, match=said) as told:
        load_family(load_card(family), "cloud")
    result = check(family)
    assert result.exit_code == 1
    assert f"cloud: {family / 'cloud'}: refused: {told.value.message}\n" in result.stdout
    assert result.exception is None or isinstance(result.exception, SystemExit)


def sharded(part: Path, *names: str) -> Path:
    """The part's checkpoint, cut into files of these names, and its index."""
    stem = PARTS[part.name]
    tensors = load_file(part / f"{stem}.safetensors")
    (part / f"{stem}.safetensors").unlink()
    which = {name: names[i % len(names)] for i, name in enumerate(tensors)}
    for file in names:
        own = {name: tensor for name, tensor in tensors.items() if which[name] == file}
        (part / file).parent.mkdir(exist_ok=True)
        if file != "..":
            save_file(own, part / file, metadata={"format": "pt"})
    index = part / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": which}))
    return index


# ---------------------------------------------------------------------------- only safetensors


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("part", PARTS)
def test_an_index_names_safetensors_files_of_its_folder_or_is_refused(
    family: Path, part: str, name: str
) -> None:
    sharded(family / "cloud" / part, f"{PARTS[part]}-00001-of-00002.safetensors", name)
    refused_by_both(family, f"{part}.* names '{name}'; only safetensors files of its own folder")


@pytest.mark.parametrize("part", PARTS)
def test_an_absolute_path_is_refused(family: Path, tmp_path: Path, part: str) -> None:
    sharded(family / "cloud" / part, str(tmp_path / "elsewhere.safetensors"))
    refused_by_both(family, "only safetensors files of its own folder are loaded")


@pytest.mark.parametrize("part", PARTS)
def test_shards_are_loaded_by_their_index(family: Path, part: str) -> None:
    folder = family / "cloud" / part
    whole = needed_bytes([folder], "float32")
    sharded(folder, *(f"{PARTS[part]}-0000{n}-of-00002.safetensors" for n in (1, 2)))
    (folder / f"{PARTS[part]}-00003-of-00003.safetensors").write_bytes(b"left from another time")
    assert needed_bytes([folder], "float32") == whole
    assert check(family).exit_code == 0
    assert equal(load_family(load_card(family), "cloud"), load_family(load_card(family), "cloud"))


def test_a_link_is_judged_by_what_it_leads_to(family: Path, tmp_path: Path) -> None:
    """All of the hub's cache are links out of the folder."""
    weights = family / "cloud" / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = load_family(load_card(family), "cloud")
    blob = weights.rename(tmp_path / "blob")
    weights.symlink_to(blob)
    assert equal(load_family(load_card(family), "cloud"), whole)
    blob.write_bytes(b"PK\x03\x04 a pickle in a zip")
    with pytest.raises(ConfigError, match="is not a whole safetensors file"):
        load_family(load_card(family), "cloud")
    assert "missing transformer/diffusion_pytorch_model.safetensors" in check(family).stdout


@pytest.mark.parametrize("key", ["transformers_weights", "attn_implementation"])
def test_a_config_that_leads_elsewhere_is_refused(family: Path, key: str) -> None:
    config = family / "cloud" / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: "some/other.safetensors"}))
    refused_by_both(family, f"config.json sets {key}")


CLUTTER = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin",
    "adapter_config.json",
    "adapter_model.bin",
    "modeling.py",
    "shard-00001-model-00001-of-00001.safetensors",
    "generation_config.json",
    "model.gguf",
)


@pytest.mark.parametrize("part", [*PARTS, "tokenizer"])
def test_a_library_sees_no_file_that_was_not_looked_at(family: Path, part: str) -> None:
    """Also none for which only some version of it asks."""
    whole = load_family(load_card(family), "cloud")
    for name in CLUTTER:
        (family / "cloud" / part / name).write_bytes(b"not what it seems")
    assert equal(load_family(load_card(family), "cloud"), whole)
    assert check(family).exit_code == 0


def test_the_stock_pipeline_of_the_benchmarks_sees_no_more(family: Path) -> None:
    card = load_card(family)
    index = family / "cloud" / "model_index.json"
    checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | checker))
    for part in (*PARTS, "tokenizer"):
        for name in CLUTTER:
            (family / "cloud" / part / name).write_bytes(b"not what it seems")
    assert StockPipeline(card, "cloud", torch.device("cpu")).name == "PixArtSigmaPipeline"
    sharded(family / "cloud" / "transformer", "evil.bin")
    with pytest.raises(ConfigError, match=r"names 'evil\.bin'"):
        StockPipeline(card, "cloud", torch.device("cpu"))


def equal(one: Any, other: Any) -> bool:
    """Whether two stages have the same weights."""
    assert isinstance(one, PipelineFamily)
    assert isinstance(other, PipelineFamily)
    ours, theirs = held(one), held(other)
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in ours.items())


def held(family: PipelineFamily) -> dict[str, torch.Tensor]:
    models = {n: p for n, p in family.parts.items() if isinstance(p, torch.nn.Module)}
    return {f"{n}.{key}": t for n, m in models.items() for key, t in m.named_parameters()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", TINY)
def test_the_memory_that_is_counted_is_what_is_held(tmp_path: Path, name: str, dtype: Any) -> None:
    """Also where a model holds a part of itself in another dtype than the one asked for."""
    root = TINY[name].save(tmp_path)
    config = root / "cloud" / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": True}))
    loaded = load_family(load_card(root), "cloud", Loading(dtype=dtype, device="cpu"))
    assert isinstance(loaded, PipelineFamily)
    models = {n: p for n, p in loaded.parts.items() if isinstance(p, torch.nn.Module)}
    counted = needed_bytes([root / "cloud" / part for part in models], dtype)
    parameters = sum(p.nbytes for model in models.values() for p in model.parameters())
    buffers = sum(b.nbytes for model in models.values() for b in model.buffers())
    assert parameters <= counted <= parameters + buffers


# ---------------------------------------------------------------------------- variants


def renamed(family: Path, variant: str, parts: tuple[str, ...] = tuple(PARTS)) -> None:
    for part in parts:
        stem = PARTS[part]
        folder = family / "cloud" / part
        (folder / f"{stem}.safetensors").rename(folder / f"{stem}.{variant}.safetensors")


@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
def test_a_variant_is_loaded_where_there_is_nothing_else(family: Path, variant: str) -> None:
    whole = load_family(load_card(family), "cloud")
    renamed(family, variant)
    assert check(family).exit_code == 0
    assert equal(load_family(load_card(family), "cloud"), whole)


def test_a_variant_in_shards_is_loaded(family: Path) -> None:
    whole = load_family(load_card(family), "cloud")
    for part, stem in PARTS.items():
        index = sharded(
            family / "cloud" / part, *(f"{stem}-0000{n}-of-00002.fp16.safetensors" for n in (1, 2))
        )
        index.rename(index.with_name(f"{stem}.safetensors.index.fp16.json"))
    assert check(family).exit_code == 0
    assert equal(load_family(load_card(family), "cloud"), whole)


def test_the_plain_checkpoint_is_taken_before_a_variant(family: Path) -> None:
    whole = load_family(load_card(family), "cloud")
    folder = family / "cloud" / "transformer"
    (folder / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half a file")
    assert check(family).exit_code == 0
    assert equal(load_family(load_card(family), "cloud"), whole)


def test_one_of_several_variants_is_not_guessed(family: Path) -> None:
    folder = family / "cloud" / "transformer"
    weights = folder / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_suffix(".fp16.safetensors"))
    weights.rename(weights.with_suffix(".non_ema.safetensors"))
    refused_by_both(family, "weights of transformer are there as fp16 and as non_ema, and which")


@pytest.mark.parametrize("part", PARTS)
def test_shards_without_an_index_are_missing_weights(family: Path, part: str) -> None:
    sharded(family / "cloud" / part, f"{PARTS[part]}-00001-of-00001.safetensors").unlink()
    assert hub.missing(family / "cloud") == [f"{part}/safetensors weights"]
    with pytest.raises(ConfigError, match=f"no safetensors weights in .*{part}"):
        load_family(load_card(family), "cloud")


@pytest.mark.parametrize("part", PARTS)
def test_weights_by_the_other_librarys_name_are_missing(family: Path, part: str) -> None:
    folder = family / "cloud" / part
    other = {"model": "diffusion_pytorch_model"}.get(PARTS[part], "model")
    (folder / f"{PARTS[part]}.safetensors").rename(folder / f"{other}.safetensors")
    assert hub.missing(family / "cloud") == [f"{part}/safetensors weights"]
    with pytest.raises(ConfigError, match=f"no safetensors weights in .*{part}"):
        load_family(load_card(family), "cloud")


# ---------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "null", "[" * 100_000, "\xff"])
@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "transformer/config.json",
        "text_encoder/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    ],
)
def test_damaged_files_are_told_in_a_sentence(family: Path, name: str, text: str) -> None:
    (family / "cloud" / name).write_bytes(text.encode("latin-1"))
    if name.endswith("model.fp16.safetensors"):
        (family / "cloud" / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(ConfigError):
        load_family(load_card(family), "cloud")
    result = check(family)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.exit_code == 1 or name.startswith("tokenizer")
