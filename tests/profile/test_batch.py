"""Pictures of many plans are those of each plan alone, made through packet bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_edge.engine import run
from diffusion_edge.engine.run import Trajectory, run_last_span, run_span
from diffusion_edge.families.base import Family
from diffusion_edge.families.card import FamilyCard, load_card
from diffusion_edge.packet import new_packet, read, write
from diffusion_edge.plan import Plan
from diffusion_edge.profile import batch
from diffusion_edge.request import ImageRequest, Picture

PROMPTS = ("a red circle on a white background", "a blue square on a black background")
PLANS = tuple(
    map(
        Plan.parse,
        (
            "cloud:4",
            "cloud:2,device:2",
            "device:1,cloud:3",
            "cloud:2,edge:1,device:1",
            "device:1,cloud:2,device:1",
            "cloud:3,device:3",
        ),
    )
)


@pytest.fixture(scope="module")
def card(tiny_family: Path) -> FamilyCard:
    return load_card(tiny_family)


@pytest.fixture(scope="module")
def stages(card: FamilyCard) -> dict[str, Family]:
    return batch.load_stages(card, ("cloud", "edge", "device"))


def requests(card: FamilyCard) -> list[ImageRequest]:
    return [card.request(prompt, 7 + i) for i, prompt in enumerate(PROMPTS)]


def alone(stages: dict[str, Family], request: ImageRequest, plan: Plan) -> Picture:
    """The same image made span by span, through packet bytes."""
    space = stages["cloud"].latent_space
    packet = new_packet(replace(request, steps=plan.steps), plan, 0, space)
    for span in plan.spans[:-1]:
        packet = read(write(run_span(stages[span.stage], packet, span)), space)
    return run_last_span(stages[plan.spans[-1].stage], packet)[1]


def farthest(first: Picture, second: Picture) -> int:
    return max(abs(a - b) for a, b in zip(first.rgb, second.rgb, strict=True))


def test_they_are_the_pictures_of_run_span(card: FamilyCard, stages: dict[str, Family]) -> None:
    found = list(batch.pictures(stages, requests(card), PLANS))
    assert sorted(str(plan) for plan, _ in found) == sorted(map(str, PLANS))
    for plan, pictures in found:
        for request, picture in zip(requests(card), pictures, strict=True):
            assert farthest(picture, alone(stages, request, plan)) <= 1
    assert len({pictures[0].rgb for _, pictures in found}) == len(PLANS)


def test_a_codec_acts_at_its_hop_alone(card: FamilyCard, stages: dict[str, Family]) -> None:
    exact = Plan.parse("cloud:2,device:2")
    carried = replace(exact, codecs=("int8",))
    found = {plan.codecs: p for plan, p in batch.pictures(stages, requests(card), [exact, carried])}
    assert found["exact",][0].rgb != found["int8",][0].rgb
    for request, picture in zip(requests(card), found["int8",], strict=True):
        assert farthest(picture, alone(stages, request, carried)) <= 1


def test_plans_come_by_steps_and_the_first_stage_alone_before_others(
    card: FamilyCard, stages: dict[str, Family]
) -> None:
    """Numbers of steps in the order in which they are given."""
    plans = [str(plan) for plan, _ in batch.pictures(stages, requests(card), PLANS)]
    assert (plans[0], plans[-1]) == ("cloud:4", "cloud:3,device:3")
    turned = [str(plan) for plan, _ in batch.pictures(stages, requests(card), PLANS[::-1])]
    assert turned == [plans[-1], *plans[:-1]]


def test_what_plans_share_is_run_once(
    card: FamilyCard, stages: dict[str, Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[str, int]] = []
    step = run.step

    def counted(family: Family, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        taken.append((family.stage, trajectories[0].position))
        return step(family, trajectories)

    monkeypatch.setattr(run, "step", counted)
    plans = [Plan.parse(p) for p in ("cloud:4", "cloud:2,edge:2", "cloud:2,edge:1,device:1")]
    list(batch.pictures(stages, requests(card), plans))
    assert len(taken) == 4 + 2 + 1
