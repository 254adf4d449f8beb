"""A family whose packets are large and whose models are nearly nothing: a few convolutions.

A picture of 1024x1024 has a latent of 4x512x512, 4 MiB in float32, and UniPC keeps three more.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from tests.tiny import tokenizer

LARGE = 1024
PACKET_BYTES = 4 * 4 * 512 * 512 * 4
STAGES = {"edge": 1, "cloud": 2}
CARD = """name: large
title: large latents and random weights for tests
architecture: sd
licence: Apache-2.0
stages:
  edge: {folder: edge, tier: edge}
  cloud: {folder: cloud, tier: cloud}
shared: cloud
sizes: {multiple_of: 8, least: 64, most: 1024}
latent_channels: 4
factor: 2
max_tokens: 12
defaults: {size: 64, steps: 3, guidance: 1.0, solver: unipc}
"""


def make_large_family(root: Path) -> Path:
    """Writes the family's folder to `root` and returns it."""
    torch.manual_seed(0)
    shared = {
        "vae": AutoencoderTiny(
            encoder_block_out_channels=(4, 4),
            decoder_block_out_channels=(4, 4),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            latent_channels=4,
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                vocab_size=12,
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=12,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=0,
            )
        ),
        "tokenizer": tokenizer(),
        "scheduler": PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True),
    }
    last = shared["vae"].decoder.layers[-1]
    with torch.no_grad():
        last.weight.mul_(10.0)
        last.bias.fill_(0.5)  # grey, where random weights give black
    for stage, layers in STAGES.items():
        StableDiffusionPipeline(
            **shared,
            unet=_convolutions(layers),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(root / stage)
    (root / "family.yaml").write_text(CARD)
    return root


def _convolutions(layers: int) -> UNet2DConditionModel:
    """Attention to the prompt over 512x512 cells would take more memory than there is."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        layers_per_block=layers,
        cross_attention_dim=8,
        norm_num_groups=2,
    )
