"""The benchmark of fused operations, on small arguments."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffusion_edge.bench import kernels
from diffusion_edge.bench.kernels import WORKS, Work, measure, page_lines, summary
from diffusion_edge.errors import UnequalArm
from diffusion_edge.kernels import geglu
from diffusion_edge.kernels.operations import OPERATIONS
from diffusion_edge.kernels.registry import Implementation

SMALL = (
    Work("to_uint8", "1 x 3 x 4 x 5", lambda: (torch.randn(1, 3, 4, 5),)),
    Work("quantise", "1 x 2 x 3 x 3", lambda: (torch.randn(1, 2, 3, 3),)),
)


def test_a_row_for_every_operation() -> None:
    assert {work.operation for work in WORKS} == {operation.name for operation in OPERATIONS}


def test_what_has_a_faster_path_is_timed_beside_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ONCE_S", 1e-4)
    report = measure(SMALL, 2, "the command", lambda _: None)
    assert [[row.arm for row in work.rows] for work in report.works] == [
        ["eager", "cpu"],
        ["eager"],
    ]
    assert report.overall == report.works[0].rows[1].ratio
    page = "\n".join(page_lines(report))
    assert page.count("not measured") == 3 * len(SMALL)
    assert "as eager" in page
    assert len(list(summary(report))) == len(SMALL)


def test_a_path_that_does_other_work_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Implementation("cpu", lambda x: geglu.reference(x) * 1.001, "exact", ("cpu",))
    operation = replace(geglu.OPERATION, faster=(wrong,))
    monkeypatch.setattr(kernels, "OPERATIONS", (operation,))
    with pytest.raises(UnequalArm, match="geglu"):
        measure([Work("geglu", "2 x 8", lambda: (torch.randn(2, 8),))], 1, "", lambda _: None)
