"""Where the files lie that are named in a config or a command."""

from __future__ import annotations

from pathlib import Path

from diffusion_edge.errors import ConfigError
from diffusion_edge.strict import nearest

REPOSITORY = Path(__file__).resolve().parent.parent


def family_folder(family: str) -> Path:
    """The folder of a family: absolute, below the working directory or the repository, or else
    its name below `stage_models` of either."""
    roots = dict.fromkeys((Path.cwd(), REPOSITORY))
    below = [root / "stage_models" for root in roots]
    for place in (root / family for root in (*roots, *below)):
        if (place / "family.yaml").is_file():
            return place.resolve()
    cards = (path.parent.name for folder in below for path in folder.glob("*/family.yaml"))
    known = sorted(set(cards))
    raise ConfigError(
        f"family {family!r}: there is no folder {family} with a family.yaml, here or in "
        f"{REPOSITORY}, and no such family in stage_models ({', '.join(known) or 'empty'})"
        f"{nearest(family, known)}",
        key="family",
    )


def trace_file(name: str) -> Path:
    """The file of a trace: absolute, or below the working directory or the repository. ConfigError
    if there is none."""
    for root in (Path.cwd(), REPOSITORY):
        if (root / name).is_file():
            return (root / name).resolve()
    raise ConfigError(f"there is no file {name}, here or in {REPOSITORY}", key="trace")
