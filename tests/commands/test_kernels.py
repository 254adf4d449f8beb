"""What `diffusion-edge kernels` says."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from diffusion_edge.commands.app import app
from diffusion_edge.kernels.operations import OPERATIONS
from diffusion_edge.kernels.registry import VARIABLE


def said(*args: str) -> str:
    done = CliRunner().invoke(app, ["kernels", *args])
    assert done.exit_code == 0, done.output
    return done.output


def test_every_operation_with_what_is_taken_and_why_not_the_others() -> None:
    told = said()
    assert all(operation.name in told for operation in OPERATIONS)
    assert "to_uint8         cpu (exact). triton: for cuda; reference: slower than cpu" in told
    assert "geglu            cpu (exact), from 8,388,608 values on. triton: for cuda" in told
    assert "quantise         nothing is faster, so nothing is replaced. triton: for cuda." in told


def test_the_variable_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    assert "(exact)" not in said()


@pytest.mark.skipif(bool(find_spec("triton")), reason="triton is installed")
def test_compiling_needs_triton() -> None:
    done = CliRunner().invoke(app, ["kernels", "--compile"])
    assert done.exit_code == 1
    assert "the extra `kernels`" in done.output
