"""`diffusion-edge kernels`: what each fused operation is carried out by on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from diffusion_edge.commands.pages import PageFile
from diffusion_edge.errors import EdgeError

if TYPE_CHECKING:
    from diffusion_edge.kernels.registry import Case, Operation


def kernels(
    compile_: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the Triton kernels for sm_80 and sm_90; needs no GPU."
        ),
    ] = False,
    page: PageFile = None,
) -> None:
    """Which implementation of each fused operation this machine takes, and by what it can attend;
    and why not the others."""
    from diffusion_edge.commands import pages
    from diffusion_edge.markdown import marks

    if not compile_:
        for line in _choices():
            typer.echo(line)
        return
    written = marks("diffusion-edge kernels --compile")
    pages.check(page, written)
    lines = list(_compiled())
    pages.write(page, written, lines)
    for line in lines:
        typer.echo(line)


def _choices() -> Iterator[str]:
    import torch

    from diffusion_edge.families.attention import KINDS, probed
    from diffusion_edge.kernels.operations import OPERATIONS
    from diffusion_edge.kernels.registry import VARIABLE, Case

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        for dtype in (torch.float32, torch.bfloat16):
            case = Case(device, dtype, "contiguous")
            yield f"{device}, {str(dtype).removeprefix('torch.')}:"
            for operation in OPERATIONS:
                yield _choice(operation, case)
            for name in KINDS:
                reason = probed(name, torch.device(device), dtype)
                said = "a model may attend by it" if reason is None else f"refused: {reason}"
                yield f"  attention: {name:<9} {said}"
    if len(devices) == 1:
        yield "There is no GPU here."
    yield f"{VARIABLE}=off, or such as {VARIABLE}=geglu=reference, takes another choice."


def _choice(operation: Operation, case: Case) -> str:
    from diffusion_edge.kernels.registry import LARGE, REFERENCE

    choice = operation.choice(case)
    taken = choice.taken
    said = f"{taken.name} ({taken.faith})"
    if taken.large:
        said += f", from {LARGE:,} values on"
    if taken.name == REFERENCE:
        said = "nothing is faster, so nothing is replaced"
    others = "; ".join(f"{name}: {why}" for name, why in choice.refused.items())
    return f"  {operation.name:<16} {said}. {others}. [{operation.what}]"


def _compiled() -> Iterator[str]:
    from importlib.util import find_spec

    from diffusion_edge.markdown import table

    if not find_spec("triton"):
        raise EdgeError("triton is not installed; the extra `kernels` has it")
    from diffusion_edge.kernels.gpu import compiled

    head = ("kernel", "for", "registers", "spilled, bytes", "shared, bytes", "16-byte loads")
    rows = (
        (
            each.name,
            f"sm_{each.capability}",
            *map(str, (each.registers, each.spilled, each.shared, each.wide_loads)),
        )
        for each in compiled.table()
    )
    yield from table(head, rows)
