"""How reports become a part of a page: tables, and the marks between which they stand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from diffusion_edge.errors import InvalidRequest

Marks = tuple[str, str]


def marks(command: str) -> Marks:
    """What a command writes on a page stands between these lines."""
    return f"<!-- written by {command} -->", f"<!-- end of what {command} wrote -->"


def between(page: str, marks: Marks, text: str, where: Path) -> str:
    """The page with `text` in place of what stands between its marks. Raises InvalidRequest."""
    head, first, rest = page.partition(marks[0])
    _, last, tail = rest.partition(marks[1])
    if not first or not last:
        raise InvalidRequest(f"{where} lacks the lines {marks[0]!r} and {marks[1]!r}")
    return f"{head}{first}\n{text}\n{last}{tail}"


def listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Cells as they are. Raises ValueError for a row with more or fewer than the head."""
    yield _line(head)
    yield "|---" * len(head) + "|"
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"a row of {len(row)} cells under a head of {len(head)}: {row}")
        yield _line(row)


def section(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table under a title of its own, with the empty lines that Markdown wants."""
    yield from ("", f"**{title}**", "", *table(head, rows))


def _line(cells: Sequence[str]) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"
