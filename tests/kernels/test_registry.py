"""Which implementation is taken, why the others are not, and what a failing one costs."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_edge.errors import ConfigError
from diffusion_edge.kernels.registry import (
    LARGE,
    VARIABLE,
    Case,
    Implementation,
    Operation,
    all_large,
    case_of,
    layout_of,
    pays,
)

HERE = Case("cpu", torch.float32, "contiguous")


def plus(amount: float) -> Any:
    return lambda x: x + amount


def an_operation(name: str, run: Any = None, **changes: Any) -> Operation:
    fast = Implementation("fast", run or plus(2), "exact", ("cpu",), (torch.float32,), **changes)
    other = Implementation("other", plus(3), "exact", ("cuda",))
    return Operation(name, "", plus(1), (other, fast))


def test_the_first_that_can_is_taken_and_the_others_say_why_not() -> None:
    choice = an_operation("first").choice(HERE)
    assert choice.taken.name == "fast"
    assert choice.refused == {"other": "for cuda", "reference": "slower than fast"}


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (Case("cpu", torch.bfloat16, "contiguous"), "not for bfloat16"),
        (Case("cpu", torch.float32, "strided"), "not for strided tensors"),
        (Case("cuda", torch.float32, "contiguous"), "for cpu"),
        (Case("cpu", torch.float32, "contiguous", large=False), "no faster below 8,388,608 values"),
    ],
)
def test_what_it_is_not_for(case: Case, why: str) -> None:
    operation = an_operation("limits", layouts=("contiguous",), large=True)
    assert operation.choice(case).refused["fast"] == why


def test_what_the_process_lacks_is_told() -> None:
    choice = an_operation("lacks", missing=lambda: "nothing to run it").choice(HERE)
    assert choice.taken.name == "reference"
    assert choice.refused["fast"] == "nothing to run it"


@pytest.mark.parametrize(
    ("said", "taken"),
    [("", 2.0), ("off", 1.0), ("named=reference", 1.0), ("x=y, named=fast", 2.0)],
)
def test_the_variable_decides(monkeypatch: pytest.MonkeyPatch, said: str, taken: float) -> None:
    monkeypatch.setenv(VARIABLE, said)
    assert an_operation("named").run(torch.zeros(1)).item() == taken


def test_what_is_named_but_cannot_leaves_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "cannot=other")
    choice = an_operation("cannot").choice(HERE)
    assert choice.taken.name == "reference"
    assert choice.refused == {"other": "for cuda", "fast": f"{VARIABLE}=cannot=other"}


@pytest.mark.parametrize("said", ["wrong=fastest", "fast", "=fast", "wrong=", "on"])
def test_a_wrong_variable_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv(VARIABLE, said)
    with pytest.raises(ConfigError, match=VARIABLE):
        an_operation("wrong").choice(HERE)


def test_a_kernel_that_fails_is_replaced_for_its_shapes_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[int] = []

    def picky(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(x) == 3:
            raise RuntimeError("no threes")
        return x + 2

    operation = an_operation("picky", picky)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert operation.run(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]
        assert operation.run(torch.zeros(2)).tolist() == [2.0, 2.0]
    assert calls == [3, 2]
    assert [("no threes" in r.message, "picky" in r.message) for r in caplog.records] == [
        (True, True)
    ]


def test_who_traces_sees_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    operation = an_operation("traced")
    assert operation(operation.run, torch.zeros(1)).item() == 2
    monkeypatch.setattr("torch.jit.is_tracing", lambda: True)
    assert operation(operation.run, torch.zeros(1)).item() == 1


def test_want_of_memory_is_the_engine_s_business() -> None:
    def large(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("too large")

    with pytest.raises(torch.OutOfMemoryError):
        an_operation("large", large).run(torch.zeros(1))


def test_layouts() -> None:
    x = torch.zeros(2, 3, 4, 5)
    assert layout_of(x) == "contiguous"
    assert layout_of(x.to(memory_format=torch.channels_last)) == "channels_last"
    assert layout_of(x[..., ::2]) == "strided"
    small = Case("cpu", torch.float16, "contiguous", large=False)
    assert case_of((None, x.half(), torch.zeros(1))) == small


def test_large_is_what_has_so_many_values_or_all_for_a_while() -> None:
    large = torch.zeros(1).expand(LARGE)
    assert [pays(large), pays(large[1:]), case_of((large,)).large] == [True, False, True]
    with all_large():
        assert pays(large[1:])
        assert case_of((large[1:],)).large
    assert not pays(large[1:])
