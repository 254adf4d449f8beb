"""Guidance and the solver step of a batch in which every sample may have its own of both.

output = without + guidance (wanted - without)
[x', h1', ... hH'] = W . [x, output, noise, h1, ... hH]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_edge.kernels.registry import Operation, triton


def guided(predicted: Tensor, guidance: Tensor) -> Tensor:
    """The output (B, ...) of a forward pass of B rows, or of 2B: those without the prompt, and
    then those with it.

    guidance: (B,)
    """
    if len(predicted) == len(guidance):
        return predicted
    without, wanted = predicted.chunk(2)
    return without + _column(guidance, predicted) * (wanted - without)


def apply(
    weights: Tensor, x: Tensor, output: Tensor, noise: Tensor | None, history: Sequence[Tensor]
) -> list[Tensor]:
    """One solver step of a batch: [x', h1', ...].

    weights: float32 (B, 1 + H, 3 + H); x, output, noise and every history tensor: (B, ...); noise
    may be left out where all its weights are 0. Terms are added in a fixed order, so that a
    sample does not depend on the batch that it is in.
    """
    inputs = (x, output, noise, *history)
    results = []
    for row in weights.unbind(1):
        total = _column(row[:, 0], x) * x
        for column, tensor in enumerate(inputs[1:], start=1):
            if tensor is not None:
                total = total + _column(row[:, column], x) * tensor
        results.append(total)
    return results


def _column(values: Tensor, like: Tensor) -> Tensor:
    """A value for each sample, in a shape that multiplies the batch."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def reference(
    x: Tensor,
    weights: Tensor,
    predicted: Tensor,
    guidance: Tensor,
    noise: Tensor | None,
    history: Sequence[Tensor],
) -> Tensor:
    """x'; the new history is written in place of the old."""
    after, *made = apply(weights, x, guided(predicted, guidance), noise, history)
    for old, new in zip(history, made, strict=True):
        old.copy_(new)
    return after


def _triton(*args: Any) -> Tensor:
    from diffusion_edge.kernels.gpu import guided_step as gpu

    return gpu.launch(*args)


OPERATION = Operation(
    "guided_step",
    "guidance and the solver step, mixed rows, the history in place",
    reference,
    (triton(_triton, "exact", dtypes=(torch.float32,), layouts=("contiguous",)),),
)


@torch.library.custom_op("diffusion_edge::guided_step", mutates_args=("history",))
def _op(
    x: Tensor,
    weights: Tensor,
    predicted: Tensor,
    guidance: Tensor,
    noise: Tensor | None,
    history: Sequence[Tensor],
) -> Tensor:
    found: Tensor = OPERATION.run(x, weights, predicted, guidance, noise, history)
    return found


@_op.register_fake
def _(
    x: Tensor,
    weights: Tensor,
    predicted: Tensor,
    guidance: Tensor,
    noise: Tensor | None,
    history: Sequence[Tensor],
) -> Tensor:
    return torch.empty_like(x)


def guided_step(
    x: Tensor,
    weights: Tensor,
    predicted: Tensor,
    guidance: Tensor,
    noise: Tensor | None,
    history: Sequence[Tensor],
) -> Tensor:
    """The latents (B, ...) after one step; `history`, (B, ...) each, becomes the new one in place.

    x: (B, ...) float32. weights: (B, 1 + H, 3 + H), a row of a solver's table for each sample, H
    history tensors. predicted: (B, ...), or (2B, ...) without and with the prompt, for guidance
    (B,). noise: (B, ...), None where none is added.
    """
    found: Tensor = OPERATION(_op, x, weights, predicted, guidance, noise, history)
    return found


def stepped(
    x: Tensor,
    weights: Tensor,
    predicted: Tensor,
    guidance: Tensor,
    noise: Tensor | None,
    history: Sequence[Tensor],
) -> list[Tensor]:
    """[x', h1', ...], as `guided_step` takes them; `history` may be written over."""
    if _is_fused(x):
        return [guided_step(x, weights, predicted, guidance, noise, history), *history]
    return apply(weights, x, guided(predicted, guidance), noise, history)


def _is_fused(x: Tensor) -> bool:
    """On a CPU there is nothing faster, and the history need not be copied into place."""
    return x.device.type != "cpu"
