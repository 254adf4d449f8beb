"""What a checkpoint needs, told from the headers of its safetensors files. No torch, no pickle."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of one value in memory, by dtype."""


def elements(folder: Path) -> int:
    """Values in all safetensors files of a model's folder."""
    return sum(
        math.prod(tensor["shape"])
        for path in weight_files(folder)
        for name, tensor in header(path).items()
        if name != "__metadata__"
    )


def weight_files(folder: Path) -> list[Path]:
    """The plain checkpoint: its variants (`.fp16.` and the like) are copies of it."""
    files = sorted(folder.glob("*.safetensors"))
    plain = [path for path in files if is_plain(path.name)]
    return plain or files


def is_plain(name: str) -> bool:
    """Whether a safetensors file's name names no variant."""
    return name.endswith(".safetensors") and "." not in name.removesuffix(".safetensors")


def header(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """By tensor, with its `dtype`, `shape` and `data_offsets`. Raises ValueError if damaged."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > size - 8:
            raise ValueError(f"{path} is not a whole safetensors file")
        found: Mapping[str, Mapping[str, Any]] = json.loads(file.read(length))
    ends = (tensor["data_offsets"][1] for name, tensor in found.items() if name != "__metadata__")
    if 8 + length + max(ends, default=0) != size:
        raise ValueError(f"{path} is not a whole safetensors file")
    return found


def is_whole(path: Path) -> bool:
    """Whether a safetensors file is there, and as long as its header says."""
    try:
        header(path)
    except (OSError, ValueError):
        return False
    return True


def needed_bytes(folders: Iterable[Path], dtype: str) -> int:
    """Bytes in memory of the models in `folders` when they are held in `dtype`."""
    return BYTES[dtype] * sum(elements(folder) for folder in folders)


def human(nbytes: float) -> str:
    """Bytes as people say them: `1.7 GB`."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} GB"
