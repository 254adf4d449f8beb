"""What was found of a model on this machine, so that it is measured once: a small JSON for each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from diffusion_edge import __version__, cpu, families

log = logging.getLogger(__name__)

CODE = (Path(families.__file__).parent, Path(__file__).parent)


@dataclass(frozen=True)
class Found:
    """By part: the way to take, the error of each other one against eager, and their seconds by
    rows."""

    ways: dict[str, str]
    errors: dict[str, dict[str, float]]
    seconds: dict[str, dict[str, dict[int, float]]]


_FOUND = TypeAdapter(Found)


class Memory:
    """A folder; None is the one below the user's cache."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder or cache_folder() / "execution"

    def read(self, key: str) -> Found | None:
        """None where nothing is known, or it cannot be read."""
        try:
            return _FOUND.validate_json((self._folder / f"{key}.json").read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("what was found of a model before cannot be read: %s", error)
            return None

    def write(self, key: str, found: Found) -> None:
        """Whole or not at all; where that cannot be, the next start measures again."""
        path = self._folder / f"{key}.json"
        part = path.with_name(f"{key}.{os.getpid()}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(dataclasses.asdict(found)))
            part.replace(path)
        except OSError as error:
            log.warning("what was found of a model cannot be kept: %s", error)


def cache_folder() -> Path:
    """What can be made anew, of this user."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "diffusion-edge"


def key_of(
    models: Sequence[nn.Module], device: torch.device, ways: Sequence[str], use: Sequence[object]
) -> str:
    """Of the models' weights, what they are used for, libraries, code that runs them, processor."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in chain.from_iterable(model.state_dict().items() for model in models):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    libraries = {name: _version(name) for name in ("torch", "diffusers", *ways)}
    machine = [cpu.model(), torch.backends.cpu.get_cpu_capability(), str(device)]
    told = [__version__, _code(), libraries, list(use), machine]
    digest.update(json.dumps(told).encode())
    return digest.hexdigest()


@cache
def _code() -> str:
    """A fingerprint of what says how a model is run: a graph is a copy of that."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(p for folder in CODE for p in folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
