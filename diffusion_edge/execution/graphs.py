"""Converted graphs, kept on disk: to trace and convert a model takes most of a start."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

ROOM = 10
"""A graph is kept where the disk has room for so many of its size."""


def kept(folder: Path, openvino: Any, make: Callable[[], Any], size: int) -> Any:
    """The graph in `folder`, or the one that is made, which is then kept there.

    openvino: the package. size: bytes of the weights. Raises what `make` does; a graph that cannot
    be read is made anew, and one that cannot be kept is made at the next start, too.
    """
    path = folder / "graph.xml"
    if path.exists():
        try:
            return openvino.Core().read_model(path)
        except RuntimeError as error:
            log.warning("%s cannot be read and is made anew: %s", path, error)
            shutil.rmtree(folder, ignore_errors=True)
    graph = make()
    try:
        _keep(graph, folder, openvino, size)
    except (OSError, RuntimeError) as error:
        if not path.exists():  # as it does where another process was quicker
            log.warning("a converted graph cannot be kept in %s: %s", folder, error)
    return graph


def _keep(graph: Any, folder: Path, openvino: Any, size: int) -> None:
    """Whole or not at all, also where another process does the same."""
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        if shutil.disk_usage(part).free >= ROOM * size:
            openvino.save_model(graph, part / "graph.xml", compress_to_fp16=False)
            part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
