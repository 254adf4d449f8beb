"""The theorem, tested: `tests.theorem` says what it is and measures it."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion_edge.engine.run import Trajectory, begin, run_last_span, run_span, step
from diffusion_edge.engine.worker import Worker
from diffusion_edge.families.base import Family
from diffusion_edge.packet import Packet, write
from diffusion_edge.plan import Plan
from diffusion_edge.request import Done, Event
from diffusion_edge.schedule import SOLVERS
from tests.theorem import (
    ASKED,
    BOUND,
    CONTROL,
    Case,
    Model,
    a_packet,
    arrived,
    crossing,
    examine,
    models,
    one_ulp,
    relative,
    stock,
    unsplit,
)

FLOW = [solver for solver in SOLVERS if solver.startswith("flow-")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("theorem")


@pytest.fixture(scope="module")
def by_flow(root: Path) -> dict[bool, Model]:
    torch.set_num_threads(1)
    return models(root)


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_theorem(by_flow: dict[bool, Model], solver: str, asked: int) -> None:
    found = examine(by_flow[solver in FLOW], Case(solver, asked), apart=4 if asked > 10 else 1)
    print(found)
    assert found.unequal == 0
    assert found.error <= BOUND
    assert min(found.controls.values()) > CONTROL


@pytest.mark.parametrize("negative", ["", "a blue square"])
@pytest.mark.parametrize("guidance", [1.0, 3.0, 7.5])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_guidance_equals_the_stock_pipeline(
    by_flow: dict[bool, Model], solver: str, guidance: float, negative: str
) -> None:
    model, case = by_flow[solver in FLOW], Case(solver, 10, guidance, negative)
    expected, ours = stock(model, case), unsplit(model.family, case)
    error = relative(ours, expected)
    print(f"{case}: error {error:.1e}, floor {one_ulp(model, case, expected):.1e}")
    assert error <= BOUND
    data = crossing(model.family, case, 6)
    assert torch.equal(run_last_span(model.family, arrived(model.family, data))[0], ours)


def test_a_negative_prompt_and_the_guidance_are_seen(by_flow: dict[bool, Model]) -> None:
    family = by_flow[False].family
    plain = unsplit(family, Case("ddim", 10, 3.0))
    for other in (Case("ddim", 10, 3.0, "a blue square"), Case("ddim", 10, 3.1)):
        assert relative(unsplit(family, other), plain) > CONTROL


def test_a_skipped_step_is_seen(by_flow: dict[bool, Model]) -> None:
    family, case = by_flow[False].family, Case("ddim", 10)
    packet = arrived(family, crossing(family, case, 5))
    plan = Plan.of((("device", 6), ("device", 4))).after_first()
    assert plan is not None
    late = run_last_span(family, replace(packet, position=6, plan=plan))[0]
    assert relative(late, unsplit(family, case)) > CONTROL


# ---------------------------------------------------------------------------- in batches


def a_mixture(solvers: Sequence[str]) -> list[Case]:
    """Every solver with another number of steps and guidance value, negative prompts in turns."""
    return [
        Case(solver, 6 + k % 5, 2.0 + k, "a blue square" if k % 2 else "")
        for k, solver in enumerate(solvers)
    ]


@cache
def _prompt(index: int) -> str:
    return ("a red circle", "a blue square on a white background", "a circle")[index % 3]


@pytest.mark.parametrize("flow", [False, True], ids=["diffusion", "flow"])
def test_a_sample_in_a_mixed_batch_is_the_one_alone(by_flow: dict[bool, Model], flow: bool) -> None:
    """Samples of all solvers join one after the other and leave as they finish.

    A forward pass of another batch size rounds otherwise: equal to within BOUND, not bit for bit.
    """
    family = by_flow[flow].family
    cases = a_mixture(FLOW * 3 if flow else [s for s in SOLVERS if s not in FLOW])
    packets = [a_packet(family, case, prompt=_prompt(k), seed=k) for k, case in enumerate(cases)]
    errors = [
        relative(latent, run_last_span(family, packet)[0])
        for latent, packet in zip(in_flight(family, packets), packets, strict=True)
    ]
    print(f"batched against alone: {max(errors):.1e}")
    assert 0 < max(errors) <= BOUND


def in_flight(family: Family, packets: Sequence[Packet]) -> list[Tensor]:
    """Final latents; a packet joins at every step boundary until all are there."""
    waiting = [(k, begin(family, packet)) for k, packet in enumerate(packets)]
    running: list[tuple[int, Trajectory]] = []
    done: dict[int, Tensor] = {}
    while waiting or running:
        running += waiting[:1]
        del waiting[:1]
        stepped = step(family, [trajectory for _, trajectory in running])
        running = [(k, t) for (k, _), t in zip(running, stepped, strict=True)]
        done |= {k: t.latent for k, t in running if t.position == t.table.steps}
        running = [(k, t) for k, t in running if k not in done]
    return [done[k] for k in range(len(packets))]


# ---------------------------------------------------------------------------- through the engine


class Recording:
    """A way to the worker behind it, that keeps the packets that went over it."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.packets: list[bytes] = []

    async def run(self, stage: str, packet: bytes) -> AsyncIterator[Event]:
        self.packets.append(packet)
        async for event in self._worker.run(packet, self):
            yield event


@pytest.mark.usefixtures("brief_warm_up")
@pytest.mark.parametrize("solver", SOLVERS)
async def test_the_engine_hands_off_the_same_packet(
    by_flow: dict[bool, Model], solver: str
) -> None:
    """One model under two names: a packet for the same stage would stay there."""
    family, case = by_flow[solver in FLOW].family, Case(solver, 10)
    first = Worker(family, stage="device", tier="device")
    second = Worker(family, stage="edge", tier="edge")
    try:
        await first.warm_up(16, solver)
        await second.warm_up(16, solver)
        picture = run_last_span(family, a_packet(family, case))[1]
        for cut in range(1, case.steps):
            plan = Plan.of((("device", cut), ("edge", case.steps - cut)))
            packet = replace(a_packet(family, case), plan=plan)
            way = Recording(second)
            events = [event async for event in first.run(write(packet), way)]
            assert way.packets == [write(run_span(family, packet, plan.spans[0]))]
            assert isinstance(events[-1], Done)
            assert events[-1].picture == picture
    finally:
        first.close()
        second.close()


# ---------------------------------------------------------------------------- over processes

PROCESS = """
import struct, sys, torch
from pathlib import Path
from diffusion_edge.engine.run import run_last_span, run_span
from diffusion_edge.families.card import load_card
from diffusion_edge.families.load import load_family
from diffusion_edge.packet import read, write
torch.set_num_threads(1)
root, source, target = sys.argv[1], sys.stdin.buffer, sys.stdout.buffer
families = {flow: load_family(load_card(Path(root) / flow), "device") for flow in ("True", "False")}
while head := source.read(4):
    data = source.read(struct.unpack("<I", head)[0])
    (flow,) = [name for name, family in families.items() if family.latent_space.encode() in data]
    packet = read(data, families[flow].latent_space)
    if len(packet.plan.spans) > 1:
        result = write(run_span(families[flow], packet, packet.plan.spans[0]))
    else:
        result = run_last_span(families[flow], packet)[0].numpy().tobytes()
    target.write(struct.pack("<I", len(result)) + result)
"""


def in_a_process(root: Path, packets: Sequence[bytes]) -> list[bytes]:
    """Every packet's first span in another process: the next packet, or the final latent."""
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROCESS, str(root)],
        input=b"".join(struct.pack("<I", len(data)) + data for data in packets),
        capture_output=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    results, rest = [], child.stdout
    while rest:
        end = 4 + struct.unpack_from("<I", rest)[0]
        results.append(rest[4:end])
        rest = rest[end:]
    return results


def test_two_processes_make_the_unsplit_image(by_flow: dict[bool, Model], root: Path) -> None:
    """Every solver: the first steps in one process, the last ones in another."""
    cases = {solver: Case(solver, 10, 4.0, "a blue square") for solver in SOLVERS}
    fresh = [
        write(a_packet(by_flow[solver in FLOW].family, case, 6)) for solver, case in cases.items()
    ]
    final = in_a_process(root, in_a_process(root, fresh))
    for (solver, case), latent in zip(cases.items(), final, strict=True):
        assert latent == unsplit(by_flow[solver in FLOW].family, case).numpy().tobytes(), solver
