"""The committed family: what a stock pipeline makes of it, and what it weighs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import PixArtSigmaPipeline

from diffusion_edge.engine.run import run_last_span
from diffusion_edge.families.card import load_card
from diffusion_edge.families.load import load_family
from diffusion_edge.packet import new_packet
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from stage_models.shapes import scenes

FOLDER = Path(__file__).parents[2] / "stage_models" / "shapes"
PROMPT = "a red circle on a white background"
MIB = 2**20


@pytest.mark.parametrize("stage", ["device", "edge", "cloud"])
def test_a_stock_pipeline_loads_each_folder_and_agrees(stage: str) -> None:
    """The call of the model card, against our engine: relative L2 at most 1e-5."""
    torch.set_num_threads(1)
    pipeline = PixArtSigmaPipeline.from_pretrained(
        FOLDER / stage, dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        PROMPT,
        num_inference_steps=6,
        guidance_scale=4.0,
        height=64,
        width=64,
        use_resolution_binning=False,
        clean_caption=False,
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images
    card = load_card(FOLDER)
    family = load_family(card, stage)
    request = ImageRequest(PROMPT, card.name, 6, 3, card.defaults.solver, 4.0, 64, 64)
    plan = Plan.parse(f"{stage}:6")
    latent, picture = run_last_span(family, new_packet(request, plan, 0, family.latent_space))
    error = torch.linalg.vector_norm(latent - expected) / torch.linalg.vector_norm(expected)
    print(f"{stage}: {float(error):.1e}")
    assert float(error) <= 1e-5
    assert (picture.width, picture.height) == (64, 64)


def test_the_stages_share_one_latent_space() -> None:
    card = load_card(FOLDER)
    spaces = {load_family(card, stage).latent_space for stage in card.stages}
    assert spaces == {card.latent_space()}


def test_the_card_lists_the_grammars_words() -> None:
    assert sorted(load_card(FOLDER).vocabulary) == sorted(scenes.WORDS)


def test_the_weights_are_safetensors_and_small() -> None:
    files = [
        p
        for p in FOLDER.rglob("*")
        if p.is_file() and not p.is_symlink() and not p.name.endswith(".part.jsonl")
    ]
    real = {p.resolve(): p.stat().st_size for p in files}
    weights = {p: size for p, size in real.items() if size > 100_000 and p.suffix != ".png"}
    assert weights
    assert {p.suffix for p in weights} == {".safetensors"}
    assert max(weights.values()) <= 14 * MIB
    assert sum(weights.values()) <= 40 * MIB
