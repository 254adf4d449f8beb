"""The command `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    config: Annotated[Path, typer.Argument(help="A file of serve_configs/.")] = Path(
        "serve_configs/local.yaml"
    ),
    port: Annotated[int | None, typer.Option(help="Instead of the config's port.")] = None,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; without it an own one is started.")
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(help="Instead of the config's: a folder, or a name of stage_models/."),
    ] = None,
) -> None:
    """Serve the tiers of CONFIG behind one endpoint, until SIGINT or SIGTERM."""
    from diffusion_edge.serve.launch import serve as launch

    raise typer.Exit(launch(config, port, address, family))
