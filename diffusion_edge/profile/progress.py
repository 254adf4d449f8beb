"""A progress bar; where there is no terminal to draw it on, a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 60.0


def pictures_bar(total: int) -> AbstractContextManager[Callable[[int], None]]:
    return bar(total, "pictures")


@contextmanager
def bar(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """Yields the function to call with the number of those that are done."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, refresh_per_second=2) as progress:
        task = progress.add_task("", total=total)
        said = time.monotonic()

        def advance(done: int) -> None:
            nonlocal said
            progress.advance(task, done)
            if not console.is_terminal and time.monotonic() - said > LINE_EVERY_S:
                said = time.monotonic()
                console.print(f"{progress.tasks[0].completed:.0f} of {total} {what}")

        yield advance
