"""torch.compile of the blocks that a denoiser repeats: one of them is compiled for all."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from diffusion_edge.engine.run import Predict
from diffusion_edge.execution.way import Way, at_sizes, not_float32
from diffusion_edge.families.base import Loaded

inductor = partial(torch.compile, options={"cpp.dynamic_threads": True})
"""Lanes have another number of threads than a pass over all cores."""


def refuses(family: Loaded, sizes: Sequence[int], threads: int) -> str | None:
    if not list(_repeated(family.denoiser)):
        return f"{type(family.denoiser).__name__} repeats no transformer block"
    if hasattr(family.denoiser, "_hf_hook"):
        return "the model is moved to its device when it is called"
    compiler = os.environ.get("CXX", "g++")
    if family.device.type == "cpu" and shutil.which(compiler) is None:
        return f"there is no C++ compiler {compiler!r}; install one, or name it in CXX"
    return not_float32(family)


def prepare(
    family: Loaded,
    sizes: Sequence[int],
    threads: int,
    compiled: Callable[[Any], Any] = inductor,
) -> Predict:
    """The first passes compile, half a minute on a CPU. compiled: makes a block's forward anew."""
    own = family.with_denoiser(_twin(family.denoiser))
    for block in _repeated(own.denoiser):
        block.forward = compiled(block.forward)
    return at_sizes(family, sizes, own.predict)


COMPILED = Way("compiled", "lossless", refuses, {"predict": prepare})


def _repeated(denoiser: nn.Module) -> Iterator[nn.Module]:
    """The transformer blocks, as diffusers' models call their lists."""
    lists = (each for name, each in denoiser.named_modules() if name.endswith("transformer_blocks"))
    return chain.from_iterable(each.children() for each in lists)


def _twin(denoiser: nn.Module) -> nn.Module:
    """Another module with the same weights, which are in memory once."""
    held = chain(denoiser.parameters(), denoiser.buffers())
    return copy.deepcopy(denoiser, {id(tensor): tensor for tensor in held})
