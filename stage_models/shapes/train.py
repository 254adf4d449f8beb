"""Train the `shapes` family: one autoencoder, one text encoder, three denoisers.

    python -m stage_models.shapes.train vae --minutes 15
    python -m stage_models.shapes.train denoisers --minutes 100
    python -m stage_models.shapes.train denoisers --minutes 60 --resume    # from the saved weights

The budget is wall-clock time and the learning rate is annealed over it, so that the recipe ends
well on any machine. All denoisers learn from one stream of scenes in one loop. `--device cuda` uses
a GPU. On a CPU, `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000` in the environment keeps
glibc from giving memory back to the kernel between operations. The design and what was measured
for it stand in the model card, README.md.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, PixArtTransformer2DModel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import T5EncoderModel

from stage_models.shapes import layout, scenes
from stage_models.shapes.models import (
    ROOT,
    SHARED,
    TIERS,
    TRAIN_STEPS,
    WIDTHS,
    build_denoiser,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_vae,
    save,
    save_family,
)
from stage_models.shapes.scenes import Scene

UNCONDITIONAL = 0.1
"""Share of captions dropped in training, for classifier-free guidance."""

SIZES = {64: 1, 128: 1}
"""Edge lengths of pictures, and how often an update takes them; of larger ones it takes fewer."""

LAYOUT_WEIGHT = 0.1
"""Of the auxiliary loss (see `layout`) beside the velocity's, at the start; it falls to 0.

Trained alone for 300 updates, `edge` with it predicts the velocity better by 7 % at t = 600, where
the layout is decided, as well at 300, and worse by 2 % at 150, where outlines are drawn.
"""

AVERAGE_EVERY = 5
"""Updates between two updates of the weights' running average."""


# ---------------------------------------------------------------------------- optimisation


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


# ---------------------------------------------------------------------------- data


def picture(scene: scenes.Scene, size: int = scenes.CANVAS) -> Tensor:
    """The drawn scene as float32 (3, size, size) in [-1, 1]."""
    pixels = np.asarray(scenes.draw(scene, size), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)


def draw_many(
    rng: random.Random, count: int, size: int = scenes.CANVAS
) -> tuple[list[Scene], Tensor]:
    """Scenes with one, two and three objects, and their pictures, uint8 (count, 3, size, size)."""
    drawn = [scenes.sample(rng, rng.choices((1, 2, 3), (3, 5, 2))[0]) for _ in range(count)]
    pixels = np.stack([np.asarray(scenes.draw(scene, size)) for scene in drawn])
    return drawn, torch.from_numpy(pixels).permute(0, 3, 1, 2)


# ---------------------------------------------------------------------------- the autoencoder


def train_vae(minutes: float, device: str, dtype: torch.dtype, resume: bool) -> None:
    """L1 + L2 on pictures; latents get noise, and are held to mean 0 and deviation 1 a channel.

    So a latent needs no scaling factor, and the decoder forgives a denoiser's small errors.
    """
    vae = build_vae()
    if resume:
        vae = AutoencoderTiny.from_pretrained(SHARED / "vae", dtype=torch.float32)
    vae = vae.to(device).to(memory_format=torch.channels_last)
    shadow = Shadow({"vae": vae}, dtype, rate=1e-3)
    rng = random.Random(time.time_ns())
    pool = draw_many(rng, 4096)[1]
    for step, (spent, progress) in enumerate(budget(minutes, "vae")):
        if step % 4 == 0:
            at = rng.randrange(len(pool) - 64)
            pool[at : at + 64] = draw_many(rng, 64)[1]
        x = pool[torch.randint(len(pool), (16,))].to(device, dtype).div(127.5).sub(1)
        x = x.to(memory_format=torch.channels_last)
        latent = vae.encode(x).latents.float()
        spread, mean = torch.std_mean(latent, dim=(0, 2, 3))
        noisy = latent + 0.1 * torch.randn_like(latent)
        error = vae.decode(noisy.to(dtype)).sample.float() - x.float()
        loss = error.abs().mean() + error.pow(2).mean()
        loss = loss + 0.1 * (mean.pow(2).mean() + (spread - 1).pow(2).mean())
        loss.backward()
        shadow.step(spent)
        if step % 50 == 0:
            squared, absolute = error.detach().pow(2).mean(), error.detach().abs().mean()
            note(progress, f"step {step} mse {squared:.5f} l1 {absolute:.4f}")
    save(shadow.averages["vae"], SHARED / "vae")


# ---------------------------------------------------------------------------- the denoisers


@torch.no_grad()
def encode_many(vae: AutoencoderTiny, pictures: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    """Latents, float32 (n, C, h, w), of uint8 pictures."""
    vae = vae.to(device, dtype).to(memory_format=torch.channels_last)
    batches = torch.split(pictures, 256)
    return torch.cat(
        [vae.encode(b.to(device, dtype).div(127.5).sub(1)).latents.float() for b in batches]
    )


class Pool:
    """Scenes of one size as latents on the training device, more with every call of `grow`."""

    def __init__(
        self, vae: AutoencoderTiny, device: str, dtype: torch.dtype, most: int, size: int
    ) -> None:
        self.vae, self.device, self.dtype, self.most = vae, device, dtype, most
        self.size, self.share = size, scenes.CANVAS**2 / size**2
        self.rng = random.Random(time.time_ns())
        self.captions: list[str] = []
        self.latents = self.labels = torch.empty(0, device=device)

    def grow(self) -> None:
        """4096 scenes at first, then 512 at a time; fewer of larger ones."""
        count = int(self.share * (512 if self.captions else 4096))
        drawn, pixels = draw_many(self.rng, count, self.size)
        if len(self.captions) + len(drawn) > self.most:
            return
        self.captions += [str(scene.caption) for scene in drawn]
        latents = encode_many(self.vae, pixels, self.device, self.dtype)
        labels = torch.stack([layout.labels(scene, self.size) for scene in drawn]).to(self.device)
        if len(self.latents):
            latents = torch.cat([self.latents, latents])
            labels = torch.cat([self.labels, labels])
        self.latents, self.labels = latents, labels

    def sample(self, count: int) -> tuple[list[str], Tensor, Tensor]:
        """Captions, some dropped; latents (count, C, h, w); layout labels (count, 3, cells)."""
        chosen = torch.randint(len(self.captions), (count,))
        said = [
            self.captions[i] if self.rng.random() > UNCONDITIONAL else "" for i in chosen.tolist()
        ]
        return said, self.latents[chosen], self.labels[chosen]


class Middle:
    """Keeps what the middle block of a denoiser put out last: `hidden`, (B, cells, width)."""

    def __init__(self, denoiser: PixArtTransformer2DModel) -> None:
        blocks = denoiser.transformer_blocks
        blocks[(len(blocks) - 1) // 2].register_forward_hook(self._keep)
        self.hidden = torch.empty(0)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.hidden = output


TURNS = (("cloud", "edge"), ("cloud", "device"))
"""The denoisers that an update trains: the small ones, that learn faster, take turns."""


def corruption(count: int) -> Tensor:
    """Training timesteps: mostly where a scene takes shape, a tenth spread over all.

    On this schedule signal and noise are equal at t = 260 and only 1 % of the signal's power is
    left at 670: what lies above teaches no more than the background.
    """
    spread = torch.rand(count)
    crowded = torch.sigmoid(torch.randn(count) - 0.6)
    chosen = torch.where(torch.rand(count) < 0.1, spread, crowded)
    return (chosen * TRAIN_STEPS).long().clamp(max=TRAIN_STEPS - 1)


def train_denoisers(
    minutes: float, device: str, dtype: torch.dtype, resume: bool, batch: int, pictures: int
) -> None:
    """v-prediction of all three denoisers and the text encoder, on one stream of scenes."""
    tokenizer = build_tokenizer()
    if resume:
        text: Any = T5EncoderModel.from_pretrained(SHARED / "text_encoder", dtype=torch.float32)
        denoisers: dict[str, Any] = {
            tier: PixArtTransformer2DModel.from_pretrained(
                ROOT / tier / "transformer", dtype=torch.float32
            )
            for tier in TIERS
        }
    else:
        text = build_text_encoder(len(tokenizer))
        denoisers = {tier: build_denoiser(WIDTHS[tier]) for tier in TIERS}
    heads = {tier: layout.Head(denoisers[tier].inner_dim) for tier in TIERS}
    modules = {"text": text, **denoisers, **{f"head of {tier}": heads[tier] for tier in TIERS}}
    for module in modules.values():
        module.to(device)
    shadow = Shadow(modules, dtype, rate=1.5e-3)
    middles = {tier: Middle(denoisers[tier]) for tier in TIERS}
    vae = AutoencoderTiny.from_pretrained(SHARED / "vae", dtype=torch.float32)
    pools = {size: Pool(vae, device, dtype, pictures, size) for size in SIZES}
    alphas = build_scheduler().alphas_cumprod.to(device)
    losses: dict[str, float] = {}
    saved = time.monotonic()
    for step, (spent, progress) in enumerate(budget(minutes, "denoisers")):
        if step % 100 == 0:
            for pool in pools.values():
                pool.grow()
        (pool,) = random.choices(list(pools.values()), list(SIZES.values()))
        said, x0, wanted = pool.sample(int(batch * pool.share))
        tokens = tokenizer(said, padding=True, return_tensors="pt").to(device)
        t = corruption(len(x0)).to(device)
        alpha = alphas[t][:, None, None, None]
        signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
        noise = torch.randn_like(x0)
        noisy = (signal * x0 + sigma * noise).to(dtype)
        target = signal * noise - sigma * x0
        hidden = text(tokens.input_ids, tokens.attention_mask)[0]
        total = torch.zeros((), device=device)
        for tier in TURNS[step % len(TURNS)]:
            predicted = denoisers[tier](
                noisy,
                encoder_hidden_states=hidden,
                encoder_attention_mask=tokens.attention_mask,
                timestep=t,
                return_dict=False,
            )[0]
            loss = F.mse_loss(predicted.float(), target)
            losses[tier] = losses.get(tier, 1.0) * 0.98 + 0.02 * loss.item()
            taught = heads[tier](middles[tier].hidden, wanted)
            total = total + loss + LAYOUT_WEIGHT * (1 - spent) * taught
        total.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        shadow.step(spent)
        if step % 50 == 0:
            note(progress, f"step {step} " + " ".join(f"{k} {v:.4f}" for k, v in losses.items()))
        if time.monotonic() - saved > 600:
            save_family(shadow.averages, tokenizer)
            saved = time.monotonic()
    save_family(shadow.averages, tokenizer)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("vae", "denoisers"))
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--resume", action="store_true", help="start from the saved weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--pictures", type=int, default=120_000, help="scenes drawn of a size")
    args = parser.parse_args(argv)
    torch.manual_seed(time.time_ns() % 2**31)
    common = (args.minutes, args.device, torch.bfloat16, args.resume)
    with float32_attention():
        if args.part == "vae":
            train_vae(*common)
        else:
            train_denoisers(*common, args.batch, args.pictures)


if __name__ == "__main__":
    main()
