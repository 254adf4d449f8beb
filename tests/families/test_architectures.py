"""Every architecture, from a folder as a user has it: the stock pipeline's result, split or not."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_edge.engine.run import begin, decode, run_last_span, run_span, run_steps, step
from diffusion_edge.errors import (
    ConfigError,
    NotOffered,
    UnsupportedSolver,
    WrongLatentSpace,
)
from diffusion_edge.families import pipeline
from diffusion_edge.families.base import Conditioning, Family
from diffusion_edge.families.card import architectures, load_card
from diffusion_edge.families.load import load_family
from diffusion_edge.families.pipeline import Loading, PipelineFamily
from diffusion_edge.packet import Packet, new_packet, read, take, write
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.schedule import resolved_steps
from tests.architectures import TINY, Tiny, stock
from tests.long import LONG
from tests.theorem import BOUND, CONTROL, _timesteps_off_by_one, _without_history, relative

ASKED = 6
SEED = 3
PROMPT = "a red circle on a white background"
OTHER = "a blue square"
SIZES = ((32, 32), (48, 32)) if LONG else ((48, 32),)
"""Batches and hand-offs to another model are tried with squares."""
EACH = [(name, solver) for name, tiny in TINY.items() for solver in tiny.solvers]


@dataclass(frozen=True)
class Model:
    tiny: Tiny
    root: Path
    pipeline: Any
    device: Family
    cloud: Family

    def family(self, stage: str) -> Family:
        return {"device": self.device, "cloud": self.cloud}[stage]

    def negatives(self) -> tuple[str, ...]:
        return ("", OTHER) if self.tiny.negative else ("",)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    torch.set_num_threads(1)
    found = {}
    for name, tiny in TINY.items():
        root = tiny.save(tmp_path_factory.mktemp(name))
        card, pipeline = load_card(root), tiny.pipeline(2, 0)
        stages = {stage: load_family(card, stage) for stage in card.stages}
        found[name] = Model(tiny, root, pipeline, **stages)
    return found


def a_packet(model: Model, solver: str, plan: str = "", **changes: Any) -> Packet:
    """Before its first step; `plan` is over ASKED steps, the cloud alone if empty."""
    steps = resolved_steps(solver, ASKED)
    request = ImageRequest(
        prompt=PROMPT,
        family="tiny",
        steps=steps,
        seed=SEED,
        solver=solver,
        guidance=model.tiny.guidance[-1],
        width=32,
        height=32,
    )
    spans = Plan.parse(plan) if plan else Plan.of((("cloud", steps),))
    return new_packet(replace(request, **changes), spans, 0, model.cloud.latent_space)


def carried_out(model: Model, packet: Packet) -> tuple[Tensor, list[bytes]]:
    """The final latent of all spans, and what crossed between them."""
    crossed: list[bytes] = []
    while len(packet.plan.spans) > 1:
        span = packet.plan.spans[0]
        crossed.append(write(run_span(model.family(span.stage), packet, span)))
        packet = take(crossed[-1], model.cloud.offer)
    return run_last_span(model.family(packet.plan.spans[0].stage), packet)[0], crossed


# ---------------------------------------------------------------------------- against the stock


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("name", "solver"), EACH)
def test_unsplit_it_equals_the_stock_pipeline(
    models: dict[str, Model], name: str, solver: str, size: tuple[int, int]
) -> None:
    model, (width, height) = models[name], size
    for guidance in model.tiny.guidance:
        for negative in model.negatives():
            packet = a_packet(
                model,
                solver,
                guidance=guidance,
                negative_prompt=negative,
                width=width,
                height=height,
            )
            expected = stock(
                model.tiny,
                model.pipeline,
                solver,
                ASKED,
                [PROMPT],
                [negative],
                [SEED],
                guidance,
                width,
                height,
            )
            error = relative(run_last_span(model.cloud, packet)[0], expected)
            print(f"{name} {solver} {size} guidance {guidance} {negative!r}: {error:.1e}")
            assert error <= BOUND


@pytest.mark.parametrize(("name", "solver"), EACH)
def test_two_prompts_in_a_batch_equal_the_stock_pipelines_batch(
    models: dict[str, Model], name: str, solver: str
) -> None:
    model, prompts, seeds = models[name], [PROMPT, OTHER], [SEED, SEED + 1]
    for guidance in model.tiny.guidance:
        trajectories = [
            begin(model.cloud, a_packet(model, solver, prompt=p, seed=s, guidance=guidance))
            for p, s in zip(prompts, seeds, strict=True)
        ]
        for _ in range(resolved_steps(solver, ASKED)):
            trajectories = step(model.cloud, trajectories)
        expected = stock(
            model.tiny, model.pipeline, solver, ASKED, prompts, ["", ""], seeds, guidance, 32, 32
        )
        assert relative(torch.cat([t.latent for t in trajectories]), expected) <= BOUND


@pytest.mark.parametrize("name", TINY)
def test_the_picture_is_the_stock_pipelines(models: dict[str, Model], name: str) -> None:
    """Within one of 255 levels."""
    model = models[name]
    latent, picture = run_last_span(model.cloud, a_packet(model, model.tiny.solvers[0]))
    vae = model.pipeline.vae
    with torch.no_grad():
        shift = vae.config.shift_factor or 0.0
        image = vae.decode(latent / vae.config.scaling_factor + shift, return_dict=False)[0]
    (expected,) = model.pipeline.image_processor.postprocess(image, output_type="pil")
    ours = np.frombuffer(picture.rgb, dtype=np.uint8).reshape(32, 32, 3).astype(int)
    assert np.abs(ours - np.asarray(expected)).max() <= 1
    assert ours.std() > 1


def test_sdxl_takes_an_empty_negative_prompt_as_the_model_was_trained(
    models: dict[str, Model], tmp_path: Path
) -> None:
    """Zeros or an encoded empty text, by `force_zeros_for_empty_prompt` of the stage's folder."""
    tiny, solver = TINY["sdxl"], "euler"
    found = {}
    for zeroed in (True, False):
        root = tiny.save(tmp_path / str(zeroed))
        index = root / "cloud" / "model_index.json"
        said = json.loads(index.read_text()) | {"force_zeros_for_empty_prompt": zeroed}
        index.write_text(json.dumps(said))
        packet = a_packet(models["sdxl"], solver)
        found[zeroed] = run_last_span(load_family(load_card(root), "cloud"), packet)[0]
        pipeline = tiny.pipeline(2, 0)
        pipeline.register_to_config(force_zeros_for_empty_prompt=zeroed)
        for negative in ("", OTHER):
            stage = load_family(load_card(root), "cloud")
            ours = run_last_span(stage, replace(packet, negative_prompt=negative))[0]
            expected = stock(
                tiny, pipeline, solver, ASKED, [PROMPT], [negative], [SEED], 5.0, 32, 32
            )
            assert relative(ours, expected) <= BOUND
    assert relative(found[True], found[False]) > CONTROL


def test_sdxl_has_zeros_where_its_folder_does_not_say(tmp_path: Path) -> None:
    root = TINY["sdxl"].save(tmp_path)
    index = root / "cloud" / "model_index.json"
    said = json.loads(index.read_text())
    said.pop("force_zeros_for_empty_prompt")
    index.write_text(json.dumps(said))
    encoded = load_family(load_card(root), "cloud").encode_text([PROMPT, ""]).tensors
    assert all(tensor[0].any() and not tensor[1].any() for tensor in encoded.values())


# ---------------------------------------------------------------------------- split


@pytest.mark.parametrize(("name", "solver"), EACH)
def test_split_at_every_step_it_is_the_unsplit_one(
    models: dict[str, Model], name: str, solver: str
) -> None:
    """Bit for bit, with guidance on and off; and packets stay small."""
    model, steps = models[name], resolved_steps(solver, ASKED)
    for guidance in model.tiny.guidance:
        for width, height in SIZES:
            changes = {"guidance": guidance, "width": width, "height": height}
            whole, _ = carried_out(model, a_packet(model, solver, **changes))
            for cut in range(1, steps):
                plan = f"cloud:{cut},cloud:{steps - cut}"
                split, crossed = carried_out(model, a_packet(model, solver, plan, **changes))
                assert torch.equal(split, whole)
                packet = read(crossed[0], model.cloud.latent_space)
                tensors = (1 + len(packet.history)) * 4 * whole.numel()
                assert len(crossed[0]) <= tensors + len(PROMPT.encode()) + 4096


@pytest.mark.parametrize("plan", ["device:2,cloud:4", "cloud:4,device:2"])
@pytest.mark.parametrize("name", TINY)
def test_two_denoisers_hand_off_in_both_orders(
    models: dict[str, Model], name: str, plan: str
) -> None:
    """Through bytes it is what one process makes that changes the denoiser in between."""
    model = models[name]
    solver = "dpmpp-2m" if "dpmpp-2m" in model.tiny.solvers else model.tiny.solvers[1]
    packet = a_packet(model, solver, plan)
    handed, _ = carried_out(model, packet)
    first, second = packet.plan.spans
    family = model.family(first.stage)
    before = run_steps(family, begin(family, packet), first.steps)
    after = begin(model.family(second.stage), packet)
    whole = run_steps(
        model.family(second.stage),
        replace(before, positive=after.positive, negative=after.negative),
        second.steps,
    )
    assert torch.equal(handed, whole.latent)
    for stage in ("device", "cloud"):
        alone, _ = carried_out(model, a_packet(model, solver, f"{stage}:{ASKED}"))
        assert relative(handed, alone) > CONTROL


@pytest.mark.parametrize("name", TINY)
def test_what_must_be_seen_is_seen(models: dict[str, Model], name: str) -> None:
    """The controls of the theorem: each error exceeds the bound at least fivefold."""
    found = mistakes(models[name])
    print(name, {k: f"{error:.1e}" for k, error in found.items()})
    assert min(found.values()) > CONTROL


def mistakes(model: Model) -> dict[str, float]:
    """The errors of a final latent when something is wrong after half of the steps."""
    solver = next((s for s in ("flow-unipc", "unipc") if s in model.tiny.solvers), "dpmpp-2m")
    whole, _ = carried_out(model, a_packet(model, solver))
    packet = a_packet(model, solver, f"cloud:3,cloud:{ASKED - 3}")
    left = run_span(model.cloud, packet, packet.plan.spans[0])
    wrong = {
        "history": _without_history(left),
        "timestep": _timesteps_off_by_one(left),
        "prompt": replace(left, prompt=OTHER),
        "seed": a_packet(model, solver, seed=SEED + 1),
    }
    if model.tiny.guidance[-1] > 1:
        wrong["guidance"] = replace(left, guidance=left.guidance + 0.5)
    return {k: relative(run_last_span(model.cloud, p)[0], whole) for k, p in wrong.items()}


def test_a_stage_may_have_a_guidance_of_its_own(models: dict[str, Model]) -> None:
    model = models["sd"]
    packet = a_packet(model, "ddim", "cloud:3,device:3")
    first, second = packet.plan.spans
    off = replace(packet.plan, spans=(first, replace(second, guidance=1.0)))
    handed, _ = carried_out(model, replace(packet, plan=off))
    left = run_span(model.cloud, packet, first)
    assert torch.equal(handed, run_last_span(model.device, replace(left, guidance=1.0))[0])
    assert relative(handed, run_last_span(model.device, left)[0]) > CONTROL


# ---------------------------------------------------------------------------- what is refused


def test_another_latent_space_is_refused(tmp_path: Path, models: dict[str, Model]) -> None:
    model = models["sd"]
    other = load_card(TINY["sd"].save(tmp_path, seed=1)).latent_space("cloud")
    packet = a_packet(model, "ddim", "cloud:3,device:3")
    data = write(run_span(model.cloud, packet, packet.plan.spans[0]))
    with pytest.raises(WrongLatentSpace, match="stages that share one VAE"):
        read(data, other)


@pytest.mark.parametrize("name", TINY)
def test_a_packet_can_ask_for_no_more_than_the_card_offers(
    models: dict[str, Model], name: str
) -> None:
    model = models[name]
    packet = a_packet(model, model.tiny.solvers[0])
    for changes in ({"width": 128}, {"width": 36}, {"solver": "heun"}):
        with pytest.raises(NotOffered):
            take(write(replace(packet, **changes)), model.cloud.offer)


@pytest.mark.parametrize(("name", "solver"), [("flux-dev", "ddim"), ("sd", "flow-euler")])
def test_a_solver_that_makes_no_sense_is_refused_with_those_that_do(
    models: dict[str, Model], name: str, solver: str
) -> None:
    family = models[name].cloud
    with pytest.raises(UnsupportedSolver, match="those that do: ") as caught:
        family.schedule(solver, 6, 32, 32)
    assert all(known in caught.value.message for known in TINY[name].solvers)


def test_a_folder_of_another_architecture_is_refused(models: dict[str, Model]) -> None:
    card = load_card(models["pixart"].root)
    wrong = card.model_copy(update={"architecture": "sd"})
    with pytest.raises(ConfigError, match="this architecture needs a CLIPTextModel"):
        load_family(wrong, "cloud")


def test_only_safetensors_are_loaded(tmp_path: Path) -> None:
    root = TINY["sd"].save(tmp_path)
    weights = root / "cloud" / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ConfigError, match=r"no safetensors weights in .*unet"):
        load_family(load_card(root), "cloud")


# ---------------------------------------------------------------------------- dtypes and devices


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_runs_with_latents_in_float32(models: dict[str, Model], name: str) -> None:
    model, solver = models[name], TINY[name].solvers[0]
    half = load_family(load_card(model.root), "cloud", Loading(dtype="bfloat16"))
    encoded = half.encode_text([PROMPT]).tensors.values()
    assert {t.dtype for t in encoded if t.is_floating_point()} == {torch.bfloat16}
    packet = a_packet(model, solver)
    start, wide = begin(half, packet), begin(model.cloud, packet)
    t, guidance = start.table.timesteps[:1], torch.tensor([start.guidance])
    ours = half.predict(start.latent, t, guidance, start.positive)
    expected = model.cloud.predict(wide.latent, t, guidance, wide.positive)
    assert ours.dtype == start.latent.dtype == torch.float32
    assert 1e-4 < relative(ours, expected) < 0.1
    latent, picture = run_last_span(half, packet)
    assert latent.dtype == torch.float32
    assert (picture.width, picture.height) == (32, 32)


@pytest.mark.parametrize("name", TINY)
def test_every_tensor_is_made_on_the_familys_device(
    models: dict[str, Model], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device `meta`, which computes nothing and does not mix with the CPU, as a GPU."""
    model, meta = models[name], torch.device("meta")
    loaded = load_family(load_card(model.root), "cloud")
    assert isinstance(loaded, PipelineFamily)
    encoded = loaded.encode_text([PROMPT, ""]).tensors
    family = replace(
        loaded,
        device=meta,
        parts={
            part: thing.to(meta) if isinstance(thing, torch.nn.Module) else thing
            for part, thing in loaded.parts.items()
        },
    )
    packet = a_packet(model, TINY[name].solvers[0])
    if name == "pixart":  # its text encoder asks for values of the mask, which meta has none of
        there = Conditioning({key: tensor.to(meta) for key, tensor in encoded.items()})
        monkeypatch.setattr(type(family), "encode_text", lambda self, prompts: there)
    trajectories = step(family, [begin(family, packet), begin(family, packet)])
    assert {t.latent.device for t in trajectories} == {meta}


def test_offload_needs_a_gpu(models: dict[str, Model]) -> None:
    with pytest.raises(ConfigError, match="there is no GPU"):
        load_family(load_card(models["sd"].root), "cloud", Loading(device="cpu", offload=True))


@pytest.mark.parametrize(("name", "solver"), [("sd3", "flow-euler"), ("pixart", "ddim")])
def test_offload_changes_nothing_but_the_place(
    models: dict[str, Model], name: str, solver: str
) -> None:
    """Its hooks, on a device that is at hand; each model is there when it is called."""
    model = models[name]
    loaded = load_family(load_card(model.root), "cloud")
    assert isinstance(loaded, PipelineFamily)
    held = [part for part in loaded.parts.values() if isinstance(part, torch.nn.Module)]
    pipeline.offload(held, torch.device("cpu"))
    assert all(hasattr(part, "_hf_hook") for part in held)
    packet = a_packet(model, solver)
    expected = run_last_span(model.cloud, packet)
    latent, picture = run_last_span(loaded, packet)
    assert torch.equal(latent, expected[0])
    assert picture == expected[1]


def test_a_prompt_is_read_by_a_denoiser_that_has_come_to_the_device(
    models: dict[str, Model],
) -> None:
    """PixArt's encoding ends in layers of the denoiser, which no call of it would bring there."""

    class Came:
        brought = 0

        def pre_forward(self, module: Any) -> None:
            self.brought += 1

    family = load_family(load_card(models["pixart"].root), "cloud")
    assert isinstance(family, PipelineFamily)
    family.denoiser._hf_hook = hook = Came()
    family.encode_text([PROMPT])
    assert hook.brought == 1


@pytest.mark.parametrize("name", TINY)
def test_a_prediction_can_be_trained(models: dict[str, Model], name: str) -> None:
    """Gradients reach every weight of the denoiser, those that read the prompt too."""
    model, solver = models[name], TINY[name].solvers[0]
    family = load_family(load_card(model.root), "cloud")
    assert isinstance(family, PipelineFamily)
    start = begin(family, a_packet(model, solver))
    weights = dict(family.denoiser.requires_grad_(True).named_parameters())
    output = family.predict(
        start.latent.clone(),
        start.table.timesteps[:1].clone(),
        torch.tensor([start.guidance]),
        family.encode_text([PROMPT]),
    )
    output.square().mean().backward()
    assert [key for key, weight in weights.items() if weight.grad is None] == []


# ---------------------------------------------------------------------------- the seam


def test_every_architecture_is_proved_here() -> None:
    assert {tiny.architecture for tiny in TINY.values()} == set(architectures())


def test_nothing_above_the_families_names_an_architecture() -> None:
    package = Path(__file__).parents[2] / "diffusion_edge"
    above = [p for p in package.rglob("*.py") if p.parent.name != "families"]
    names = [f"families.{name}" for name in architectures()]
    named = [(p, name) for p in above for name in names if name in p.read_text()]
    assert len(above) > 40
    assert not named


def test_decode_gives_one_picture_a_latent(models: dict[str, Model]) -> None:
    model = models["sdxl"]
    trajectory = begin(model.cloud, a_packet(model, "ddim", width=48))
    assert (decode(model.cloud, trajectory).width, decode(model.cloud, trajectory).height) == (
        48,
        32,
    )
