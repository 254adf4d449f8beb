"""The list of what `make mutants` changes, and how it draws its sample and keeps its verdicts."""

from __future__ import annotations

import importlib
import os
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LISTED = yaml.safe_load((ROOT / "tests" / "mutants.yaml").read_text())
CODE = """
from functools import cache


@cache
def twice(number):
    return 2 * number
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tests/mutants.py over a tree of one module and its test."""
    pytest.importorskip("mutmut", reason="make mutants installs it")
    driver = importlib.import_module("tests.mutants")
    monkeypatch.setattr(driver, "ROOT", tmp_path)
    (tmp_path / "twice.py").write_text(CODE)
    (tmp_path / "test_twice.py").write_text("")
    return driver


def test_what_is_listed_is_there() -> None:
    files = {
        path: tests
        for rows in ("core", "beyond")
        for row in LISTED[rows].values()
        for path, tests in row.items()
    }
    assert [path for path in files if not (ROOT / path).is_file()] == []
    assert [t for tests in files.values() for t in tests if not (ROOT / t).is_file()] == []


@pytest.mark.parametrize("row", ["engine", "routing", "api"])
def test_all_of_a_package_is_listed(row: str) -> None:
    files = (ROOT / "diffusion_edge" / row).rglob("*.py")
    expected = {str(path.relative_to(ROOT)) for path in files if path.stat().st_size}
    assert set(LISTED["core"][row]) == expected


def test_decorated_functions_are_changed_too_and_keep_their_decorators(driver: ModuleType) -> None:
    found = list(driver.mutants(driver.Module("row", "twice.py", ())))
    assert [mutant.change for mutant in found] == [
        ("twice.py:7", "return 2 * number", "return 2 / number"),
        ("twice.py:7", "return 2 * number", "return 3 * number"),
    ]
    assert all("\n@cache\ndef twice" in mutant.code for mutant in found)


def test_the_sample_stays_when_other_code_comes(driver: ModuleType) -> None:
    module = driver.Module("row", "twice.py", ())
    before = {mutant.id for mutant in driver.mutants(module)}
    (driver.ROOT / "twice.py").write_text("SIZE = 7\n" + CODE)
    after = list(driver.mutants(module))
    assert before < {mutant.id for mutant in after}
    assert [mutant.id for mutant in driver.lowest(after, 1)] == [min(m.id for m in after)]


def test_another_seed_draws_another_sample_of_the_same(driver: ModuleType) -> None:
    module = driver.Module("row", "twice.py", ())
    first, second = (list(driver.mutants(module, seed)) for seed in (1, 2))
    assert [mutant.change for mutant in first] == [mutant.change for mutant in second]
    assert {mutant.id for mutant in first}.isdisjoint(mutant.id for mutant in second)


def test_a_survivor_is_tried_again_when_its_tests_change(driver: ModuleType) -> None:
    def first() -> Any:
        return next(driver.mutants(driver.Module("row", "twice.py", ("test_twice.py",))))

    mutant = first()
    row = {"source": mutant.module.source, "suite": mutant.module.suite}
    caught = {mutant.id: row | {"by": "a test"}}
    survived = {mutant.id: row | {"by": ""}}
    assert driver.verdict(caught, mutant)
    assert driver.verdict(survived, mutant)
    (driver.ROOT / "test_twice.py").write_text("assert True")
    assert driver.verdict(caught, first())
    assert driver.verdict(survived, first()) is None
    (driver.ROOT / "twice.py").write_text(CODE + "\n")
    assert driver.verdict(caught, first()) is None


def test_a_file_has_its_text_and_time_again(driver: ModuleType) -> None:
    file = driver.ROOT / "twice.py"
    os.utime(file, (1, 1))
    with suppress(KeyboardInterrupt), driver.in_place(file, "another"):
        assert file.read_text() == "another"
        raise KeyboardInterrupt
    assert (file.read_text(), file.stat().st_mtime) == (CODE, 1)
