"""The command `throttle`."""

from __future__ import annotations

from typing import Annotated

import typer

from diffusion_edge.commands.asking import URL, Url, ask


def throttle(
    one: Annotated[str, typer.Argument(help="A stage, such as device.")],
    other: Annotated[str, typer.Argument(help="The stage at the other end, such as cloud.")],
    factor: Annotated[
        float, typer.Option(min=0.001, max=1000, help="Times the link's rate; 1 as configured.")
    ],
    restart: Annotated[bool, typer.Option(help="Let the link's trace begin again.")] = False,
    url: Url = URL,
) -> None:
    """Slow an emulated link of a running server down, in both directions, or let it go again."""
    told = ask(url, "/v1/throttle", {"between": [one, other], "factor": factor, "restart": restart})
    a, b = told["between"]
    again = "; its trace has begun again" if told["restart"] else ""
    typer.echo(f"{a}-{b}: {told['factor']:g} times its rate until told otherwise{again} (emulated)")
