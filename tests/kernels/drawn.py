"""Random arguments of every operation, ragged and strided, and how far results are from float64.

As a program: the Triton kernels, interpreted, on as many draws as it is told, and what came of
them as JSON.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffusion_edge.bench.eager import EAGER, allowed, error, outcome, wide
from diffusion_edge.kernels.operations import OPERATIONS
from diffusion_edge.kernels.registry import Operation

Args = tuple[Any, ...]


class Draw:
    """One draw; dtype: of the floats that are no weights of a solver."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        self.random = random.Random(seed)
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(seed)

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def main(self, *shape: int) -> Tensor:
        """With an offset, in some layout, now and then with a NaN or an infinity."""
        x = self.floats(*shape) * 2 + self.random.choice((0.0, 0.5, 3.0))
        if x.numel() and self.dtype == torch.float32 and self.random.random() < 0.25:
            x.view(-1)[self.random.randrange(x.numel())] = self.random.choice(
                (float("nan"), float("inf"), -float("inf"))
            )
        layout = self.random.choice(("contiguous", "channels_last", "strided"))
        if layout == "channels_last" and x.ndim == 4:
            return x.to(memory_format=torch.channels_last)
        if layout == "strided":
            wide = torch.zeros(*shape[:-1], 2 * shape[-1], dtype=x.dtype)
            wide[..., ::2] = x
            return wide[..., ::2]
        return x

    def batch(self) -> int:
        return self.random.choice((0, 1, 1, 2, 3))

    def one_of(self, *values: Any) -> Any:
        return self.random.choice(values)


def _group_norm_silu(draw: Draw) -> Args:
    groups, size = draw.one_of(1, 2, 3), draw.one_of(1, 2, 5)
    channels = groups * size
    x = draw.main(max(1, draw.batch()), channels, draw.one_of(2, 7), draw.one_of(3, 17))
    return x, draw.floats(channels), draw.floats(channels), groups, 1e-5


def _gated_norm(draw: Draw) -> Args:
    batch, tokens, size = draw.batch(), draw.one_of(1, 3), draw.one_of(2, 17, 32)
    y = draw.one_of(None, draw.main(batch, tokens, size))
    both = draw.floats(batch, 3, size).chunk(3, dim=1)
    gate = None if y is None else draw.one_of(None, both[0])
    x = draw.main(batch, tokens, size)
    return x, y, gate, both[1], both[2], 1e-6, draw.one_of(True, False)


def _qk_norm_rotary(draw: Draw) -> Args:
    batch, tokens, heads, size = draw.batch(), draw.one_of(1, 5), draw.one_of(1, 3), 6
    shape = (batch, tokens, heads, size)
    angles = torch.rand((tokens, size // 2), generator=draw.generator) * 6
    turned = draw.one_of((None, None), (angles.cos(), angles.sin()))
    weights = draw.floats(size), draw.floats(size)
    return draw.main(*shape), draw.main(*shape), *weights, *turned, 1e-6


def _geglu(draw: Draw) -> Args:
    return (draw.main(draw.batch(), draw.one_of(1, 3), 2 * draw.one_of(1, 7, 40)),)


def _guided_step(draw: Draw) -> Args:
    batch, longest = draw.batch(), draw.one_of(0, 1, 2, 3)
    shape = (batch, 3, draw.one_of(2, 5), draw.one_of(3, 8))
    weights = torch.randn((batch, 1 + longest, 3 + longest), generator=draw.generator)
    predicted = draw.main(draw.one_of(1, 2) * batch, *shape[1:])
    noise = draw.one_of(None, draw.main(*shape))
    history = [draw.floats(*shape) for _ in range(longest)]
    return draw.main(*shape), weights, predicted, draw.floats(batch), noise, history


def _quantise(draw: Draw) -> Args:
    x = draw.main(1, draw.one_of(1, 4), draw.one_of(1, 7), draw.one_of(3, 19))
    if draw.one_of(True, False):
        x[:, 0] = 0
    return (x,)


def _dequantise(draw: Draw) -> Args:
    shape = (1, draw.one_of(1, 4), draw.one_of(1, 7), draw.one_of(3, 19))
    levels = torch.randint(-127, 128, shape, generator=draw.generator, dtype=torch.int8)
    return levels, draw.floats(shape[1]).abs()


def _to_uint8(draw: Draw) -> Args:
    return (draw.main(draw.batch(), draw.one_of(1, 3), draw.one_of(1, 5), draw.one_of(2, 9)),)


DRAWN: Mapping[str, Callable[[Draw], Args]] = {
    "group_norm_silu": _group_norm_silu,
    "gated_norm": _gated_norm,
    "qk_norm_rotary": _qk_norm_rotary,
    "geglu": _geglu,
    "guided_step": _guided_step,
    "quantise": _quantise,
    "dequantise": _dequantise,
    "to_uint8": _to_uint8,
}
FLOAT32_ONLY = ("guided_step", "quantise", "dequantise")

# ---------------------------------------------------------------------------- errors


def compared(operation: Operation, run: Callable[..., Any], args: Args) -> tuple[float, float]:
    """The error of `run` and that of the eager operation in the same precision."""
    eager = EAGER[operation.name]
    with torch.inference_mode():
        truth = outcome(eager, wide(args))
        return error(outcome(run, args), truth), error(outcome(eager, args), truth)


def same_bits(found: Sequence[Tensor], reference: Sequence[Tensor]) -> bool:
    return all(
        torch.equal(a.nan_to_num(7.0) if a.is_floating_point() else a, b)
        for a, b in zip(
            found,
            (r.nan_to_num(7.0) if r.is_floating_point() else r for r in reference),
            strict=True,
        )
    )


def main(draws: int) -> None:
    told: dict[str, Any] = {}
    for operation in OPERATIONS:
        (kernel,) = (each for each in operation.faster if each.name == "triton")
        bad, most = [], 0.0
        for seed in range(draws):
            dtypes = (torch.float32, torch.float16)
            dtype = dtypes[0] if operation.name in FLOAT32_ONLY else dtypes[seed % 2]
            args = DRAWN[operation.name](Draw(seed, dtype))
            if kernel.refuses(_case(args)):
                continue
            mine, eager = compared(operation, kernel.run, args)
            most = max(most, mine)
            same = same_bits(outcome(kernel.run, args), outcome(operation.reference, args))
            if mine > allowed(eager, dtype) or (kernel.faith == "exact" and not same):
                bad.append([seed, mine, eager, same])
        told[operation.name] = {"bad": bad, "most": most}
    print(json.dumps(told))


def _case(args: Args) -> Any:
    from diffusion_edge.kernels.registry import case_of

    return replace(case_of(args), large=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
