"""The theorem of re-planned runs: whenever the stage that holds an image is told another plan, the
latent is the one of a run that is not cut, bit for bit; and what comes too late changes nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_edge.engine.worker import Worker
from diffusion_edge.families.base import Family
from diffusion_edge.families.card import load_card
from diffusion_edge.families.load import load_family
from diffusion_edge.packet import new_packet, read, write
from diffusion_edge.plan import Plan
from diffusion_edge.request import Done, Event, ImageRequest
from diffusion_edge.sites.local import LocalTransport

pytestmark = pytest.mark.usefixtures("brief_warm_up")
STEPS = 6
ASKED = ImageRequest(
    prompt="a red circle on a white background",
    family="tiny",
    steps=STEPS,
    seed=7,
    solver="dpmpp-2m",
    guidance=4.0,
    width=16,
    height=16,
    request_id="r",
)


class Forgetting(LocalTransport):
    """Drops what the solver remembers: the control."""

    async def run(self, stage: str, packet: bytes) -> AsyncGenerator[Event, None]:
        told = read(packet, self._workers[stage]._family.latent_space)
        bare = replace(told, history=tuple(torch.zeros_like(h) for h in told.history))
        async with aclosing(super().run(stage, write(bare))) as events:
            async for event in events:
                yield event


@dataclass
class Sites:
    """Two stages that run one model. latents: that were decoded, where."""

    workers: dict[str, Worker]
    family: Family
    latents: list[tuple[str, Tensor]] = field(default_factory=list)

    def packet(self, plan: str) -> bytes:
        return write(new_packet(ASKED, Plan.parse(plan), 0, self.family.latent_space))

    async def run(
        self,
        plan: str,
        tells: dict[int, Callable[[], object]] | None = None,
        transport: type[LocalTransport] = LocalTransport,
    ) -> tuple[Tensor, Done]:
        """tells: by the number of a step on stage `a`, what is done before it counts as over."""
        self._on_step("a", dict(tells or {}))
        async with aclosing(
            self.workers["a"].run(self.packet(plan), transport(self.workers))
        ) as events:
            done = [event async for event in events][-1]
        assert isinstance(done, Done)
        return self.latents[-1][1], done

    def _on_step(self, name: str, tells: dict[int, Callable[[], object]]) -> None:
        count = 0

        def stepped(*_: Any) -> None:
            nonlocal count
            count += 1
            tells.pop(count, lambda: None)()

        self.workers[name]._parts.stepper._on_step = stepped


@pytest.fixture
async def sites(tiny_family: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sites]:
    card = load_card(tiny_family)
    families = {name: load_family(card, "device") for name in "ab"}
    workers = {n: Worker(families[n], stage=n, tier="device") for n in families}
    made = Sites(workers, families["a"])
    for name, family in families.items():
        await workers[name].warm_up(16, "ddim")
        _watch(name, family, made, monkeypatch)
    yield made
    for worker in workers.values():
        worker.close()


def _watch(name: str, family: Any, made: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = family.decode

    def decoding(latent: Tensor) -> Any:
        made.latents.append((name, latent))
        return decode(latent)

    monkeypatch.setattr(family, "decode", decoding)


async def test_told_at_any_step_it_is_the_run_that_is_not_cut(sites: Sites) -> None:
    """At the earliest boundary that is left, and at the last one."""
    whole, _ = await sites.run(f"a:{STEPS}")
    for at in range(1, STEPS):
        for stop in {at, STEPS - 1}:
            packet = sites.packet(f"a:{stop},b:{STEPS - stop}")
            taken: list[bool] = []
            tells = {at: lambda p=packet, t=taken: t.append(sites.workers["a"].replan(p))}
            latent, done = await sites.run(f"a:{STEPS}", tells)
            assert taken == [True]
            assert [(s.stage, s.start, s.stop) for s in done.spans] == [
                ("a", 0, stop),
                ("b", stop, STEPS),
            ]
            assert torch.equal(latent, whole)


async def test_a_hand_off_is_taken_back_and_one_is_added_behind(sites: Sites) -> None:
    whole, _ = await sites.run(f"a:{STEPS}")
    for plan in (f"a:{STEPS}", "a:3,b:2,a:1", "a:5,b:1"):
        packet = sites.packet(plan)
        tells = {2: lambda p=packet: sites.workers["a"].replan(p)}
        latent, done = await sites.run("a:3,b:3", tells)
        spans = [(s.stage, s.stop - s.start) for s in done.spans]
        assert ",".join(f"{name}:{steps}" for name, steps in spans) == plan
        assert torch.equal(latent, whole)


async def test_what_is_told_before_the_text_is_encoded_counts_too(sites: Sites) -> None:
    whole, _ = await sites.run(f"a:{STEPS}")
    worker = sites.workers["a"]
    events = worker.run(sites.packet(f"a:{STEPS}"), LocalTransport(sites.workers))
    async with aclosing(events):
        await anext(events)
        assert worker.replan(sites.packet("a:1,b:5"))
        done = [event async for event in events][-1]
    assert isinstance(done, Done)
    assert [span.stage for span in done.spans] == ["a", "b"]
    assert torch.equal(sites.latents[-1][1], whole)


async def test_the_control_without_the_solvers_history_is_another_picture(sites: Sites) -> None:
    whole, _ = await sites.run(f"a:{STEPS}")
    packet = sites.packet("a:4,b:2")
    tells = {3: lambda: sites.workers["a"].replan(packet)}
    latent, _ = await sites.run(f"a:{STEPS}", tells, Forgetting)
    error = torch.linalg.vector_norm(latent - whole) / torch.linalg.vector_norm(whole)
    assert float(error) > 5e-5


@pytest.mark.parametrize(
    "plan",
    ["a:2,b:4", "b:3,a:3", "a:4@2,b:2", "a:5,b:2", "a:4,b:1"],
    ids=["passed", "elsewhere", "other guidance", "longer", "shorter"],
)
async def test_what_does_not_fit_is_refused_and_changes_nothing(sites: Sites, plan: str) -> None:
    whole, _ = await sites.run(f"a:{STEPS}")
    steps = Plan.parse(plan).steps
    asked = replace(ASKED, steps=steps)
    packet = write(new_packet(asked, Plan.parse(plan), 0, sites.family.latent_space))
    taken: list[bool] = []
    tells = {3: lambda: taken.append(sites.workers["a"].replan(packet))}
    latent, done = await sites.run(f"a:{STEPS}", tells)
    assert (taken, len(done.spans)) == ([False], 1)
    assert torch.equal(latent, whole)


async def test_nobody_goes_by_the_plan_of_another_image(sites: Sites) -> None:
    packet = sites.packet("a:4,b:2")
    other = write(replace(read(packet, sites.family.latent_space), request_id="other"))
    taken: list[bool] = []
    _, done = await sites.run(
        f"a:{STEPS}", {2: lambda: taken.append(sites.workers["a"].replan(other))}
    )
    assert (taken, len(done.spans)) == ([False], 1)
    assert not sites.workers["a"].replan(packet)  # it has left
