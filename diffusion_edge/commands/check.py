"""The command `check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def check(config: Annotated[Path, typer.Argument(help="A file of serve_configs/.")]) -> None:
    """Check a config file strictly: unknown keys, names and values, parts that do not agree."""
    from diffusion_edge.config import load_config
    from diffusion_edge.serve.launch import with_stages
    from diffusion_edge.serve.names import check_names, named_card

    given = load_config(config).settings
    check_names(given, named_card(given, config), config)
    stages = with_stages(given).stages
    source = "" if given.stages else f", one for each model of {given.family}"
    typer.echo(f"{config}: good; stages {', '.join(stages)}{source}")
