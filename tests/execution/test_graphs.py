"""A converted graph is kept whole or not at all, and whatever is wrong with it, one is there."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_edge.execution import graphs
from diffusion_edge.execution.graphs import kept
from diffusion_edge.execution.openvino import EXTRA, _openvino

pytestmark = pytest.mark.skipif(
    find_spec(EXTRA) is None, reason="the extra `openvino` is not installed"
)


class Maker:
    """Makes x + 1/3, and counts how often: a third is not one of float16."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> Any:
        self.made += 1
        package = _openvino()
        ops = importlib.import_module("openvino.opset13")
        x = ops.parameter([2], np.float32)
        return package.Model([ops.add(x, np.full(2, 1 / 3, np.float32))], [x])


def computed(graph: Any) -> Sequence[float]:
    model = _openvino().Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result: Sequence[float] = model(np.zeros(2, np.float32))[0].tolist()
    return result


def test_the_second_time_it_is_read_bit_for_bit(tmp_path: Path) -> None:
    make, folder = Maker(), tmp_path / "deep" / "graph"
    first, second = kept(folder, _openvino(), make, 8), kept(folder, _openvino(), make, 8)
    assert make.made == 1
    assert computed(first) == computed(second) == [float(np.float32(1 / 3))] * 2
    assert [path.name for path in folder.parent.iterdir()] == ["graph"]


def test_what_was_cut_off_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make, folder = Maker(), tmp_path / "graph"
    kept(folder, _openvino(), make, 8)
    text = (folder / "graph.xml").read_bytes()
    (folder / "graph.xml").write_bytes(text[: len(text) // 2])
    with caplog.at_level(logging.WARNING):
        assert computed(kept(folder, _openvino(), make, 8)) == [float(np.float32(1 / 3))] * 2
    assert make.made == 2
    assert "made anew" in caplog.text
    kept(folder, _openvino(), make, 8)
    assert make.made == 2


def test_where_nothing_can_be_written_it_is_made_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make = Maker()
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            kept(tmp_path / "file" / "graph", _openvino(), make, 8)
    assert make.made == 2
    assert "cannot be kept" in caplog.text


def test_it_is_not_kept_where_the_disk_has_little_room(tmp_path: Path) -> None:
    make = Maker()
    for _ in range(2):
        kept(tmp_path / "graph", _openvino(), make, 10**18 // graphs.ROOM)
    assert make.made == 2
    assert not list(tmp_path.iterdir())


def test_who_comes_second_leaves_what_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two replicas that start together."""
    folder = tmp_path / "graph"

    def make() -> Any:
        kept(folder, _openvino(), Maker(), 8)
        return Maker()()

    with caplog.at_level(logging.WARNING):
        assert computed(kept(folder, _openvino(), make, 8)) == [float(np.float32(1 / 3))] * 2
    assert not caplog.messages
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]
