"""What a stage's status says of seconds."""

from __future__ import annotations

import pytest

from diffusion_edge.view import StageStatus


def test_only_a_model_that_doubles_takes_two_rows() -> None:
    def status(**more: object) -> StageStatus:
        seconds = {64: {1: 0.1, 2: 0.15}}
        return StageStatus("a", "edge", "a", 0.0, 0, 8, seconds, 0.0, {64: 0.2}, 1, **more)  # type: ignore[arg-type]  # of any field

    assert status().seconds_per_step(guided=True, cells=64) == 0.15
    assert status().seconds_per_step(guided=False, cells=64) == 0.1
    assert status(guiding="embedded").seconds_per_step(guided=True, cells=64) == 0.1
    assert status(emulated=True).seconds_per_step(guided=True, cells=64) == 0.1
    assert status(guiding="off").seconds_per_step(guided=True, cells=64) == 0.1


def test_seconds_of_a_size_that_a_stage_does_not_know_come_from_the_nearest() -> None:
    steps, decoding = {64: {1: 0.1, 2: 0.15}, 256: {1: 0.2}}, {64: 0.2, 256: 0.3}
    status = StageStatus("a", "edge", "a", 0.0, 0, 8, steps, 0.0, decoding, 1)
    assert status.seconds_per_step(guided=False, cells=256) == 0.2
    assert status.seconds_per_step(guided=True, cells=16) == pytest.approx(0.05)
    assert status.seconds_per_step(guided=False, cells=512) == pytest.approx(0.4)
    assert status.seconds_to_decode(256) == 0.3
    assert status.seconds_to_decode(96) == pytest.approx(0.3)
