"""The latent space that a VAE makes: a fingerprint, and in what two of them differ. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from diffusion_edge.errors import ConfigError
from diffusion_edge.families.weights import checkpoint, header, json_object

_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "AutoencoderKL": {"latent_channels": 4, "scaling_factor": 0.18215, "shift_factor": 0.0},
    "AutoencoderTiny": {"latent_channels": 4, "scaling_factor": 1.0, "shift_factor": 0.0},
}
"""What diffusers takes where a config leaves a value out, as old ones do."""

_OLD_NAMES = (
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
)
"""Names of attention weights in old checkpoints, and what diffusers makes of them."""


@dataclass(frozen=True)
class Space:
    """numbers: latent_channels, scaling_factor and shift_factor. tensors: a digest of the shape and
    the values of each, by name; values count as rounded to float16."""

    numbers: Mapping[str, float]
    tensors: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Equal for two copies of one VAE, whatever their precision and file names."""
        digest = hashlib.blake2b(digest_size=16)
        for name, value in (*sorted(self.numbers.items()), *sorted(self.tensors.items())):
            digest.update(f"{name}={value};".encode())
        return digest.hexdigest()

    def scaled_unlike(self, other: Space) -> list[str]:
        """One clause for each number that differs."""
        return [
            f"{name} is {value:g}, not {other.numbers[name]:g}"
            for name, value in self.numbers.items()
            if value != other.numbers[name]
        ]

    def weights_unlike(self, other: Space) -> list[str]:
        """One clause, with how many tensors differ, or none."""
        names = sorted(self.tensors.keys() | other.tensors.keys())
        unlike = [name for name in names if self.tensors.get(name) != other.tensors.get(name)]
        if not unlike:
            return []
        return [f"{len(unlike)} of {len(names)} tensors differ, the first is {unlike[0]}"]


def space(vae: Path) -> Space:
    """Of a VAE's folder. Raises ConfigError if it is not whole. Remembers what it has read."""
    config = vae / "config.json"
    if not config.is_file():
        raise ConfigError(f"the VAE lacks {config}", file=str(vae))
    try:
        stats = [(path, path.stat()) for path in (config, *checkpoint(vae).files)]
        return _space(tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats))
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"the VAE is not whole: {error}", file=str(vae)) from None


@lru_cache(maxsize=16)
def _space(files: tuple[tuple[Path, int, int], ...]) -> Space:
    config, *weights = (path for path, _, _ in files)
    said = json_object(config)
    defaults = _DEFAULTS.get(said.get("_class_name", ""), _DEFAULTS["AutoencoderKL"])
    # Python's `or` would take a scaling factor of 0 for none.
    numbers = {
        name: float(default if said.get(name) is None else said[name])
        for name, default in defaults.items()
    }
    return Space(numbers, {name: digest for path in weights for name, digest in _digests(path)})


def _digests(path: Path) -> Iterator[tuple[str, str]]:
    """Each tensor's name and a digest of its shape and values."""
    import numpy as np

    tensors = header(path)
    data = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int.from_bytes(bytes(data[:8]), "little")
    for name, tensor in tensors.items():
        first, last = tensor["data_offsets"]
        values = _rounded(data[start + first : start + last], str(tensor["dtype"]))
        digest = hashlib.blake2b(str(tuple(tensor["shape"])).encode(), digest_size=16)
        digest.update(values)
        yield _new_name(name), digest.hexdigest()


def _rounded(raw: Any, dtype: str) -> bytes:
    """Floating-point values as little-endian float16; others as they are."""
    import numpy as np

    with np.errstate(over="ignore"):
        if dtype == "BF16":
            wide = raw.view("<u2").astype("<u4") << 16
            return bytes(wide.view("<f4").astype("<f2").tobytes())
        if dtype in ("F32", "F64"):
            return bytes(raw.view({"F32": "<f4", "F64": "<f8"}[dtype]).astype("<f2").tobytes())
    return bytes(raw.tobytes())


def _new_name(name: str) -> str:
    if ".attentions." in name:
        for old, new in _OLD_NAMES:
            name = name.replace(old, new)
    return name
