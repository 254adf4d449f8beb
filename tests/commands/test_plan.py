"""What `diffusion-edge plan` prints of an answer."""

from __future__ import annotations

from typing import Any

import pytest

from diffusion_edge.commands.plan import show


def other(kind: str, plan: str, **kw: Any) -> dict[str, Any]:
    told = {"predicted_s": 4.0, "cost": 2.0, "quality_bound": 0.93, "not_taken": "dearer by 1"}
    return {"kind": kind, "plan": plan, "comes_first_with": None} | told | kw


def test_the_plan_why_and_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    changes = {
        "a deadline of 5.2 s": {"deadline_ms": 5200.0},
        "a floor of 0.91": {"quality_floor": 0.91},
        "cloud at 2.5 a second": {"prices_per_s": {"cloud": 2.5}},
        "done within 3 s": {"predicted_s": 3.0},
        "no change of one thing": None,
    }
    others = [
        other(f"kind {k}", f"hall:{k + 1}", comes_first_with=change)
        for k, change in enumerate(changes.values())
    ]
    answer = {
        "plan": "phone:14,hall:6",
        "predicted_s": 3.456,
        "predicted_90_s": None,
        "cost": 1.0,
        "quality_bound": 0.96,
        "reason": "cheapest [of] some",
        "why": {"kind": "device then cloud", "alternatives": others, "kinds_left_out": 2},
    }
    show(answer)
    printed = capsys.readouterr().out
    assert "phone:14,hall:6: 3.46 s, cost 1, quality at least 0.96" in printed
    assert "cheapest [of] some" in printed
    for k, change in enumerate(changes):
        line = next(line for line in printed.splitlines() if f"kind {k}" in line)
        assert f"hall:{k + 1}" in line
        assert "4.00" in line
        assert change in line
    assert "and 2 kinds more" in printed
    show(answer | {"why": None, "quality_bound": None, "predicted_90_s": 4.321})
    printed = capsys.readouterr().out
    assert "unknown quality" in printed
    assert "3.46 s (nine in ten within 4.32 s)" in printed
