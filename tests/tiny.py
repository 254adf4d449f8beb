"""A tiny family with random weights, saved as a user's folder would be, for fast exact tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtTransformer2DModel,
    SchedulerMixin,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

WORDS = ("a", "red", "blue", "circle", "square", "on", "white", "black", "background")
STAGES = {"device": 1, "edge": 2, "cloud": 3}
CARD = """name: tiny
title: random weights for tests
architecture: pixart
licence: Apache-2.0
stages:
  device: {folder: device, tier: device}
  edge: {folder: edge, tier: edge}
  cloud: {folder: cloud, tier: cloud}
sizes: [16, 32]
latent_channels: 4
factor: 4
max_tokens: 12
defaults: {size: 16, steps: 10, guidance: 4.0, solver: %s}
vocabulary: [a, red, blue, circle, square, "on", white, black, background]
"""


def make_family(root: Path, prediction: str = "v_prediction", seed: int = 0) -> Path:
    """Writes the family's folder to `root` and returns it; prediction `flow` is flow matching."""
    torch.manual_seed(seed)
    parts = {
        "tokenizer": tokenizer(),
        "text_encoder": _text_encoder(),
        "vae": AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
            latent_channels=4,
        ),
        "scheduler": _scheduler(prediction),
    }
    for stage, layers in STAGES.items():
        for name, part in parts.items():
            part.save_pretrained(root / stage / name)
        _denoiser(layers).save_pretrained(root / stage / "transformer")
        scheduler = {"scheduler": ["diffusers", type(parts["scheduler"]).__name__]}
        (root / stage / "model_index.json").write_text(json.dumps(_INDEX | scheduler))
    solver = "flow-euler" if prediction == "flow" else "dpmpp-2m"
    (root / "family.yaml").write_text(CARD % solver)
    return root


_INDEX = {
    "_class_name": "PixArtSigmaPipeline",
    "_diffusers_version": "0.42.1",
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "PixArtTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
}


def _scheduler(prediction: str) -> SchedulerMixin:
    if prediction == "flow":
        return FlowMatchEulerDiscreteScheduler(shift=3.0)
    return DPMSolverMultistepScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type=prediction,
        timestep_spacing="trailing",
    )


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=12,
    )


def _text_encoder() -> T5EncoderModel:
    encoder = T5EncoderModel(
        T5Config(vocab_size=12, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    with torch.no_grad():
        encoder.shared.weight.normal_(std=3.0)
    return encoder.eval()


def _denoiser(layers: int) -> PixArtTransformer2DModel:
    """Rescaled until its output answers to the prompt and the timestep: see the controls."""
    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=layers,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=4,
        patch_size=1,
        use_additional_conditions=False,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adaln" in name or "caption_projection" in name or "attn2" in name:
                parameter.mul_(2.0)
        model.proj_out.weight.mul_(4.0)
        model.proj_out.bias.mul_(4.0)
    return model.eval()
