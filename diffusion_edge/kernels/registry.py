"""Which implementation of an operation is taken, and why the others are not.

An operation has a reference in plain torch, which says what it is, and implementations that are
faster somewhere. The first one that can take a case does; what fails while it runs is replaced by
the reference for calls of the same shapes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from diffusion_edge.errors import ConfigError

log = logging.getLogger(__name__)

VARIABLE = "DIFFUSION_EDGE_KERNELS"
"""`off`, or such as `geglu=reference,to_uint8=triton`: what is taken whatever else could be."""

REFERENCE = "reference"
LARGE = 2**23
"""Values of a tensor that is large. In float32 these are 32 MiB, from which on glibc gets every
tensor's memory from the kernel anew, so that a tensor less is much time less."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

Layout = Literal["contiguous", "channels_last", "strided"]
ANY: tuple[Layout, ...] = ("contiguous", "channels_last", "strided")
DENSE: tuple[Layout, ...] = ("contiguous", "channels_last")

Faith = Literal["exact", "lossless", "fast"]
"""exact: the reference's bits. lossless: its error against float64 is at most twice that of the
eager operation in the same precision. fast: anything beyond."""


@dataclass(frozen=True)
class Case:
    """What an operation is asked for: where its first tensor lies, and how.

    large: from LARGE values on.
    """

    device: str
    dtype: torch.dtype
    layout: Layout
    large: bool = True


@dataclass(frozen=True)
class Implementation:
    """One way to carry an operation out, as its reference is called.

    large: it is faster for large tensors only. missing: what this process lacks for it, None if
    nothing.
    """

    name: str
    run: Callable[..., Any]
    faith: Faith
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...] = FLOATS
    layouts: tuple[Layout, ...] = ANY
    large: bool = False
    missing: Callable[[], str | None] = lambda: None

    def refuses(self, case: Case) -> str | None:
        """Why not for this case; None if it can."""
        if case.device not in self.devices:
            return f"for {' and '.join(self.devices)}"
        if case.dtype not in self.dtypes:
            return f"not for {_short(case.dtype)}"
        if case.layout not in self.layouts:
            return f"not for {case.layout} tensors"
        if self.large and not case.large:
            return f"no faster below {LARGE:,} values"
        return self.missing()


@dataclass(frozen=True)
class Choice:
    """refused: by every other implementation, why not."""

    taken: Implementation
    refused: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Operation:
    """faster: best first."""

    name: str
    what: str
    reference: Callable[..., Any]
    faster: tuple[Implementation, ...] = ()

    @property
    def implementations(self) -> tuple[Implementation, ...]:
        plain = Implementation(REFERENCE, self.reference, "exact", ("cpu", "cuda"))
        return (*self.faster, plain)

    def choice(self, case: Case) -> Choice:
        return _choice(self, case, os.environ.get(VARIABLE, ""))

    def run(self, *args: Any) -> Any:
        """By the chosen implementation. The first tensor of the arguments says the case."""
        taken = self.choice(case_of(args)).taken
        if taken.name == REFERENCE or (
            _failed and (self.name, taken.name, *_shapes(args)) in _failed
        ):
            return self.reference(*args)
        try:
            return taken.run(*args)
        except torch.OutOfMemoryError:
            raise  # the engine makes the batch smaller
        except Exception as error:
            call = (self.name, taken.name, *_shapes(args))
            _failed.add(call)
            log.warning("%s failed, the reference takes over: %r", call, error)
            return self.reference(*args)

    def __call__(self, op: Callable[..., Any], *args: Any) -> Any:
        """`run`, and what a compiler sees of it: on a CPU the reference, which it fuses with what
        is around it, elsewhere `op`, the custom operator that calls `run`. Who traces a model for
        another library sees the reference, too."""
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return self.reference(*args)
        if not torch.compiler.is_compiling():
            return self.run(*args)
        on_cpu = next(a for a in args if isinstance(a, Tensor)).device.type == "cpu"
        return self.reference(*args) if on_cpu else op(*args)


_failed: set[tuple[Any, ...]] = set()
"""Calls by operation, implementation and shapes that failed once."""


def triton(run: Callable[..., Any], faith: Faith, **limits: Any) -> Implementation:
    """A Triton kernel; on CPU tensors only where Triton interprets."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    devices = ("cuda", "cpu") if interpreted else ("cuda",)
    return Implementation("triton", run, faith, devices, missing=_no_triton, **limits)


def _no_triton() -> str | None:
    return None if find_spec("triton") else "triton is not installed"


def case_of(args: tuple[Any, ...]) -> Case:
    first = next(_tensors(args))
    return Case(first.device.type, first.dtype, layout_of(first), _is_large(first))


def pays(x: Tensor) -> bool:
    """Whether a module may gain by being fused: on a CPU, where x is large."""
    return x.device.type != "cpu" or _is_large(x)


def _is_large(x: Tensor) -> bool:
    return _all_large or x.numel() >= LARGE


_all_large = False


@contextmanager
def all_large() -> Iterator[None]:
    """Takes every tensor for a large one, in all threads: what small ones tell of the results is
    true of large ones."""
    global _all_large
    before, _all_large = _all_large, True
    try:
        yield
    finally:
        _all_large = before


def layout_of(tensor: Tensor) -> Layout:
    if tensor.is_contiguous():
        return "contiguous"
    last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return "channels_last" if last else "strided"


def _tensors(args: tuple[Any, ...]) -> Iterator[Tensor]:
    return (arg for arg in args if isinstance(arg, Tensor))


def _shapes(args: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    return ((tuple(t.shape), _short(t.dtype), t.device.type) for t in _tensors(args))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---------------------------------------------------------------------------- choosing


@lru_cache(maxsize=512)
def _choice(operation: Operation, case: Case, said: str) -> Choice:
    """The implementation that `said`, the variable, names, if it can; else the first that can."""
    asked = asked_for(said).get(operation.name)
    if said == "off":
        asked = REFERENCE
    known = operation.implementations
    if asked and asked not in {each.name for each in known}:
        names = ", ".join(each.name for each in known)
        raise ConfigError(f"{VARIABLE}: {operation.name} has no {asked!r}; it has {names}")
    why = {each.name: each.refuses(case) for each in known}
    able = [each for each in known if why[each.name] is None and asked in (None, each.name)]
    taken = (able or known[-1:])[0]
    passed = f"{VARIABLE}={said}" if asked else f"slower than {taken.name}"
    refused = {each.name: why[each.name] or passed for each in known if each is not taken}
    return Choice(taken, refused)


def asked_for(said: str) -> Mapping[str, str]:
    """Implementation by operation. Raises ConfigError for what is neither that nor `off`."""
    if said in ("", "off"):
        return {}
    pairs = [pair.strip().partition("=") for pair in said.split(",")]
    if not all(name and equals and value for name, equals, value in pairs):
        raise ConfigError(f"{VARIABLE}={said}: it is `off` or such as `geglu=reference`")
    return {name: value for name, _, value in pairs}
