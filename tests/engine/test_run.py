from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion_edge.engine.run import begin, finish, initial_noise, run_span, run_steps, step
from diffusion_edge.errors import InvalidTensor, WrongPosition
from diffusion_edge.families.base import Conditioning, Family
from diffusion_edge.families.card import load_card
from diffusion_edge.families.load import load_family
from diffusion_edge.packet import Packet, new_packet
from diffusion_edge.plan import Plan, Span
from diffusion_edge.request import ImageRequest
from tests.fakes import FakeFamily


@pytest.fixture(scope="module")
def family(tiny_family: Path) -> Family:
    return load_family(load_card(tiny_family), "edge")


def a_packet(
    family: Family, solver: str = "ddim", guidance: float = 4.0, seed: int = 0, steps: int = 10
) -> Packet:
    prompt = "a blue square on a black background"
    request = ImageRequest(prompt, "tiny", steps, seed, solver, guidance, 16, 16)
    return new_packet(request, Plan.parse(f"tower:{steps}"), 0, family.latent_space)


def test_noise_is_the_generators_for_the_seed() -> None:
    expected = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(11))
    assert torch.equal(initial_noise((4, 4, 4), 11), expected)


def test_one_step_serves_trajectories_that_stand_anywhere(family: Family) -> None:
    """Solvers, step counts, positions and guidance values mixed in one batch: 1e-5."""
    packets = [
        a_packet(family, "ddim", 4.0, 1, 10),
        a_packet(family, "euler", 2.0, 2, 7),
        a_packet(family, "dpmpp-2m", 7.5, 3, 12),
    ]
    ahead = [run_steps(family, begin(family, p), n) for n, p in enumerate(packets)]
    together = step(family, ahead)
    for before, after in zip(ahead, together, strict=True):
        (alone,) = step(family, [before])
        assert after.position == before.position + 1
        assert len(after.history) == len(before.history)
        for mine, theirs in zip(
            (after.latent, *after.history), (alone.latent, *alone.history), strict=True
        ):
            assert torch.linalg.vector_norm(mine - theirs) <= 1e-5 * torch.linalg.vector_norm(
                theirs
            )


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "dpmpp-2m-sde"])
def test_a_step_is_taken_where_the_latent_lies(solver: str) -> None:
    """Torch's device without memory stands for a GPU: it mixes with the CPU's tensors as little.
    Tables and schedules lie on the CPU."""
    packet = replace(a_packet(FakeFamily("edge"), solver), width=16, height=16)  # type: ignore[arg-type]
    begun = begin(FakeFamily("edge"), packet)
    there = replace(
        begun,
        latent=begun.latent.to("meta"),
        history=tuple(tensor.to("meta") for tensor in begun.history),
    )

    def predict(latent: Tensor, timestep: Tensor, guidance: Tensor, c: Conditioning) -> Tensor:
        assert {latent.device.type, timestep.device.type, guidance.device.type} == {"meta"}
        return latent

    for after in step(FakeFamily("edge"), [there, there], predict):
        assert {tensor.device.type for tensor in (after.latent, *after.history)} == {"meta"}


def test_guidance_of_the_span_wins(family: Family) -> None:
    packet = a_packet(family, guidance=4.0)
    unguided = replace(packet, plan=Plan((Span("tower", 0, 10, guidance=1.0),), ()))
    assert begin(family, packet).guided
    assert not begin(family, unguided).guided


def test_guidance_of_zero_is_not_that_of_the_request(family: Family) -> None:
    """A model that takes guidance as an input is told zero."""
    packet = a_packet(family, guidance=4.0)
    packet = replace(packet, plan=Plan((Span("tower", 0, 10, guidance=0.0),), ()))
    assert begin(family, packet).guidance == 0.0
    told: list[float] = []
    fake = FakeFamily("edge")
    fake.guiding = "embedded"

    def predict(
        family: Family, latent: Tensor, timestep: Tensor, guidance: Tensor, c: Conditioning
    ) -> Tensor:
        told.extend(guidance.tolist())
        return latent

    batch = [begin(fake, replace(packet, guidance=value)) for value in (4.0, 7.0)]
    step(fake, batch, partial(predict, fake))
    assert told == [0.0, 0.0]


def test_a_latent_of_another_size_is_refused(family: Family) -> None:
    packet = replace(
        a_packet(family),
        latent=torch.zeros(1, 4, 8, 8),
        schedule=family.schedule("ddim", 10, 16, 16),
    )
    with pytest.raises(InvalidTensor, match=r"\(4, 4, 4\)"):
        begin(family, packet)


def test_spans_cannot_be_finished_early_or_twice(family: Family) -> None:
    packet = replace(a_packet(family), plan=Plan.parse("tower:4,hall:6"))
    with pytest.raises(WrongPosition):
        finish(packet, run_steps(family, begin(family, packet), 3))
    with pytest.raises(WrongPosition):
        run_span(family, packet, packet.plan.spans[1])


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "pndm"])
def test_a_fused_step_has_the_same_bits_and_writes_over_nothing_before_it(
    family: Family, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes the history in place: of a copy."""
    before = [run_steps(family, begin(family, a_packet(family, solver)), 2)]
    known = [t.clone() for t in (before[0].latent, *before[0].history)]
    (expected,) = step(family, before)
    monkeypatch.setattr("diffusion_edge.kernels.guided_step._is_fused", lambda x: True)
    (found,) = step(family, before)
    for mine, theirs in zip(
        (found.latent, *found.history, before[0].latent, *before[0].history),
        (expected.latent, *expected.history, *known),
        strict=True,
    ):
        assert torch.equal(mine, theirs)
