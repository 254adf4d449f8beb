"""The theorem: a split trajectory is the unsplit one, and the unsplit one is the stock pipeline's.

Split at every hand-off step, through packet bytes, one model on both sides: bit for bit. Against
diffusers: relative L2 of the final latent at most BOUND, printed beside the effect of one unit in
the last place of the initial noise. Negative controls show that the bound means something.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PixArtSigmaPipeline
from torch import Tensor

from diffusion_edge.engine.run import begin, finish, run_last_span, run_span, run_steps
from diffusion_edge.families.base import Family
from diffusion_edge.families.card import load_card
from diffusion_edge.families.load import load_family
from diffusion_edge.packet import Packet, new_packet, read, write
from diffusion_edge.solver import SOLVERS
from diffusion_edge.types import ImageRequest, Plan

BOUND = 1e-5
CONTROL = 5 * BOUND
STEPS = 10
PROMPT = "a red circle on a white background"
STOCK: dict[str, Callable[[Any], Any]] = {
    "ddim": lambda config: DDIMScheduler.from_config(config, clip_sample=False),
    "euler": EulerDiscreteScheduler.from_config,
    "dpmpp-2m": lambda config: None,
}


@pytest.fixture(scope="module")
def family(tiny_family: Path) -> Family:
    return load_family(load_card(tiny_family), "cloud")


@pytest.fixture(scope="module")
def stock(tiny_family: Path) -> PixArtSigmaPipeline:
    pipeline = PixArtSigmaPipeline.from_pretrained(
        tiny_family / "cloud", dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def a_packet(family: Family, solver: str, plan: str = "", **changes: Any) -> Packet:
    request = ImageRequest(
        prompt=PROMPT,
        family="tiny",
        steps=STEPS,
        seed=7,
        solver=solver,
        guidance=4.0,
        width=16,
        height=16,
    )
    plan = plan or f"cloud:{STEPS}"
    return new_packet(replace(request, **changes), Plan.parse(plan), 0, family.latent_space)


def unsplit(family: Family, solver: str, **changes: Any) -> Tensor:
    return run_last_span(family, a_packet(family, solver, **changes))[0]


def relative(x: Tensor, reference: Tensor) -> float:
    return float(torch.linalg.vector_norm(x - reference) / torch.linalg.vector_norm(reference))


def split_at(
    family: Family, solver: str, cut: int, between: Callable[[Packet], Packet] = lambda p: p
) -> Tensor:
    """The final latent of a run that crosses as bytes at `cut`."""
    packet = a_packet(family, solver, f"cloud:{cut},cloud:{STEPS - cut}")
    data = write(run_span(family, packet, packet.plan.spans[0]))
    return run_last_span(family, between(read(data, family.latent_space)))[0]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_unsplit_equals_the_stock_pipeline(
    family: Family, stock: PixArtSigmaPipeline, solver: str, guidance: float
) -> None:
    scheduler = STOCK[solver](stock.scheduler.config) or stock.scheduler
    pipeline = PixArtSigmaPipeline(**(stock.components | {"scheduler": scheduler}))
    pipeline.set_progress_bar_config(disable=True)

    def run_stock(latents: Tensor | None) -> Tensor:
        output = pipeline(
            PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            height=16,
            width=16,
            use_resolution_binning=False,
            clean_caption=False,
            max_sequence_length=12,
            generator=torch.Generator().manual_seed(7),
            latents=latents,
            output_type="latent",
        )
        latent: Tensor = output.images
        return latent

    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(7))
    expected = run_stock(None)
    floor = relative(run_stock(torch.nextafter(noise, noise + 1)), expected)
    error = relative(unsplit(family, solver, guidance=guidance), expected)
    print(f"{solver} guidance {guidance}: error {error:.1e}, floor {floor:.1e}")
    assert error <= BOUND


@pytest.mark.parametrize("cut", range(1, STEPS))
@pytest.mark.parametrize("solver", SOLVERS)
def test_split_equals_unsplit_bit_for_bit(family: Family, solver: str, cut: int) -> None:
    assert torch.equal(split_at(family, solver, cut), unsplit(family, solver))


@pytest.mark.parametrize("solver", SOLVERS)
def test_two_cuts_equal_unsplit_bit_for_bit(family: Family, solver: str) -> None:
    packet = a_packet(family, solver, "cloud:3,cloud:4,cloud:3")
    for _ in range(2):
        done = run_span(family, packet, packet.plan.spans[0])
        packet = read(write(done), family.latent_space)
    assert torch.equal(run_last_span(family, packet)[0], unsplit(family, solver))


def test_control_a_dropped_history_is_seen(family: Family) -> None:
    def drop(packet: Packet) -> Packet:
        return replace(packet, history=tuple(torch.zeros_like(h) for h in packet.history))

    whole = unsplit(family, "dpmpp-2m")
    errors = [relative(split_at(family, "dpmpp-2m", cut, drop), whole) for cut in range(1, 9)]
    print(f"history dropped: {min(errors):.1e} to {max(errors):.1e}")
    assert min(errors) > CONTROL


@pytest.mark.parametrize("solver", SOLVERS)
def test_control_a_shifted_timestep_is_seen(family: Family, solver: str) -> None:
    packet = a_packet(family, solver)
    schedule = family.schedule(solver, STEPS)
    shifted = replace(schedule, timesteps=tuple(t - 1 for t in schedule.timesteps))
    trajectory = begin(family, packet)
    other = begin(family, replace(packet, schedule=shifted))
    assert torch.equal(other.latent, trajectory.latent)
    error = relative(
        run_steps(family, other, STEPS).latent, run_steps(family, trajectory, STEPS).latent
    )
    print(f"{solver} timestep shifted by one: {error:.1e}")
    assert error > CONTROL


@pytest.mark.parametrize("change", [{"prompt": "a blue circle on a white background"}, {"seed": 8}])
@pytest.mark.parametrize("solver", SOLVERS)
def test_control_another_prompt_or_seed_is_seen(
    family: Family, solver: str, change: dict[str, Any]
) -> None:
    error = relative(unsplit(family, solver, **change), unsplit(family, solver))
    print(f"{solver} {change}: {error:.1e}")
    assert error > CONTROL


def test_control_one_step_skipped_is_seen(family: Family) -> None:
    packet = a_packet(family, "ddim", "cloud:5,cloud:5")
    half = finish(packet, run_steps(family, begin(family, packet), 5))
    late = replace(half, position=6, plan=Plan.of((("cloud", 6), ("cloud", 4))).after_first())
    assert relative(run_last_span(family, late)[0], unsplit(family, "ddim")) > CONTROL


OTHER_PROCESS = """
import sys, torch
from pathlib import Path
from diffusion_edge.engine.run import run_last_span
from diffusion_edge.families.card import load_card
from diffusion_edge.families.load import load_family
from diffusion_edge.packet import read
torch.set_num_threads(1)
family = load_family(load_card(Path(sys.argv[1])), "cloud")
latent, _ = run_last_span(family, read(sys.stdin.buffer.read(), family.latent_space))
sys.stdout.buffer.write(latent.numpy().tobytes())
"""


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_second_half_in_another_process_is_the_same(
    family: Family, tiny_family: Path, solver: str
) -> None:
    packet = a_packet(family, solver, "cloud:6,cloud:4")
    data = write(run_span(family, packet, packet.plan.spans[0]))
    other = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OTHER_PROCESS, str(tiny_family)],
        input=data,
        capture_output=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert other.stdout == unsplit(family, solver).numpy().tobytes()
