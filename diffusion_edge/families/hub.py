"""Models of the Hugging Face hub: what lies on disk, what is missing, and fetching it. No torch.

Of a repository only diffusers folders are of interest, and of them only safetensors, JSON and the
tokenizers' text files: nothing that could run code is ever fetched or loaded.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from diffusion_edge.errors import ConfigError
from diffusion_edge.families.weights import (
    TOKENIZER_FILES,
    checkpoint,
    human,
    is_whole,
    json_object,
    loaded_variant,
    model_config,
    variant_of,
)

INDEX = "model_index.json"
_DENOISER = re.compile(r"unet|transformer")
_TEXT = re.compile(r"(text_encoder|tokenizer)(_\d)?")


# ---------------------------------------------------------------------------- on disk


def cached(repository: str, revision: str, texts: bool = True) -> Path | None:
    """The folder of a repository that was fetched before; None if what a stage needs of it is not
    all there. texts: whether the text encoders are needed."""
    folder = snapshot(repository, revision)
    return folder if folder is not None and not missing(folder, texts) else None


def snapshot(repository: str, revision: str) -> Path | None:
    """The folder of what was fetched of a repository, be it whole or not; None if there is none."""
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(repository, INDEX, constants.HF_HUB_CACHE, revision)
    return Path(found).parent if isinstance(found, str) else None


def missing(folder: Path, texts: bool = True) -> list[str]:
    """What a diffusers folder lacks of what a stage needs; half a file is a missing one.

    Raises ConfigError for what is there and will not be loaded; see `weights.checkpoint`.
    """
    try:
        index = json_object(folder / INDEX)
    except ConfigError:
        return [INDEX]
    names = parts(index, texts)
    return [f"{part}/{name}" for part in names for name in _lacking(folder / part)]


def parts(index: Mapping[str, Any], texts: bool = True) -> list[str]:
    """Of what an index names, what is loaded; a safety checker and the like are not."""
    return [name for name, kind in index.items() if _is_needed(name, texts) and _is_there(kind)]


def _is_needed(part: str, texts: bool) -> bool:
    if part in ("scheduler", "vae") or _DENOISER.fullmatch(part):
        return True
    return texts and _TEXT.fullmatch(part) is not None


def _is_model(part: str) -> bool:
    return part != "scheduler" and not part.startswith("tokenizer")


def _is_there(kind: Any) -> bool:
    """Whether an entry of the index names a class: optional parts may be `[null, null]`."""
    return isinstance(kind, list) and len(kind) == 2 and kind[1] is not None


def _lacking(part: Path) -> list[str]:
    """Names of files that a part's folder lacks."""
    if part.name == "scheduler":
        return _absent(part, ["scheduler_config.json"])
    if part.name.startswith("tokenizer"):
        words = "merges.txt" if (part / "vocab.json").is_file() else "tokenizer.json"
        other = any((part / name).is_file() for name in ("tokenizer.json", "spiece.model"))
        return _absent(part, ["tokenizer_config.json"] + ([] if other else [words]))
    lacking = _absent(part, ["config.json"])
    if not lacking:
        model_config(part)
    return lacking + _lacking_weights(part)


def _absent(part: Path, names: Iterable[str]) -> list[str]:
    return [name for name in names if not (part / name).is_file()]


def _lacking_weights(part: Path) -> list[str]:
    names = [path.name for path in part.glob("*.safetensors*")]
    if loaded_variant(part.name, names) is None:
        return ["safetensors weights"]
    try:
        found = checkpoint(part)
    except ValueError:
        return sorted(name for name in names if name.endswith(".json"))
    return [path.name for path in found.files if not is_whole(path)]


# ---------------------------------------------------------------------------- at the hub


@dataclass(frozen=True)
class Listing:
    """What the hub says of a repository at a revision. files: bytes by path. licence: as its page
    states it. gated: its licence must be accepted there before files can be fetched."""

    repository: str
    commit: str
    files: Mapping[str, int]
    licence: str | None
    gated: bool

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.repository}"


def ask(repository: str, revision: str) -> Listing:
    """Raises ConfigError, with a sentence that says why, if the hub gives no listing."""
    from huggingface_hub import HfApi

    with _errors_for_people(repository, revision):
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    said: Any = info.card_data or {}
    licence = said.get("license_name") or said.get("license")
    files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return Listing(repository, info.sha or revision, files, licence, bool(info.gated))


def wanted(listing: Listing, texts: bool = True) -> dict[str, int]:
    """Bytes by path of the files that a stage needs.

    Raises ConfigError for a repository that is no diffusers folder, or that has no safetensors
    for one of its parts.
    """
    folders = {path.partition("/")[0] for path in listing.files if "/" in path}
    needed = sorted(part for part in folders if _is_needed(part, texts))
    _check_parts(listing, needed, texts)
    chosen = [INDEX]
    for part in needed:
        paths = (path for path in listing.files if path.startswith(f"{part}/"))
        names = [path.removeprefix(f"{part}/") for path in paths]
        variant = loaded_variant(part, names) if _is_model(part) else None
        if _is_model(part) and variant is None:
            raise ConfigError(
                f"{listing.repository} has no safetensors weights for {part}; unsafe formats are "
                "not loaded"
            )
        chosen += [f"{part}/{name}" for name in names if _is_wanted(part, name, variant)]
    return {path: listing.files[path] for path in chosen}


def _check_parts(listing: Listing, folders: Iterable[str], texts: bool) -> None:
    there = {_kind(part) for part in folders} | (listing.files.keys() & {INDEX})
    expected = [INDEX, "denoiser", "vae", "scheduler"]
    expected += ["text_encoder", "tokenizer"] if texts else []
    lacking = [name for name in expected if name not in there]
    if lacking:
        raise ConfigError(
            f"{listing.repository} is no diffusers folder of a whole model: it has no "
            f"{', no '.join(lacking)}"
        )


def _kind(part: str) -> str:
    return "denoiser" if _DENOISER.fullmatch(part) else re.sub(r"_\d$", "", part)


def _is_wanted(part: str, name: str, variant: str | None) -> bool:
    if part == "scheduler":
        return name == "scheduler_config.json"
    if part.startswith("tokenizer"):
        return name in TOKENIZER_FILES
    return name == "config.json" or variant_of(part, name) == variant


def to_come(listing: Listing, texts: bool = True) -> int:
    """Bytes that are wanted and not on disk yet."""
    folder = snapshot(listing.repository, listing.commit)
    return sum(
        nbytes
        for path, nbytes in wanted(listing, texts).items()
        if folder is None or not (folder / path).is_file()
    )


def fetch(listing: Listing, revision: str, texts: bool = True) -> Path:
    """Fetches what a stage needs and is not on disk; an interrupted fetch goes on where it was.

    It is the commit of the listing that is fetched, wherever the revision's branch has gone since.
    """
    from huggingface_hub import snapshot_download

    names, commit = list(wanted(listing, texts)), listing.commit
    with _errors_for_people(listing.repository, revision):
        found = Path(snapshot_download(listing.repository, revision=commit, allow_patterns=names))
    if revision != commit:
        _point(found, revision, commit)
    lacking = missing(found, texts)
    if lacking:
        raise ConfigError(f"{listing.repository} was fetched, but lacks {', '.join(lacking)}")
    return found


def _point(folder: Path, revision: str, commit: str) -> None:
    """Notes in the hub's cache that a branch stands at a commit, as a fetch by branch would."""
    reference = folder.parents[1] / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)


def check_room(nbytes: int) -> None:
    """ConfigError if the disk that holds the hub's files has no room for `nbytes` more."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE).absolute()
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free
    if nbytes > free:
        raise ConfigError(
            f"{human(nbytes)} are to come, and the disk of {constants.HF_HUB_CACHE} has "
            f"{human(free)} free; HF_HUB_CACHE names another place"
        )


@contextmanager
def _errors_for_people(repository: str, revision: str) -> Iterator[None]:
    from huggingface_hub import constants, errors

    # The base error of the HTTP client; which client it is depends on the hub's version.
    unreachable = cast("type[Exception]", errors.HfHubHTTPError.__bases__[0])
    page = f"https://huggingface.co/{repository}"
    try:
        yield
    except errors.GatedRepoError:
        raise ConfigError(
            f"{repository} is gated: accept its licence on {page} and log in with `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(
            f"the hub knows no {repository}; if it is private, log in with `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise ConfigError(f"{repository} has no revision {revision!r}; see {page}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ConfigError(
                f"no access to {repository}: see {page}, and log in with `hf auth login`"
            ) from None
        raise ConfigError(f"the hub answered {status} for {repository}") from None
    except (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError, unreachable):
        raise ConfigError(f"no answer from the hub at {constants.ENDPOINT}") from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ConfigError(
            f"the disk of {constants.HF_HUB_CACHE} is full; with room, the same command goes on"
        ) from None
