"""Fixtures that many tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Two threads of OpenMP that wait for each other spin; where others want the cores, for minutes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests run in one process, which keeps their fixtures; so do all that start Ray, for
    one server beside what else runs is what two cores carry. These come first: they are longest."""
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


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
