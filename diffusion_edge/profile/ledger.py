"""What a long measurement has done so far, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Part = TypeVar("Part")


@dataclass(frozen=True)
class Ledger:
    """A file of JSON lines: what is measured, then an entry for each part that is done."""

    path: Path

    def append(self, entry: object) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def open_ledger(path: Path, settings: Mapping[str, Any]) -> tuple[Ledger, list[Any]]:
    """The ledger, and the entries of an earlier run of just these settings.

    What another run has left there is dropped, and so is a last line that was cut off. The caller
    removes the file when it is not needed any more.
    """
    head, *entries = _lines(path) or [None]
    if head != json.loads(json.dumps(settings)):
        entries = []
    path.write_text("".join(json.dumps(line) + "\n" for line in (settings, *entries)))
    return Ledger(path), entries


def results(
    path: Path, settings: Mapping[str, Any], parts: Sequence[Part], do: Callable[[Part], Any]
) -> Iterator[tuple[Any, bool]]:
    """The entry of every part, from the ledger at `path` or from `do`; and whether it was there."""
    ledger, entries = open_ledger(path, settings)
    for number, part in enumerate(parts):
        if number < len(entries):
            yield entries[number], True
        else:
            entry = do(part)
            ledger.append(entry)
            yield entry, False


def _lines(path: Path) -> list[Any]:
    """The lines up to the first that is no JSON."""
    found: list[Any] = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
    return found
