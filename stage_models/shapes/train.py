"""Train the `shapes` family: an autoencoder, a text encoder, three denoisers.

    python -m stage_models.shapes.train vae --minutes 20
    python -m stage_models.shapes.train preview --minutes 4     # a small decoder beside it
    python -m stage_models.shapes.train cloud --minutes 100     # and the text encoder
    python -m stage_models.shapes.train small --minutes 100     # edge and device, taught by cloud
    python -m stage_models.shapes.train refine --minutes 20     # the autoencoder once more
    python -m stage_models.shapes.train decoder --minutes 40    # its decoder alone

`refine` leaves latents where denoisers know them, and `decoder` as they are. `--resume` goes on
from the saved weights. The budget is wall-clock time and the learning rate is annealed over it, so
that the recipe ends well on any machine. `small` takes up the teacher and the text encoder anew
whenever they have been saved, so it may run beside `cloud`, each on one core (`OMP_NUM_THREADS=1`).
`--device cuda` uses a GPU. On a CPU, `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000` in
the environment keeps glibc from giving memory back to the kernel between operations. The design and
what was measured for it stand in the model card, README.md.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, PixArtTransformer2DModel
from rich.progress import Progress
from torch import Tensor, nn
from transformers import T5EncoderModel

from stage_models.shapes import layout
from stage_models.shapes.data import (
    SIZES,
    Pictures,
    Pool,
    Sentence,
    corruption,
    pixel_weights,
    share,
)
from stage_models.shapes.models import (
    ROOT,
    SHARED,
    WIDTHS,
    build_denoiser,
    build_preview,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_vae,
    save,
    save_family,
)
from stage_models.shapes.optimise import Shadow, budget, float32_attention, note

LATENT_NOISE = 0.25
"""Most deviation of the noise that a latent gets before it is decoded, in training."""

LAYOUT_WEIGHT = 0.1
"""Of the auxiliary loss (see `layout`) beside the velocity's, at the start; it falls to 0.

Trained alone for 300 updates, `edge` with it predicts the velocity better by 7 % at t = 600, where
the layout is decided, as well at 300, and worse by 2 % at 150, where outlines are drawn.
"""

LAYOUT_WEIGHT_LATER = 0.06
"""The same for weights that go on: their heads begin anew and have little left to teach."""

GROW_EVERY = 40
"""Updates after which there are new scenes: about one for every two that are taken."""

TAUGHT = 0.75
"""Share of the teacher's velocity in what the small denoisers aim at."""

NESTED = 0.5
"""Share of pictures with a ring in or around something that the decoder alone is trained on."""

SAVE_EVERY_S = 300.0

Part = Literal["vae", "refine", "decoder", "preview"]
"""The autoencoder; the same, once denoisers know its latents; its decoder alone; a small decoder
beside it."""
LATER = ("refine", "decoder")
"""What goes on from weights that are good already."""


@dataclass(frozen=True)
class Task:
    """What the command line says of a training. batch: pictures of the smallest size an update."""

    minutes: float
    device: str
    resume: bool
    batch: int
    pictures: int
    rate: float
    dtype: torch.dtype


def quick_dtype(device: str) -> torch.dtype:
    """bfloat16 where the machine computes in it; a CPU that only emulates it takes half a minute
    for an update that float32 makes in eight seconds."""
    known = torch.cpu.get_capabilities()
    computes = known.get("amx_bf16") or known.get("avx512_bf16")
    return torch.bfloat16 if device != "cpu" or computes else torch.float32


# ---------------------------------------------------------------------------- the autoencoder


def train_autoencoder(task: Task, part: Part) -> None:
    """L1 + L2 on pictures, of which every other one is in any colours; for LATER, three of four.

    Latents are held to mean 0 and deviation 1 a channel, so that they need no scaling factor, and
    get noise before they are decoded, so that the decoder forgives a denoiser's small errors.
    `refine` holds the latents of the family's own colours to what denoisers know; `decoder` and
    `preview`, a small one, learn to decode latents as they are.
    """
    vae = build_vae()
    if task.resume or part != "vae":
        vae = AutoencoderTiny.from_pretrained(SHARED / "vae", dtype=torch.float32)
    known = copy.deepcopy(vae).to(task.device, task.dtype).requires_grad_(False)
    learner = vae
    if part == "preview":
        learner = build_preview()
        if task.resume:
            learner = AutoencoderTiny.from_pretrained(SHARED / "preview", dtype=torch.float32)
    encoder = learner if part != "preview" else known
    if part == "decoder":
        vae.encoder.requires_grad_(False)
    learner.to(task.device, memory_format=torch.channels_last)
    shadow = Shadow({part: learner}, task.dtype, rate=3e-4 if part in LATER else 1e-3)
    folder = SHARED / ("preview" if part == "preview" else "vae")
    rng = random.Random()
    recolours = (False, True, True, True) if part in LATER else (False, True)
    kinds = [(size, recolour) for recolour in recolours for size in SIZES]
    share_nested = NESTED if part == "decoder" else 0.0
    pools = [
        Pictures(rng, size, int(4096 * share(size)), recolour, share_nested)
        for size, recolour in kinds
    ]
    smaller = 3 if part == "decoder" else 1  # times as many of 64 pixels, where it still fails
    turns = [pool for pool in pools for _ in range(smaller if pool.size == min(SIZES) else 1)]
    saved = time.monotonic()
    for step, (spent, progress) in enumerate(budget(task.minutes, part)):
        pool = turns[step % len(turns)]
        count = int(16 * share(pool.size))
        if step % 16 < len(turns):
            pool.renew(8 * count)
        x = pool.sample(count).to(task.device, task.dtype).div(127.5).sub(1)
        x = x.to(memory_format=torch.channels_last)
        latent = encoder.encode(x).latents.float()
        noise = LATENT_NOISE * torch.rand(count, 1, 1, 1, device=task.device)
        noisy = latent + noise * torch.randn_like(latent)
        error = learner.decode(noisy.to(task.dtype)).sample.float() - x.float()
        loss = ((error.abs() + error.pow(2)) * pixel_weights(x.float())).mean()
        if part == "vae":
            spread, mean = torch.std_mean(latent, dim=(0, 2, 3))
            loss = loss + 0.1 * (mean.pow(2).mean() + (spread - 1).pow(2).mean())
        if part == "refine" and not pool.recolour:
            loss = loss + F.mse_loss(latent, known.encode(x).latents.float())
        loss.backward()
        shadow.step(spent)
        if step % 100 < len(turns):
            kind = f"{pool.size}{' in any colours' if pool.recolour else ''}"
            squared, absolute = error.detach().pow(2).mean(), error.detach().abs().mean()
            note(progress, f"step {step} of {kind} mse {squared:.5f} l1 {absolute:.4f}")
        if time.monotonic() - saved > SAVE_EVERY_S:
            save(shadow.averages[part], folder)
            saved = time.monotonic()
    save(shadow.averages[part], folder)


# ---------------------------------------------------------------------------- the denoisers


class Middle:
    """Keeps what the middle block of a denoiser put out last: `hidden`, (B, cells, width)."""

    def __init__(self, denoiser: PixArtTransformer2DModel) -> None:
        blocks = denoiser.transformer_blocks
        blocks[(len(blocks) - 1) // 2].register_forward_hook(self._keep)
        self.hidden = torch.empty(0)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.hidden = output


@dataclass(frozen=True)
class Said:
    """Sentences as tokens, int64 (B, words), with their mask: each is `share` (B, 1, 1) on the way
    from `tokens` to `others`."""

    tokens: Tensor
    others: Tensor
    share: Tensor
    mask: Tensor

    def encoded(self, text: Any) -> Tensor:
        """By the text encoder, (B, words, TEXT_DIM); words on the way are mixed before it."""
        words = text.get_input_embeddings()
        embedded = torch.lerp(words(self.tokens), words(self.others), self.share)
        hidden: Tensor = text(inputs_embeds=embedded, attention_mask=self.mask)[0]
        return hidden


@dataclass(frozen=True)
class Batch:
    """Noisy latents of one size at timesteps `t`, the velocity that is true of them, what their
    captions say, and their layout labels."""

    noisy: Tensor
    t: Tensor
    velocity: Tensor
    said: Said
    labels: Tensor


class Stream:
    """Batches of all sizes in turn, of scenes that are drawn on the fly."""

    def __init__(self, task: Task) -> None:
        vae = AutoencoderTiny.from_pretrained(SHARED / "vae", dtype=torch.float32)
        self.task = task
        self.tokenizer = build_tokenizer()
        self.pools = [Pool(vae, task.device, task.dtype, task.pictures, size) for size in SIZES]
        self.alphas = build_scheduler().alphas_cumprod.to(task.device)

    def batch(self, step: int) -> Batch:
        pool = self.pools[step % len(self.pools)]
        if step % GROW_EVERY < len(self.pools):
            pool.grow()
        said, x0, labels = pool.sample(self.task.batch)
        t = corruption(len(x0), pool.size).to(self.task.device)
        alpha = self.alphas[t][:, None, None, None]
        signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
        noise = torch.randn_like(x0)
        noisy = (signal * x0 + sigma * noise).to(self.task.dtype)
        return Batch(noisy, t, signal * noise - sigma * x0, self._tokens(said), labels)

    def _tokens(self, sentences: Sequence[Sentence]) -> Said:
        kinds = [s.said for s in sentences], [s.other for s in sentences]
        first, second = (
            self.tokenizer(k, padding=True, return_tensors="pt").to(self.task.device) for k in kinds
        )
        share = torch.tensor([s.share for s in sentences], device=self.task.device)
        way = share.to(self.task.dtype)[:, None, None]
        return Said(first.input_ids, second.input_ids, way, first.attention_mask)


def velocity(denoiser: PixArtTransformer2DModel, hidden: Tensor, batch: Batch) -> Tensor:
    """What the denoiser says, float32; hidden: the captions' encoding."""
    said: Tensor = denoiser(
        batch.noisy,
        encoder_hidden_states=hidden,
        encoder_attention_mask=batch.said.mask,
        timestep=batch.t,
        return_dict=False,
    )[0]
    return said.float()


class Denoisers:
    """Denoisers of some tiers that learn together from one stream, with their layout heads."""

    def __init__(self, task: Task, tiers: Sequence[str], others: Mapping[str, nn.Module]) -> None:
        self.denoisers = {tier: load_denoiser(tier, task) for tier in tiers}
        self.heads = {tier: layout.Head(self.denoisers[tier].inner_dim) for tier in tiers}
        heads = {f"head of {tier}": head for tier, head in self.heads.items()}
        modules = {**others, **self.denoisers, **heads}
        for module in modules.values():
            module.to(task.device)
        self.shadow = Shadow(modules, task.dtype, task.rate)
        self.middles = {tier: Middle(self.denoisers[tier]) for tier in tiers}
        self.layout = LAYOUT_WEIGHT_LATER if task.resume else LAYOUT_WEIGHT
        self.losses = dict.fromkeys(tiers, 1.0)

    def learn(self, hidden: Tensor, batch: Batch, aim: Tensor, spent: float) -> None:
        """One update; `aim` is the velocity to be predicted."""
        total = torch.zeros((), device=aim.device)
        for tier, denoiser in self.denoisers.items():
            loss = F.mse_loss(velocity(denoiser, hidden, batch), aim)
            self.losses[tier] = self.losses[tier] * 0.98 + 0.02 * loss.item()
            taught = self.heads[tier](self.middles[tier].hidden, batch.labels)
            total = total + loss + self.layout * (1 - spent) * taught
        total.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.shadow.step(spent)

    def tell(self, step: int, progress: Progress) -> None:
        if step % 50 == 0:
            told = " ".join(f"{tier} {loss:.4f}" for tier, loss in self.losses.items())
            note(progress, f"step {step} {told}")


def load_denoiser(tier: str, task: Task) -> PixArtTransformer2DModel:
    if not task.resume:
        return build_denoiser(WIDTHS[tier])
    folder = ROOT / tier / "transformer"
    return PixArtTransformer2DModel.from_pretrained(folder, dtype=torch.float32)


def train_cloud(task: Task) -> None:
    """v-prediction of `cloud` and the text encoder."""
    stream = Stream(task)
    text: Any = build_text_encoder(len(stream.tokenizer))
    if task.resume:
        text = T5EncoderModel.from_pretrained(SHARED / "text_encoder", dtype=torch.float32)
    learners = Denoisers(task, ["cloud"], {"text": text})
    saved = time.monotonic()
    for step, (spent, progress) in enumerate(budget(task.minutes, "cloud")):
        batch = stream.batch(step)
        hidden = batch.said.encoded(text)
        learners.learn(hidden, batch, batch.velocity, spent)
        learners.tell(step, progress)
        if time.monotonic() - saved > SAVE_EVERY_S:
            save_family(learners.shadow.averages, stream.tokenizer)
            saved = time.monotonic()
    save_family(learners.shadow.averages, stream.tokenizer)


class Teacher:
    """The saved `cloud` and text encoder, read again whenever they have been saved anew."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.seen = 0.0
        self.refresh()

    def refresh(self) -> None:
        written = max(file.stat().st_mtime for file in _files(ROOT / "cloud" / "transformer"))
        if written > self.seen:
            where = {"dtype": self.task.dtype}
            folder = ROOT / "cloud" / "transformer"
            self.cloud = PixArtTransformer2DModel.from_pretrained(folder, **where)
            self.text: Any = T5EncoderModel.from_pretrained(SHARED / "text_encoder", **where)
            for module in (self.cloud, self.text):
                module.to(self.task.device).eval().requires_grad_(False)
            self.seen = written

    @torch.no_grad()
    def teach(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The captions' encoding, and what the small ones are to predict: the teacher's velocity,
        which is less noisy than the true one, with some of the true one, which is not mistaken."""
        hidden = batch.said.encoded(self.text)
        said = velocity(self.cloud, hidden, batch)
        return hidden, torch.lerp(batch.velocity, said, TAUGHT)


def _files(folder: Path) -> list[Path]:
    return list(folder.glob("*.safetensors"))


def train_small(task: Task) -> None:
    """`edge` and `device`, taught by the saved `cloud`."""
    stream, teacher = Stream(task), Teacher(task)
    learners = Denoisers(task, ["edge", "device"], {})
    saved = time.monotonic()
    for step, (spent, progress) in enumerate(budget(task.minutes, "small")):
        batch = stream.batch(step)
        hidden, aim = teacher.teach(batch)
        learners.learn(hidden, batch, aim, spent)
        learners.tell(step, progress)
        if time.monotonic() - saved > SAVE_EVERY_S:
            save_family(learners.shadow.averages, stream.tokenizer)
            teacher.refresh()
            saved = time.monotonic()
    save_family(learners.shadow.averages, stream.tokenizer)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("vae", "refine", "decoder", "preview", "cloud", "small"))
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--resume", action="store_true", help="start from the saved weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--pictures", type=int, default=120_000, help="scenes drawn of a size")
    parser.add_argument("--rate", type=float, help="of denoisers: 1.5e-3, or 6e-4 with --resume")
    args = parser.parse_args(argv)
    rate = args.rate or (6e-4 if args.resume else 1.5e-3)
    dtype = quick_dtype(args.device)
    task = Task(args.minutes, args.device, args.resume, args.batch, args.pictures, rate, dtype)
    torch.manual_seed(time.time_ns() % 2**31)
    with float32_attention():
        match args.part:
            case "cloud":
                train_cloud(task)
            case "small":
                train_small(task)
            case part:
                train_autoencoder(task, part)


if __name__ == "__main__":
    main()
