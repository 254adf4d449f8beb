"""The operations of `kernels` as stock libraries carry them out, in the precision of their inputs:
what kernels are timed against, and, of float64, what they are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    return F.silu(F.group_norm(x, groups, weight, bias, eps))


def gated_norm(
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    rms: bool,
) -> tuple[Tensor, Tensor]:
    residual = x if y is None else x + (y if gate is None else gate * y)
    size = x.shape[-1:]
    normed = (
        F.rms_norm(residual, size, None, eps)
        if rms
        else F.layer_norm(residual, size, None, None, eps)
    )
    return x.new_empty(0) if y is None else residual, normed * (1 + scale) + shift


def qk_norm_rotary(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    def one(x: Tensor, weight: Tensor) -> Tensor:
        value = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight
        if cos is None or sin is None:
            return value
        wide_cos, wide_sin = (each.repeat_interleave(2, -1)[:, None] for each in (cos, sin))
        real, imaginary = value.reshape(*value.shape[:-1], value.shape[-1] // 2, 2).unbind(-1)
        turned = torch.stack([-imaginary, real], -1).flatten(-2)
        return value * wide_cos + turned * wide_sin

    return one(query, query_weight), one(key, key_weight)


def geglu(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, -1)
    return value * F.gelu(gate)


def guided_step(
    x: Tensor,
    weights: Tensor,
    predicted: Tensor,
    guidance: Tensor,
    noise: Tensor | None,
    history: Sequence[Tensor],
) -> Tensor:
    column = (-1,) + (1,) * (x.ndim - 1)
    output = predicted
    if len(predicted) != len(x):
        without, wanted = predicted.chunk(2)
        output = without + guidance.view(column) * (wanted - without)
    results = []
    for row in weights.unbind(1):
        total = row[:, 0].view(column) * x
        for weight, tensor in zip(row.unbind(1)[1:], (output, noise, *history), strict=True):
            if tensor is not None:
                total = total + weight.view(column) * tensor
        results.append(total)
    for old, new in zip(history, results[1:], strict=True):
        old.copy_(new)
    return results[0]


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x[0].flatten(1).abs().amax(1) / 127
    wide = scale.view(1, -1, *(1,) * (x.ndim - 2))
    levels = torch.where(wide > 0, x / wide, 0.0).round().clamp(-127, 127)
    return levels.to(torch.int8), scale


def dequantise(levels: Tensor, scale: Tensor) -> Tensor:
    return levels.to(scale.dtype) * scale.view(1, -1, *(1,) * (levels.ndim - 2))


def to_uint8(images: Tensor) -> Tensor:
    """As a pipeline's image processor: in the images' precision, rounded by numpy."""
    pixels = (images / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1)
    pixels = pixels.double() if pixels.dtype == torch.float64 else pixels.float()
    with np.errstate(invalid="ignore"):  # NaN
        return torch.from_numpy((pixels.numpy() * 255).round().astype("uint8", order="C"))


EAGER: Mapping[str, Callable[..., Any]] = {
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

Args = tuple[Any, ...]

# ---------------------------------------------------------------------------- errors


def outcome(run: Callable[..., Any], args: Args) -> list[Tensor]:
    """All that it makes, and what it wrote in place, of copies of its arguments."""
    own = tuple([t.clone() for t in a] if isinstance(a, list) else a for a in args)
    found = run(*own)
    made = list(found) if isinstance(found, tuple) else [found]
    return made + [t for a in own if isinstance(a, list) for t in a]


def wide(args: Args) -> Args:
    """In float64."""
    return tuple(
        [t.double() for t in a]
        if isinstance(a, list)
        else a.double()
        if isinstance(a, Tensor) and a.is_floating_point()
        else a
        for a in args
    )


def error(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Worst relative L2 error over what is finite; infinite if NaN or infinities lie elsewhere.
    Levels of channels that are not all finite mean nothing."""
    worst = 0.0
    broken = len(truth) == 2 and truth[0].dtype == torch.int8 and not truth[1].isfinite().all()
    for index, (mine, true) in enumerate(zip(found, truth, strict=True)):
        if mine.shape != true.shape:
            return float("inf")
        if broken and index == 0:
            continue
        x, y = mine.double(), true.double()
        fine = y.isfinite()
        if not torch.equal(x[~fine].nan_to_num(), y[~fine].nan_to_num()):
            return float("inf")
        if not torch.equal(x.isnan(), y.isnan()):
            return float("inf")
        length = float(y[fine].norm()) or 1.0
        worst = max(worst, float((x[fine] - y[fine]).norm()) / length)
    return worst


def allowed(eager: float, dtype: torch.dtype) -> float:
    """Twice the eager operation's, or what rounding the right result costs."""
    return 2 * max(eager, torch.finfo(dtype).eps / 2)
