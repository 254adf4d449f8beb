"""A page that a command writes its tables into, between marks of its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from diffusion_edge.commands.arguments import check_writable
from diffusion_edge.markdown import Marks, between
from diffusion_edge.strict import read_text

PageFile = Annotated[Path | None, typer.Option(help="A Markdown page for the tables.")]


def check(page: Path | None, marks: Marks) -> None:
    """InvalidRequest, before the work, where the page could not take the tables."""
    if page is not None:
        check_writable(page)
        _placed(page, marks, "")


def write(page: Path | None, marks: Marks, lines: Iterable[str]) -> None:
    if page is not None:
        page.write_text(_placed(page, marks, "\n".join(lines)))


def _placed(page: Path, marks: Marks, text: str) -> str:
    title = f"# {page.stem.capitalize()}\n\n"
    old = read_text(page) if page.exists() else title + "\n".join(marks) + "\n"
    return between(old, marks, text, page)
