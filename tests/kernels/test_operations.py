"""Every operation against float64, by every implementation; what compilers see of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from diffusion_edge.kernels.gated_norm import gated_norm
from diffusion_edge.kernels.geglu import geglu
from diffusion_edge.kernels.group_norm_silu import group_norm_silu
from diffusion_edge.kernels.guided_step import guided_step
from diffusion_edge.kernels.operations import OPERATIONS
from diffusion_edge.kernels.qk_norm_rotary import qk_norm_rotary
from diffusion_edge.kernels.quantise import dequantise, quantise
from diffusion_edge.kernels.registry import Implementation, Operation, case_of
from diffusion_edge.kernels.to_uint8 import to_uint8
from tests.kernels.drawn import (
    DRAWN,
    FLOAT32_ONLY,
    Args,
    Draw,
    allowed,
    compared,
    outcome,
    same_bits,
)
from tests.long import often

DRAWS = often(25, 400)
INTERPRETED = often(8, 60)
PUBLIC: Mapping[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (
        group_norm_silu,
        gated_norm,
        qk_norm_rotary,
        geglu,
        guided_step,
        quantise,
        dequantise,
        to_uint8,
    )
}
ON_CPU = [
    (operation, each)
    for operation in OPERATIONS
    for each in operation.implementations
    if each.name != "triton"
]
needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")


def named(value: Any) -> str:
    return str(value.name)


@pytest.mark.parametrize(("operation", "implementation"), ON_CPU, ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_as_near_to_float64_as_the_eager_operation(
    operation: Operation, implementation: Implementation, dtype: torch.dtype
) -> None:
    if dtype not in implementation.dtypes or (
        dtype != torch.float32 and operation.name in FLOAT32_ONLY
    ):
        pytest.skip(f"it is not for {dtype}")
    for seed in range(DRAWS):
        args = DRAWN[operation.name](Draw(seed, dtype))
        if implementation.refuses(replace(case_of(args), large=True)):
            continue
        mine, eager = compared(operation, implementation.run, args)
        assert mine <= allowed(eager, dtype), f"draw {seed}: {mine:.1e}, eager {eager:.1e}"
        if implementation.faith == "exact":
            with torch.inference_mode():
                made = outcome(implementation.run, args)
                assert same_bits(made, outcome(operation.reference, args)), f"draw {seed}"


def test_an_error_is_noticed() -> None:
    """What the tests above can see: a wrong epsilon, and a history that is not written."""
    by_name = {operation.name: operation for operation in OPERATIONS}

    def off(*args: Any) -> Any:
        return by_name["group_norm_silu"].reference(*args[:-1], 1e-3)

    def forgetful(x: Any, weights: Any, predicted: Any, guidance: Any, noise: Any, h: Any) -> Any:
        return by_name["guided_step"].reference(
            x, weights, predicted, guidance, noise, [t.clone() for t in h]
        )

    for name, wrong in (("group_norm_silu", off), ("guided_step", forgetful)):
        pairs = [compared(by_name[name], wrong, DRAWN[name](Draw(seed))) for seed in range(10)]
        assert any(mine > allowed(eager, torch.float32) for mine, eager in pairs)


# ---------------------------------------------------------------------------- compilers


def simple(name: str) -> Args:
    """The first draw of two samples or more, dense and finite."""
    for seed in range(1000):
        args = DRAWN[name](Draw(seed))
        first = args[0]
        if first.is_contiguous() and len(first) and first.float().isfinite().all():
            return args
    raise AssertionError(name)


@pytest.mark.parametrize("operation", OPERATIONS, ids=named)
def test_torch_knows_it(operation: Operation) -> None:
    """`opcheck`: schema, mutation, fake tensors, tracing with dynamic shapes."""
    torch.library.opcheck(
        getattr(torch.ops.diffusion_edge, operation.name).default, simple(operation.name)
    )


@pytest.mark.parametrize("operation", OPERATIONS, ids=named)
def test_it_compiles_into_one_graph(operation: Operation) -> None:
    args = simple(operation.name)
    compiled = torch.compile(PUBLIC[operation.name], fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        assert same_bits(outcome(compiled, args), outcome(operation.reference, args))


# ---------------------------------------------------------------------------- Triton


@needs_triton
def test_the_kernels_interpreted() -> None:
    """In a process of its own, since Triton asks for it once."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.drawn", str(INTERPRETED)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, told in json.loads(done.stdout).items():
        assert told["bad"] == [], name
