"""How the networks of `shapes` are trained: precision, optimisers, averages, the time spent."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

AVERAGE_EVERY = 5
"""Updates between two updates of the weights' running average."""


class Shadow:
    """Trains float32 masters of modules whose working copy is in `dtype`, with their averages.

    On a CPU with AMX a bfloat16 forward and backward takes about 0.4 of the float32 time, if
    attention stays in float32 (see `float32_attention`). Hidden matrices are updated by Muon,
    everything else by AdamW; both take the same learning rate.
    """

    def __init__(self, modules: dict[str, nn.Module], dtype: torch.dtype, rate: float) -> None:
        self.modules = modules
        self.masters = {name: copy.deepcopy(module) for name, module in modules.items()}
        self.averages = {name: copy.deepcopy(m).eval() for name, m in self.masters.items()}
        for module in modules.values():
            module.to(dtype)
        self.rate = rate
        self.updates = 0
        hidden: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for master in self.masters.values():
            for name, parameter in master.named_parameters():
                inner = "blocks." in name or ".block." in name
                matrix = parameter.ndim == 2 and "table" not in name and "bias" not in name
                (hidden if inner and matrix else rest).append(parameter)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
        ]
        if hidden:
            muon = torch.optim.Muon(
                hidden, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
            )
            self.optimizers.append(muon)

    def step(self, progress: float) -> None:
        """One update from the working copies' gradients; `progress` in [0, 1] sets the rate."""
        rate = self.rate * min(1.0, progress / 0.02) * (1 - max(0.0, progress - 0.3) / 0.7)
        for name, module in self.modules.items():
            pairs = list(zip(module.parameters(), self.masters[name].parameters(), strict=True))
            for working, master in pairs:
                master.grad = None if working.grad is None else working.grad.float()
                working.grad = None
            nn.utils.clip_grad_norm_([master for _, master in pairs], 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.updates += 1
        with torch.no_grad():
            for name, module in self.modules.items():
                masters = list(self.masters[name].parameters())
                for working, master in zip(module.parameters(), masters, strict=True):
                    working.copy_(master)
                if self.updates % AVERAGE_EVERY == 0:
                    decay = min(0.99, 1 - 10 / (10 + self.updates))
                    for average, master in zip(
                        self.averages[name].parameters(), masters, strict=True
                    ):
                        average.lerp_(master, 1 - decay)


@contextmanager
def float32_attention() -> Iterator[None]:
    """The backward pass of bfloat16 attention on a CPU is ten times slower than float32's."""
    original = F.scaled_dot_product_attention

    def upcast(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        if q.dtype != torch.bfloat16 or q.device.type != "cpu":
            return original(q, k, v, attn_mask=attn_mask, **options)
        mask = attn_mask.float() if attn_mask is not None else None
        return original(q.float(), k.float(), v.float(), attn_mask=mask, **options).to(q.dtype)

    F.scaled_dot_product_attention = upcast  # type: ignore[assignment]  # for its duration
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def budget(minutes: float, title: str) -> Iterator[tuple[float, Progress]]:
    """Yields the share of the time that is spent, with a progress bar, until it is all spent."""
    columns = (
        TextColumn(title),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, refresh_per_second=1) as progress:
        task = progress.add_task(title, total=1.0, note="")
        start = time.monotonic()
        while (spent := (time.monotonic() - start) / (60 * minutes)) < 1:
            progress.update(task, completed=spent)
            yield spent, progress


def note(progress: Progress, text: str) -> None:
    """Beside the bar; as lines of their own where there is no terminal to draw a bar on."""
    progress.update(progress.task_ids[0], note=text)
    if not progress.console.is_terminal:
        progress.console.print(text)
