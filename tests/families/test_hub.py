"""What counts as a fetched model, and what of a repository is wanted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from diffusion_edge.errors import ConfigError
from diffusion_edge.families import hub
from diffusion_edge.families.card import load_card

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def fetched(tmp_path: Path, tiny_family: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of `tiny/cloud` in a cache of the hub's layout."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    root = tmp_path / "models--tiny--cloud"
    folder = root / "snapshots" / COMMIT
    shutil.copytree(tiny_family / "cloud", folder)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    return folder


def test_a_whole_model_is_found_by_branch_and_by_commit(fetched: Path) -> None:
    assert hub.cached("tiny/cloud", "main") == fetched
    assert hub.cached("tiny/cloud", COMMIT) == fetched
    assert hub.cached("tiny/cloud", "other") is None
    assert hub.cached("tiny/edge", "main") is None


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/tokenizer.json",
    ],
)
def test_a_file_that_is_not_there_is_missing(fetched: Path, name: str) -> None:
    (fetched / name).unlink()
    assert hub.missing(fetched) == [name]
    assert hub.cached("tiny/cloud", "main") is None
    if name.startswith("t") and not name.startswith("transformer"):
        assert hub.cached("tiny/cloud", "main", texts=False) == fetched


def test_weights_that_are_not_there_are_missing(fetched: Path) -> None:
    (fetched / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert hub.missing(fetched) == ["vae/safetensors weights"]


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_half_a_file_is_a_missing_one(fetched: Path, left: int) -> None:
    name = "transformer/diffusion_pytorch_model.safetensors"
    weights = fetched / name
    weights.write_bytes(weights.read_bytes()[:left])
    assert hub.missing(fetched) == [name]


def test_every_shard_of_the_index_must_be_there(fetched: Path) -> None:
    part = fetched / "transformer"
    shards = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (part / "diffusion_pytorch_model.safetensors").rename(part / shards[0])
    index = {"metadata": {}, "weight_map": {"a": shards[0], "b": shards[1]}}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert hub.missing(fetched) == [f"transformer/{shards[1]}"]
    shutil.copy(part / shards[0], part / shards[1])
    assert hub.missing(fetched) == []


def test_an_index_that_is_no_json_is_missing(fetched: Path) -> None:
    name = "diffusion_pytorch_model.safetensors.index.json"
    (fetched / "vae" / name).write_text("{")
    assert hub.missing(fetched) == [f"vae/{name}"]
    (fetched / "model_index.json").write_text("{")
    assert hub.missing(fetched) == ["model_index.json"]


def test_a_vocabulary_needs_its_merges(fetched: Path) -> None:
    tokenizer = fetched / "tokenizer"
    (tokenizer / "tokenizer.json").rename(tokenizer / "vocab.json")
    assert hub.missing(fetched) == ["tokenizer/merges.txt"]
    (tokenizer / "merges.txt").touch()
    assert hub.missing(fetched) == []


def test_parts_that_the_index_leaves_out_are_not_missed(fetched: Path) -> None:
    index = json.loads((fetched / "model_index.json").read_text())
    more = {"safety_checker": ["a", "B"], "text_encoder_3": [None, None]}
    (fetched / "model_index.json").write_text(json.dumps(index | more))
    assert hub.missing(fetched) == []


def test_a_card_finds_its_models_and_says_how_to_get_one(fetched: Path, tiny_family: Path) -> None:
    text = (tiny_family / "family.yaml").read_text()
    for stage in ("device", "edge", "cloud"):
        text = text.replace(f"folder: {stage},", f"hub: tiny/{stage},")
    (fetched / "family.yaml").write_text(text + "shared: cloud\n")
    card = load_card(fetched)
    assert card.folder("cloud") == fetched
    with pytest.raises(ConfigError, match="diffusion-edge models pull tiny"):
        card.folder("edge")


# ---------------------------------------------------------------------------- what is wanted

WANTED = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/spiece.model",
    "tokenizer_2/tokenizer_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
UNWANTED = (
    "README.md",
    "sd_xl_base_1.0.safetensors",
    "pipeline.py",
    "safety_checker/model.safetensors",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.safetensors.index.fp16.json",
    "text_encoder/pytorch_model.bin",
    "text_encoders/clip_g.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/model.onnx",
    "unet/modeling.py",
    "vae/openvino_model.bin",
    "vae_1_0/diffusion_pytorch_model.safetensors",
)


def listing_of(*names: str) -> hub.Listing:
    return hub.Listing("some/model", COMMIT, dict.fromkeys(names, 10), None, False)


def test_only_what_is_needed_and_safe_is_wanted() -> None:
    listing = listing_of(*WANTED, *UNWANTED)
    assert sorted(hub.wanted(listing)) == sorted(WANTED)
    without = [name for name in WANTED if not name.startswith(("text", "token"))]
    assert sorted(hub.wanted(listing, texts=False)) == sorted(without)


def test_of_a_repository_of_variants_the_only_one_is_wanted() -> None:
    half = [
        name.replace("model.safetensors.index.json", "model.safetensors.index.fp16.json")
        if name.endswith("index.json") and name != "model_index.json"
        else name.replace(".safetensors", ".fp16.safetensors")
        for name in WANTED
    ]
    assert sorted(hub.wanted(listing_of(*half))) == sorted(half)
    other = "unet/diffusion_pytorch_model.non_ema.safetensors"
    with pytest.raises(ConfigError, match="weights of unet are there as fp16 and as non_ema"):
        hub.wanted(listing_of(*half, other))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_without_safetensors_is_told(part: str) -> None:
    """Where it has not even a variant."""
    all_names = (*WANTED, *UNWANTED)
    names = [n for n in all_names if not n.startswith(f"{part}/") or "safetensors" not in n]
    listing = listing_of(*names)
    with pytest.raises(ConfigError, match=f"some/model has no safetensors weights for {part}; uns"):
        hub.wanted(listing)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("unet", "no denoiser"),
        ("vae", "no vae"),
        ("scheduler", "no scheduler"),
        ("text_encoder", "no text_encoder"),
        ("model_index", "no model_index.json"),
    ],
)
def test_a_repository_that_is_no_whole_model_is_told(part: str, said: str) -> None:
    listing = listing_of(*(name for name in WANTED if not name.startswith(part)))
    with pytest.raises(ConfigError, match=said):
        hub.wanted(listing)


def test_what_is_on_disk_does_not_come_again(fetched: Path) -> None:
    names = [p.relative_to(fetched).as_posix() for p in fetched.rglob("*") if p.is_file()]
    listing = hub.Listing("tiny/cloud", COMMIT, dict.fromkeys(names, 10), None, False)
    assert hub.to_come(listing) == 0
    (fetched / "vae" / "config.json").unlink()
    assert hub.to_come(listing) == 10


def test_what_is_fetched_is_what_was_listed(fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the branch moves between the two; and it is found by the branch's name."""
    asked: list[str] = []

    def download(repository: str, revision: str, allow_patterns: list[str]) -> str:
        asked.append(revision)
        (fetched.parents[1] / "refs" / "main").write_text("f" * 40)
        return str(fetched)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    names = [p.relative_to(fetched).as_posix() for p in fetched.rglob("*") if p.is_file()]
    listing = hub.Listing("tiny/cloud", COMMIT, dict.fromkeys(names, 10), None, False)
    assert hub.fetch(listing, "main") == fetched
    assert asked == [COMMIT]
    assert hub.cached("tiny/cloud", "main") == fetched
    assert hub.fetch(listing, "refs/pr/1") == hub.cached("tiny/cloud", "refs/pr/1") == fetched


def test_a_full_disk_is_told_before_anything_is_fetched(
    fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(fetched))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 9 * 10**9, 10**9))
    hub.check_room(10**9)
    with pytest.raises(ConfigError, match=r"5\.0 GB are to come, .* has 1\.0 GB free"):
        hub.check_room(5 * 10**9)


# ---------------------------------------------------------------------------- errors for people


def gives(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [ConnectionError("x"), TimeoutError("x")])
def test_no_network_is_told(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", gives(error))
    with pytest.raises(ConfigError, match="no answer from the hub"):
        hub.ask("tiny/cloud", "main")


def test_a_disk_that_fills_up_is_told(fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", gives(OSError(28, "No space left")))
    with pytest.raises(ConfigError, match="is full"):
        hub.fetch(listing_of(*WANTED), "main")
