"""Which files of a model's folder are loaded, and what they need. No torch, no pickle.

Of a folder only `config.json` and one checkpoint count: safetensors files by names without a path,
and the index that names them. A name may be a link, as all are in the hub's cache; what it leads
to must be a whole safetensors file all the same.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffusion_edge.errors import ConfigError

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of one value in memory, by dtype."""

TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
)

_WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model)(\.(?P<early>\w+))?(?P<shard>-\d+-of-\d+)?"
    r"(\.(?P<late>\w+))?\.safetensors(?P<index>\.index(\.(?P<last>\w+))?\.json)?"
)
"""A variant such as `fp16` stands before or after a shard's number, or within an index' name."""

_LEADS_ELSEWHERE = ("transformers_weights", "attn_implementation", "_attn_implementation")
"""With these in a `config.json`, transformers loads other files, or code from the hub."""

_STAYS_WIDE = {"T5EncoderModel": ".wo."}
"""Names of tensors that transformers holds in float32 where the others are float16."""


@dataclass(frozen=True)
class Checkpoint:
    """The files that a model is loaded from; `index` says which shard has which tensor."""

    index: Path | None
    files: tuple[Path, ...]

    def shown(self, part: str) -> dict[str, Path]:
        """By the names that the libraries look for; shards are looked for by their own."""
        if self.index is None:
            return {f"{stem(part)}.safetensors": self.files[0]}
        shards = {path.name: path for path in self.files}
        return shards | {f"{stem(part)}.safetensors.index.json": self.index}


# ---------------------------------------------------------------------------- by name


def stem(part: str) -> str:
    """What the names of a part's weights begin with; text encoders are models of transformers."""
    return "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"


def variant_of(part: str, name: str) -> str | None:
    """Of a file of a part's weights: `fp16` and the like, "" for none. None for other files."""
    found = _WEIGHTS.fullmatch(name)
    if found is None or found["stem"] != stem(part) or (found["early"] and found["late"]):
        return None
    return found["early"] or found["late"] or found["last"] or ""


def loaded_variant(part: str, names: Iterable[str]) -> str | None:
    """The variant that is loaded of a part with files of these names: none, or else the only one.

    None where there are no weights, which shards without an index are not either. Raises
    ConfigError where one of several variants would have to be chosen.
    """
    heads = [name for name in names if not _is_shard(name)]
    variants = sorted({v for name in heads if (v := variant_of(part, name)) is not None})
    if len(variants) > 1 and variants[0] != "":
        raise ConfigError(
            f"the weights of {part} are there as {' and as '.join(variants)}, and which of them is "
            f"meant is not said; name the files of one of them without it, {stem(part)}.safetensors"
        )
    return variants[0] if variants else None


def _is_shard(name: str) -> bool:
    found = _WEIGHTS.fullmatch(name)
    return found is not None and found["shard"] is not None


# ---------------------------------------------------------------------------- on disk


def checkpoint(folder: Path) -> Checkpoint:
    """What is loaded of a part's folder, be the files whole or not.

    Raises ConfigError where there are no safetensors weights, or an index names anything but
    safetensors files of this folder; ValueError for an index that is none.
    """
    part = folder.name
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    variant = loaded_variant(part, names)
    heads = [n for n in names if not _is_shard(n) and variant_of(part, n) == variant]
    if variant is None:
        raise ConfigError(
            f"there are no safetensors weights in {folder}; other formats are not loaded, for "
            "they may run code",
            file=str(folder),
        )
    # Where both are there, diffusers takes the index and transformers the single file.
    by_index = sorted(heads, key=lambda name: name.endswith(".json"))
    head = folder / by_index[0 if stem(part) == "model" else -1]
    if head.suffix != ".json":
        return Checkpoint(None, (head,))
    return Checkpoint(head, tuple(folder / name for name in _shards(head)))


def _shards(index: Path) -> list[str]:
    try:
        said = json.loads(index.read_bytes())
        names = sorted(set(said["weight_map"].values()))
        known = isinstance(said["metadata"], dict) and all(isinstance(n, str) for n in names)
    except (OSError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is not an index of safetensors files") from error
    if not known or not names:
        raise ValueError(f"{index} is not an index of safetensors files")
    for name in names:
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise ConfigError(
                f"{index} names {name[:200]!r}; only safetensors files of its own folder are "
                "loaded, for others may run code",
                file=str(index),
            )
    return names


def model_config(folder: Path) -> Mapping[str, Any]:
    """The `config.json` of a part. Raises ConfigError if it is none, or leads elsewhere."""
    path = folder / "config.json"
    said = json_object(path)
    for key in _LEADS_ELSEWHERE:
        if said.get(key) is not None:
            raise ConfigError(
                f"{path} sets {key}, which loads what is not in the folder's checkpoint; take it "
                "out",
                file=str(path),
                key=key,
            )
    return said


def json_object(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file. Raises ConfigError for a file that has none."""
    try:
        said = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", file=str(path)) from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is not JSON", file=str(path)) from None
    if not isinstance(said, dict):
        raise ConfigError(f"{path} should be a JSON object", file=str(path))
    return said


@contextmanager
def only(files: Mapping[str, Path]) -> Iterator[Path]:
    """A folder, for a while, with links to just these files, by their paths in it.

    What a library looks for in a folder, and how it loads it, changes with its version; here it
    finds nothing that was not looked at.
    """
    with TemporaryDirectory(prefix="diffusion-edge-") as name:
        root = Path(name)
        for path, file in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).symlink_to(file.resolve())
        yield root


def model_files(folder: Path) -> dict[str, Path]:
    """What a library is shown of a model's folder, by name. Raises ConfigError if it is unfit."""
    model_config(folder)
    try:
        found = checkpoint(folder)
    except ValueError as error:
        raise ConfigError(f"{error}; fetch it again", file=str(folder)) from None
    return {"config.json": folder / "config.json"} | found.shown(folder.name)


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """What a library is shown of a tokenizer's folder, by name; none can hold code."""
    return {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}


def part_files(folder: Path) -> dict[str, Path]:
    """What a library is shown of any part's folder, by name."""
    if folder.name == "scheduler":
        return {"scheduler_config.json": folder / "scheduler_config.json"}
    tokenizer = folder.name.startswith("tokenizer")
    return tokenizer_files(folder) if tokenizer else model_files(folder)


# ---------------------------------------------------------------------------- what they need


def header(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """By tensor, with its `dtype`, `shape` and `data_offsets`.

    Raises ValueError for what safetensors would not load, OSError for what cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            found: Mapping[str, Mapping[str, Any]] = json.loads(file.read(length))
    except SafetensorError:
        raise ValueError(f"{path} is not a whole safetensors file") from None
    return {name: tensor for name, tensor in found.items() if name != "__metadata__"}


def is_whole(path: Path) -> bool:
    """Whether a safetensors file is there, and as long as its header says."""
    try:
        header(path)
    except (OSError, ValueError):
        return False
    return True


def needed_bytes(folders: Iterable[Path], dtype: str) -> int:
    """Bytes in memory of the models in `folders` when they are held in `dtype`.

    Raises ConfigError and ValueError as `checkpoint` does, and ValueError for damaged files.
    """
    return sum(_needed_bytes(folder, dtype) for folder in folders)


def _needed_bytes(folder: Path, dtype: str) -> int:
    config, found = model_config(folder), checkpoint(folder)
    held = dtype_of(config, dtype)
    wide = [_STAYS_WIDE[n] for n in config.get("architectures") or () if n in _STAYS_WIDE]
    return sum(
        math.prod(tensor["shape"])
        * BYTES["float32" if held == "float16" and any(w in name for w in wide) else held]
        for path in found.files
        for name, tensor in header(path).items()
    )


def dtype_of(config: Mapping[str, Any], asked: str) -> str:
    """What a model is held in; a VAE that overflows in half stays in float32."""
    return "float32" if config.get("force_upcast") and asked == "float16" else asked


def human(nbytes: float) -> str:
    """Bytes as people say them: `1.7 GB`."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} GB"
