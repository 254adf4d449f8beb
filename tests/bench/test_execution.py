"""The ways against each other on a tiny model; what runs beside eager is made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffusion_edge.bench import execution
from diffusion_edge.bench.execution import Task, measure, page_lines
from diffusion_edge.errors import UnequalArm
from diffusion_edge.execution.way import Way
from diffusion_edge.execution.ways import WAYS
from diffusion_edge.families.card import load_card


def of(factor: float, refusal: str | None = None) -> Way:
    """A way that multiplies what eager makes."""

    def prepare(family: Any, sizes: Any, threads: int) -> Any:
        return lambda *inputs: factor * family.predict(*inputs)

    return Way("made-up", "lossless", lambda *_: refusal, {"predict": prepare})


def a_task(folder: Path) -> Task:
    return Task(load_card(folder), ("device",), (16, 32), (2, 3), ("made-up",), 2, 1, "the command")


def test_every_way_has_a_row_for_each_size_and_number_of_rows(
    tiny_family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WAYS, "made-up", of(1.0))  # type: ignore[misc]  # it is a dict
    parts: list[str] = []
    report = measure(a_task(tiny_family), parts.append)
    assert parts == ["device, 16 pixels", "device, 32 pixels"]
    assert [(each.size, each.count) for each in report.measured] == [
        (16, 2),
        (16, 3),
        (32, 2),
        (32, 3),
    ]
    for each in report.measured:
        assert [row.arm for row in each.rows] == ["eager", "made-up"]
        assert all(len(row.seconds) == 2 and row.lowest_s > 0 for row in each.rows)
    page = "\n".join(page_lines(report))
    assert "the command" in page
    assert page.count("| made-up |") == 4


def test_other_latents_are_refused_before_anything_is_timed(
    tiny_family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WAYS, "made-up", of(1.001))  # type: ignore[misc]
    monkeypatch.setattr(execution, "interleaved", None)
    with pytest.raises(UnequalArm, match="made-up"):
        measure(a_task(tiny_family), lambda _: None)


def test_what_cannot_run_is_told_with_its_reason(
    tiny_family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WAYS, "made-up", of(1.0, "not today"))  # type: ignore[misc]
    report = measure(a_task(tiny_family), lambda _: None)
    assert all([row.arm for row in each.rows] == ["eager"] for each in report.measured)
    assert list(page_lines(report))[-1] == "Not measured: device by made-up: not today."
