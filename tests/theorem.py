"""The theorem, measured: a split trajectory is the unsplit one, and that is the stock pipeline's.

    make theorem                         # the table: solver x steps, worst errors, controls
    python -m tests.theorem --page docs/theorem.md

On a tiny family with random weights, float32, batch 1. For every solver and number of steps:

- one cut, at every hand-off step, through packet bytes: the final latent equals the unsplit one;
- two cuts, at every pair of hand-off steps: the packet that leaves at the second cut has the same
  bytes as the one that leaves there without the first;
- against the stock diffusers pipeline with the same scheduler config: relative L2 of the final
  latent, beside the effect of one unit in the last place of the initial noise;
- controls, errors that must be seen: the solver's history dropped at a cut, timesteps off by one,
  another prompt, another seed. Each is the smallest found.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import PixArtSigmaPipeline
from torch import Tensor

from diffusion_edge.engine.run import begin, finish, run_last_span, run_span, step_noise
from diffusion_edge.engine.run import step as engine_step
from diffusion_edge.families.base import Family
from diffusion_edge.families.card import load_card
from diffusion_edge.families.load import load_family
from diffusion_edge.families.quiet import quiet_libraries
from diffusion_edge.markdown import between
from diffusion_edge.packet import Packet, new_packet, read, write
from diffusion_edge.plan import Plan
from diffusion_edge.request import ImageRequest
from diffusion_edge.schedule import SOLVERS, resolved_steps
from diffusion_edge.solver import history_length
from tests.stock import STOCK, random_source
from tests.tiny import make_family

BOUND = 1e-5
"""Relative L2 of the final latent against the stock pipeline."""
CONTROL = 5 * BOUND
ASKED = (4, 10, 25)
SEED = 7
STAGE = "device"
PROMPT = "a red circle on a white background"
NEGATIVE = "a blue square"


@dataclass(frozen=True)
class Case:
    """One solver, the number of steps it is asked for, and what steers the image."""

    solver: str
    asked: int
    guidance: float = 4.0
    negative: str = ""

    @property
    def steps(self) -> int:
        return resolved_steps(self.solver, self.asked)


@dataclass(frozen=True)
class Model:
    """A tiny family and the stock pipeline over the same folder."""

    family: Family
    pipeline: PixArtSigmaPipeline

    @classmethod
    def load(cls, root: Path) -> Model:
        pipeline = PixArtSigmaPipeline.from_pretrained(
            root / STAGE, dtype=torch.float32, local_files_only=True
        )
        pipeline.set_progress_bar_config(disable=True)
        return cls(load_family(load_card(root), STAGE), pipeline)


def relative(x: Tensor, reference: Tensor) -> float:
    """Relative L2 error."""
    return float(torch.linalg.vector_norm(x - reference) / torch.linalg.vector_norm(reference))


# ---------------------------------------------------------------------------- ours


def a_packet(family: Family, case: Case, *cuts: int, **changes: Any) -> Packet:
    """Before its first step, to be handed off at `cuts`."""
    ends = (0, *cuts, case.steps)
    plan = Plan.of(tuple((STAGE, b - a) for a, b in pairwise(ends)))
    request = ImageRequest(
        prompt=PROMPT,
        negative_prompt=case.negative,
        family="tiny",
        steps=case.steps,
        seed=SEED,
        solver=case.solver,
        guidance=case.guidance,
        width=16,
        height=16,
    )
    return new_packet(replace(request, **changes), plan, 0, family.latent_space)


def unsplit(family: Family, case: Case, **changes: Any) -> Tensor:
    return run_last_span(family, a_packet(family, case, **changes))[0]


def crossing(family: Family, case: Case, cut: int) -> bytes:
    """The packet as it leaves at `cut`."""
    packet = a_packet(family, case, cut)
    return write(run_span(family, packet, packet.plan.spans[0]))


def arrived(family: Family, data: bytes) -> Packet:
    return read(data, family.latent_space)


def later_crossings(family: Family, case: Case, cut: int, data: bytes) -> Iterator[bytes]:
    """From a packet that left at `cut`: as it leaves at every later step, cut a second time."""
    packet = arrived(family, data)
    trajectory = begin(family, packet)
    for second in range(cut + 1, case.steps):
        with torch.inference_mode():
            (trajectory,) = engine_step(family, [trajectory])
        onward = a_packet(family, case, cut, second).plan.after_first()
        assert onward is not None
        yield write(finish(replace(packet, plan=onward), trajectory))


# ---------------------------------------------------------------------------- the stock pipeline


def stock(model: Model, case: Case, latents: Tensor | None = None) -> Tensor:
    """The final latent of the stock pipeline, its solver fed our noise where it draws any."""
    scheduler = STOCK[case.solver](model.pipeline.scheduler.config)
    pipeline = PixArtSigmaPipeline(**(model.pipeline.components | {"scheduler": scheduler}))
    pipeline.set_progress_bar_config(disable=True)
    shape = (1, *model.family.latent_shape(16, 16))
    noises = iter(step_noise(shape, SEED, step) for step in range(case.steps))
    with ExitStack() as stack:
        source = random_source(scheduler)
        if source is not None:
            stack.enter_context(
                patch.object(source, "randn_tensor", lambda *args, **kwargs: next(noises))
            )
        output = pipeline(
            PROMPT,
            negative_prompt=case.negative,
            num_inference_steps=case.asked,
            guidance_scale=case.guidance,
            height=16,
            width=16,
            use_resolution_binning=False,
            clean_caption=False,
            max_sequence_length=12,
            generator=torch.Generator().manual_seed(SEED),
            latents=latents,
            output_type="latent",
        )
    latent: Tensor = output.images
    return latent


def one_ulp(model: Model, case: Case, expected: Tensor) -> float:
    """How far the stock pipeline goes when its initial noise changes in the last place."""
    shape = (1, *model.family.latent_shape(16, 16))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
    return relative(stock(model, case, torch.nextafter(noise, noise + 1)), expected)


# ---------------------------------------------------------------------------- controls


def controls(family: Family, case: Case, packets: Mapping[int, bytes]) -> dict[str, float]:
    """The smallest error of each kind of mistake. `packets`: those that left, by cut."""
    whole = unsplit(family, case)

    def smallest(change: Callable[[Packet], Packet], cuts: Mapping[int, bytes]) -> float:
        return min(
            relative(run_last_span(family, change(arrived(family, data)))[0], whole)
            for data in cuts.values()
        )

    found = {
        "timestep": smallest(_timesteps_off_by_one, packets),
        "prompt": smallest(lambda p: replace(p, prompt="a blue square on black"), packets),
        "seed": relative(unsplit(family, case, seed=SEED + 1), whole),
    }
    if history_length(case.solver):
        # All but LMS and PNDM take their last step, onto sigma 0, without history.
        last = case.steps - (case.solver not in ("lms", "pndm"))
        needed = {cut: data for cut, data in packets.items() if cut < last}
        found["history"] = smallest(_without_history, needed)
    return found


def _timesteps_off_by_one(packet: Packet) -> Packet:
    assert packet.schedule is not None
    shifted = tuple(t - 1 for t in packet.schedule.timesteps)
    return replace(packet, schedule=replace(packet.schedule, timesteps=shifted))


def _without_history(packet: Packet) -> Packet:
    return replace(packet, history=tuple(torch.zeros_like(h) for h in packet.history))


# ---------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Finding:
    """What holds for one case: cuts tried, those that were not bit for bit, errors, controls."""

    case: Case
    cuts: int
    unequal: int
    error: float
    floor: float
    controls: Mapping[str, float]


def examine(model: Model, case: Case, apart: int = 1) -> Finding:
    """apart: steps between the cuts at which mistakes are made; what must be equal is tried at all
    of them."""
    family = model.family
    whole = unsplit(family, case)
    packets = {cut: crossing(family, case, cut) for cut in range(1, case.steps)}
    equal = [
        torch.equal(run_last_span(family, arrived(family, data))[0], whole)
        for data in packets.values()
    ]
    for cut, data in packets.items():
        later = later_crossings(family, case, cut, data)
        equal += [again == packets[at] for at, again in enumerate(later, start=cut + 1)]
    expected = stock(model, case)
    return Finding(
        case=case,
        cuts=len(equal),
        unequal=equal.count(False),
        error=relative(whole, expected),
        floor=one_ulp(model, case, expected),
        controls=controls(family, case, {cut: packets[cut] for cut in list(packets)[::apart]}),
    )


def models(root: Path) -> dict[bool, Model]:
    """By whether it is one of flow matching; both written to `root`."""
    return {
        flow: Model.load(
            make_family(root / str(flow), "flow" if flow else "v_prediction", seed=int(flow))
        )
        for flow in (False, True)
    }


KINDS = ("timestep", "prompt", "seed", "history")
HEADS = ("solver", "steps", "cuts", "not bit for bit", "error", "floor", *KINDS)
MARKS = ("<!-- table: written by make theorem -->", "<!-- end of table -->")


def row(found: Finding) -> tuple[str, ...]:
    seen = [f"{found.controls[k]:.1e}" if k in found.controls else "-" for k in KINDS]
    counts = (found.case.asked, found.cuts, found.unequal)
    errors = (f"{found.error:.1e}", f"{found.floor:.1e}")
    return (f"`{found.case.solver}`", *map(str, counts), *errors, *seen)


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def where() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers"))
    today = datetime.datetime.now(datetime.UTC).date()
    return f"Python {platform.python_version()}, {libraries}, {platform.machine()}, {today}."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, help="write the table into this page, too")
    page = parser.parse_args().page
    torch.set_num_threads(1)
    quiet_libraries()
    lines = [line(HEADS), "|" + "---|" * len(HEADS)]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        by_flow = models(Path(folder))
        for solver in SOLVERS:
            for asked in ASKED:
                found = examine(by_flow[solver.startswith("flow-")], Case(solver, asked))
                lines.append(line(row(found)))
                print(lines[-1], flush=True)
    if page is not None:
        text = "\n".join([*lines, "", where()])
        page.write_text(between(page.read_text(), MARKS, text, page))


if __name__ == "__main__":
    main()
