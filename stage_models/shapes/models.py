"""The networks of `shapes`: how they are built, and the folders that they are saved in."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    PixArtTransformer2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from stage_models.shapes import scenes

ROOT = Path(__file__).parent
SHARED = ROOT / "shared"
TIERS = ("device", "edge", "cloud")
LATENT_CHANNELS = 8
LATENT_SIZE = scenes.CANVAS // 8
TEXT_DIM = 128
MAX_TOKENS = 32
TRAIN_STEPS = 1000


@dataclass(frozen=True)
class Width:
    """A denoiser's size: `layers` blocks of `heads` heads of 32 channels."""

    heads: int
    layers: int


WIDTHS = {"device": Width(3, 4), "edge": Width(6, 4), "cloud": Width(8, 9)}
"""Block parameters go as layers x heads^2: 1 : 4 : 16."""


def build_vae() -> AutoencoderTiny:
    channels = (48,) * 4
    return AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=(1, 2, 3, 3),
        num_decoder_blocks=(3, 3, 2, 1),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=1.0,
    )


def build_preview() -> AutoencoderTiny:
    """A small decoder for the same latents, of the kind that is called TAESD; its encoder is idle
    and as small as can be."""
    return AutoencoderTiny(
        encoder_block_out_channels=(1,) * 4,
        decoder_block_out_channels=(20,) * 4,
        num_encoder_blocks=(0,) * 4,
        num_decoder_blocks=(2, 1, 0, 0),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=1.0,
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the grammar; any other word becomes `<unk>`."""
    vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *scenes.WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_TOKENS,
    )


def build_text_encoder(vocabulary: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=TEXT_DIM,
            d_kv=32,
            d_ff=4 * TEXT_DIM,
            num_layers=3,
            num_heads=4,
            relative_attention_max_distance=MAX_TOKENS,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )


def build_denoiser(width: Width) -> PixArtTransformer2DModel:
    model = PixArtTransformer2DModel(
        num_attention_heads=width.heads,
        attention_head_dim=32,
        num_layers=width.layers,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        cross_attention_dim=32 * width.heads,
        caption_channels=TEXT_DIM,
        sample_size=LATENT_SIZE,
        patch_size=1,
        use_additional_conditions=False,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    return model


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=TRAIN_STEPS,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )


# ---------------------------------------------------------------------------- saving


def save(module: Any, folder: Path) -> None:
    """Half precision on disk (relative rounding 5e-4), loaded as float32; at most 12 MB a file.

    Files are put in place whole, so that another process can read the folder at any time.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
        copy.deepcopy(module).half().save_pretrained(fresh, max_shard_size="12MB")
        path = Path(fresh) / "config.json"
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # where the weights were resumed from, on this machine
        path.write_text(json.dumps(config, indent=2) + "\n")
        folder.mkdir(exist_ok=True)
        for file in Path(fresh).iterdir():
            file.replace(folder / file.name)


def save_family(modules: Mapping[str, nn.Module], tokenizer: PreTrainedTokenizerFast) -> None:
    """Folders that a stock pipeline loads; what they share is stored once and linked.

    modules: a denoiser by tier, and the text encoder as `text` if it is among what has learned.
    The VAE is saved on its own.
    """
    tokenizer.save_pretrained(SHARED / "tokenizer")
    build_scheduler().save_pretrained(SHARED / "scheduler")
    if "text" in modules:
        save(modules["text"], SHARED / "text_encoder")
    for tier in [tier for tier in TIERS if tier in modules]:
        save(modules[tier], ROOT / tier / "transformer")
        for part in ("tokenizer", "text_encoder", "scheduler", "vae"):
            link = ROOT / tier / part
            if not link.is_symlink():
                link.symlink_to(Path("..") / "shared" / part)
        (ROOT / tier / "model_index.json").write_text(MODEL_INDEX)


MODEL_INDEX = """{
  "_class_name": "PixArtSigmaPipeline",
  "_diffusers_version": "0.42.1",
  "scheduler": ["diffusers", "DDIMScheduler"],
  "text_encoder": ["transformers", "T5EncoderModel"],
  "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
  "transformer": ["diffusers", "PixArtTransformer2DModel"],
  "vae": ["diffusers", "AutoencoderTiny"]
}
"""
