"""Fixtures that many tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Two threads of OpenMP that wait for each other spin; where others want the cores, for minutes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="session")
def tiny_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a family of three tiny stages with random weights."""
    import torch  # here: half of the files need none of it, and it takes seconds

    from tests.tiny import make_family

    torch.set_num_threads(1)
    return make_family(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def brief_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """For stages of which nobody asks how fast they are: larger passes are not measured."""
    monkeypatch.setattr("diffusion_edge.engine.measure.ROWS", (1, 2))
