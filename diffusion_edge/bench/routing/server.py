"""The server that the router is measured on: `local.yaml` at another pace, as a process of its own.

What `local.yaml` states is published seconds x SCALE, which is so large that two cores can compute
what the stages' models compute. No picture is judged here, so here every stage computes with the
family's smallest model, and a smaller scale suffices: the same hours of the same devices in less
time. Links are left at their own pace, as they were recorded.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import yaml

from diffusion_edge.bench.routing.live import Live
from diffusion_edge.bench.servers import free_port, running
from diffusion_edge.emulation import Emulate
from diffusion_edge.errors import ConfigError
from diffusion_edge.families.card import FamilyCard
from diffusion_edge.places import REPOSITORY
from diffusion_edge.plan import TIERS
from diffusion_edge.strict import read_yaml

LOCAL = REPOSITORY / "serve_configs" / "local.yaml"
LOCAL_SCALE = 10.0
"""What the published seconds are times there."""
TIMEOUT_S = 600.0


def configured(
    scale: float, family: Path, port: int, settings: Mapping[str, Any], source: Path = LOCAL
) -> dict[str, Any]:
    """The config file's content, with its stated seconds for another scale."""
    data, _ = read_yaml(source)
    config: dict[str, Any] = deepcopy(data)
    config["http_options"]["port"] = port
    args = config["applications"][0]["args"]
    args |= {"family": str(family), **settings}
    for stage in args["stages"].values():
        if "emulate" in stage:
            stage["emulate"] = scaled(stage["emulate"], scale / LOCAL_SCALE)
    return config


def scaled(stated: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The seconds of an `emulate` times a factor."""
    emulate = Emulate.model_validate(stated)
    return {
        "step_s": {rows: seconds * factor for rows, seconds in emulate.curve.items()}
        if isinstance(emulate.step_s, Mapping)
        else emulate.step_s * factor,
        "encode_s": emulate.encode_s * factor,
        "decode_s": emulate.decode_s * factor,
    }


@contextmanager
def light(card: FamilyCard) -> Iterator[Path]:
    """A folder of the same family, whose stages all have the weights of its smallest model."""
    smallest = min(card.stages.values(), key=lambda stage: TIERS.index(stage.tier))
    if smallest.folder is None:
        raise ConfigError(f"{card.root}: its smallest model is not on disk", file=str(card.root))
    data, _ = read_yaml(card.root / "family.yaml")
    stages = {name: stage | {"folder": smallest.folder} for name, stage in data["stages"].items()}
    with tempfile.TemporaryDirectory(prefix="diffusion-edge-") as name:
        folder = Path(name)
        for path in card.root.iterdir():
            if path.name != "family.yaml":
                (folder / path.name).symlink_to(path.resolve())
        (folder / "family.yaml").write_text(yaml.safe_dump(data | {"stages": stages}))
        yield folder


@asynccontextmanager
async def opened(
    scale: float, family: Path, settings: Mapping[str, Any], source: Path = LOCAL
) -> AsyncIterator[Live]:
    """A server that is up and warm. It ends with the context."""
    config = configured(scale, family, free_port(), settings, source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "routing.yaml"
        path.write_text(json.dumps(config))
        with running("diffusion_edge", ["serve", str(path)]) as url:
            async with httpx.AsyncClient(
                base_url=url,
                timeout=TIMEOUT_S,
                limits=httpx.Limits(max_connections=None),
                trust_env=False,
            ) as http:
                yield Live(http)
