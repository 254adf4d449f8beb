"""Every architecture with tiny random weights, saved as a user's folder, and its stock pipeline.

Each family has two denoisers of different size, `device` and `cloud`, that share one latent space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from diffusion_edge.families.flux import unpack
from tests.stock import STOCK
from tests.tiny import tokenizer

FACTOR = 4
CHANNELS = 4
LONG = 16
"""Tokens that a T5 reads."""


@dataclass(frozen=True)
class Tiny:
    """One architecture.

    pipeline: builds the stock pipeline with a denoiser of some layers and a seed for what stages
        share. solvers: of the stock pipeline, its default first. call: what its call is told
        beside the usual. guidance: values to try. negative: whether it takes a negative prompt.
    """

    architecture: str
    pipeline: Callable[[int, int], Any]
    solvers: tuple[str, ...]
    guidance: tuple[float, ...] = (1.0, 5.0)
    call: Mapping[str, Any] | None = None
    negative: bool = True
    max_tokens: int = 12

    def save(self, root: Path, seed: int = 0) -> Path:
        """The family's folder in `root`."""
        for stage, layers in (("device", 1), ("cloud", 2)):
            self.pipeline(layers, seed).save_pretrained(root / stage)
        (root / "family.yaml").write_text(
            CARD.format(
                architecture=self.architecture,
                channels=CHANNELS,
                factor=FACTOR,
                max_tokens=self.max_tokens,
                solver=self.solvers[0],
            )
        )
        return root


CARD = """name: tiny-{architecture}
title: random weights for tests
architecture: {architecture}
licence: Apache-2.0
stages:
  device: {{folder: device, tier: device}}
  cloud: {{folder: cloud, tier: cloud}}
latent_channels: {channels}
factor: {factor}
sizes: {{multiple_of: 8, least: 16, most: 64}}
max_tokens: {max_tokens}
defaults: {{size: 32, steps: 6, guidance: 5.0, solver: {solver}}}
"""


# ---------------------------------------------------------------------------- the stock pipelines


def stock(
    tiny: Tiny,
    pipeline: Any,
    solver: str,
    steps: int,
    prompts: Sequence[str],
    negatives: Sequence[str],
    seeds: Sequence[int],
    guidance: float,
    width: int,
    height: int,
    noise: Tensor | None = None,
) -> Tensor:
    """Final latents (B, C, h, w) of the stock pipeline with the scheduler of `solver`."""
    scheduler = STOCK[solver](pipeline.scheduler.config)
    with_solver = type(pipeline)(
        **(pipeline.components | {"scheduler": scheduler}), **_options(pipeline)
    )
    with_solver.set_progress_bar_config(disable=True)
    steering = {"negative_prompt": list(negatives)} if tiny.negative and any(negatives) else {}
    latents = with_solver(
        list(prompts),
        num_inference_steps=steps,
        guidance_scale=guidance,
        width=width,
        height=height,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        latents=noise,
        output_type="latent",
        **steering,
        **(tiny.call or {}),
    ).images
    if latents.ndim == 3:
        return unpack(latents, height // FACTOR // 2, width // FACTOR // 2)
    found: Tensor = latents
    return found


def _options(pipeline: Any) -> dict[str, bool]:
    """What a pipeline is told beside its parts."""
    told = ("requires_safety_checker", "force_zeros_for_empty_prompt")
    return {name: pipeline.config[name] for name in told if name in pipeline.config}


# ---------------------------------------------------------------------------- tiny parts


def _clip(kind: type, width: int, projection: int) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=12,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=12,
            projection_dim=projection,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=0,
        )
    ).eval()


def _t5(width: int) -> T5EncoderModel:
    encoder = T5EncoderModel(
        T5Config(vocab_size=12, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    with torch.no_grad():
        encoder.shared.weight.normal_(std=3.0)
    return encoder.eval()


def _vae(shift: float | None = None) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.5,
        shift_factor=shift,
    ).eval()


def _unet(layers: int, width: int, **added: Any) -> UNet2DConditionModel:
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=layers,
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=8,
        # The smallest distilled siblings have no middle.
        mid_block_type=None if layers == 1 else "UNetMidBlock2DCrossAttn",
        **added,
    )
    _amplify(model, ("attn2", "time_emb", "add_emb"), ("conv_out",), 4.0)
    return model.eval()


def _amplify(model: nn.Module, steered: Sequence[str], last: Sequence[str], by: float) -> None:
    """Makes a random model answer to prompt and timestep: the controls must be seen."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in steered):
                parameter.mul_(2.0)
            if any(part in name for part in last):
                parameter.mul_(by)


def _seeded(layers: int, seed: int, build: Callable[[], Any], denoiser: Callable[[], Any]) -> Any:
    """What stages share depends on `seed` alone, the denoiser also on its layers."""
    torch.manual_seed(seed)
    shared = build()
    torch.manual_seed(100 * layers + seed)
    return shared, denoiser()


NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _sd(layers: int, seed: int) -> StableDiffusionPipeline:
    (text, vae), unet = _seeded(
        layers, seed, lambda: (_clip(CLIPTextModel, 16, 16), _vae()), lambda: _unet(layers, 16)
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer(),
        unet=unet,
        scheduler=PNDMScheduler(
            **NOISE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(layers: int, seed: int) -> StableDiffusionXLPipeline:
    (text, text_2, vae), unet = _seeded(
        layers,
        seed,
        lambda: (
            _clip(CLIPTextModel, 16, 16),
            _clip(CLIPTextModelWithProjection, 16, 8),
            _vae(),
        ),
        lambda: _unet(
            layers,
            32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=8 + 6 * 8,
        ),
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text,
        text_encoder_2=text_2,
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**NOISE, steps_offset=1),
        add_watermarker=False,
    )


def _sd3(layers: int, seed: int) -> StableDiffusion3Pipeline:
    (text, text_2, text_3, vae), transformer = _seeded(
        layers,
        seed,
        lambda: (
            _clip(CLIPTextModelWithProjection, 8, 8),
            _clip(CLIPTextModelWithProjection, 8, 8),
            _t5(32),
            _vae(0.1),
        ),
        lambda: SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=layers,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
            # As the medium model of 3.5 has them.
            dual_attention_layers=(0,) if layers == 1 else (),
        ).eval(),
    )
    _amplify(transformer, ("context_embedder", "time_text_embed", "norm1"), ("proj_out",), 4.0)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer(),
        text_encoder_2=text_2,
        tokenizer_2=tokenizer(),
        text_encoder_3=text_3,
        tokenizer_3=tokenizer(),
    )


def _flux(layers: int, seed: int, guided: bool) -> FluxPipeline:
    (text, text_2, vae), transformer = _seeded(
        layers,
        seed,
        lambda: (_clip(CLIPTextModel, 16, 16), _t5(32), _vae(0.1)),
        lambda: FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * CHANNELS,
            num_layers=layers,
            num_single_layers=layers,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=guided,
            axes_dims_rope=(4, 4, 8),
        ).eval(),
    )
    _amplify(transformer, ("context_embedder",), ("proj_out",), 4.0)
    # A fixed shift, as schnell has it, is a dynamic one that does not depend on the size.
    shifts = {} if guided else {"base_shift": 0.0, "max_shift": 0.0}
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, time_shift_type="exponential", **shifts
        ),
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer(),
        text_encoder_2=text_2,
        tokenizer_2=tokenizer(),
    )


def _pixart(layers: int, seed: int) -> PixArtSigmaPipeline:
    (text, vae), transformer = _seeded(
        layers,
        seed,
        lambda: (_t5(16), _vae()),
        lambda: PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=layers,
            in_channels=CHANNELS,
            out_channels=2 * CHANNELS,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=8,
            patch_size=2,
            use_additional_conditions=False,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
        ).eval(),
    )
    _amplify(transformer, ("adaln", "caption_projection", "attn2"), (), 1.0)
    return PixArtSigmaPipeline(
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_schedule="linear"),
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer(),
    )


FLOW = ("flow-euler", "flow-dpmpp-2m", "flow-unipc")
LONG_T5 = {"max_sequence_length": LONG}
TINY: Mapping[str, Tiny] = {
    "sd": Tiny("sd", _sd, ("pndm", "dpmpp-2m", "euler", "ddim")),
    "sdxl": Tiny("sdxl", _sdxl, ("euler", "unipc", "ddim")),
    "sd3": Tiny("sd3", _sd3, FLOW, call=LONG_T5, max_tokens=LONG),
    "flux-dev": Tiny(
        "flux", lambda n, s: _flux(n, s, True), FLOW, (3.5,), LONG_T5, False, max_tokens=LONG
    ),
    "flux-schnell": Tiny(
        "flux", lambda n, s: _flux(n, s, False), FLOW, (0.0,), LONG_T5, False, max_tokens=LONG
    ),
    "pixart": Tiny(
        "pixart",
        _pixart,
        ("dpmpp-2m", "lms", "ddim"),
        call={"max_sequence_length": 12, "use_resolution_binning": False, "clean_caption": False},
    ),
}
