"""What is recorded for policies that choose again, against its definition."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from diffusion_edge.engine import run
from diffusion_edge.families.card import load_card
from diffusion_edge.plan import Plan
from diffusion_edge.profile import batch, measure, signals
from diffusion_edge.profile.measure import Task
from diffusion_edge.profile.metric import load_metric
from diffusion_edge.routing.signals import Recording, Signals

PROMPTS = ("a red circle", "a red square", "a blue circle")


def a_task(folder: Path, plans: tuple[str, ...] = ("device:3", "cloud:4")) -> Task:
    card = load_card(folder)
    card = card.model_copy(update={"defaults": card.defaults.model_copy(update={"steps": 4})})
    told = tuple(Plan.parse(plan) for plan in plans)
    return Task(card, "ab" * 16, load_metric("distance"), PROMPTS, "here", told, seed=7)


def test_the_change_of_an_output_is_relative_to_the_one_before() -> None:
    before = torch.tensor([[1.0, -1.0], [2.0, 2.0], [0.0, 0.0]])
    now = torch.tensor([[1.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    assert signals.changes(before, now).tolist() == [1.0, 0.25, 0.0]


def test_every_model_alone_with_what_its_pictures_score(tiny_family: Path) -> None:
    """The reference is compared with itself in as many steps, so it scores 1."""
    told: list[int] = []
    task = a_task(tiny_family)
    found = signals.record(task, told.append)
    assert sum(told) == len(PROMPTS) * len(task.plans)
    assert [(row.model, row.steps, len(row.scores)) for row in found.rows] == [
        ("device", 3, 3),
        ("cloud", 4, 3),
    ]
    device, cloud = found.rows
    assert cloud.scores == (1.0,) * 3
    assert max(device.scores) < 1.0
    assert all(change > 0 for row in found.rows for each in row.changes for change in each)
    assert (found.seed, found.weights, found.pictures) == (7, "ab" * 16, 3)


def test_changes_are_those_of_the_outputs_that_make_the_picture(tiny_family: Path) -> None:
    """By the outputs of a run of one picture, step by step."""
    task = a_task(tiny_family, ("cloud:4",))
    (row,) = signals.record(task, lambda _: None).rows
    (family,) = batch.load_stages(task.card, ["cloud"]).values()
    plan = Plan.parse("cloud:4")
    asked = replace(task.card.request(PROMPTS[1], 8), steps=4)
    trajectories, outputs = batch.begun(family, [asked], plan), []
    for _ in range(4):
        outputs.append(run.output(family, trajectories))
        stepped = run.step(family, trajectories)
        trajectories = run.advance(trajectories, outputs[-1])
        assert torch.equal(stepped[0].latent, trajectories[0].latent)
    wanted = [
        float((now - before).abs().mean() / before.abs().mean())
        for before, now in pairwise(outputs)
    ]
    assert row.changes[1] == pytest.approx(wanted, rel=1e-3)


def test_prompts_have_the_same_pictures_whatever_their_batch(
    tiny_family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size in (2, 32):
        monkeypatch.setattr(signals, "BATCH", size)
        found.append(signals.record(a_task(tiny_family), lambda _: None))
    for some, others in zip(found[0].rows, found[1].rows, strict=True):
        assert some.scores == pytest.approx(others.scores, abs=1e-3)
        for mine, theirs in zip(some.changes, others.changes, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-3)


def test_every_stage_alone_in_every_number_of_steps(tiny_family: Path) -> None:
    task = measure.alone(a_task(tiny_family), [2])
    assert sorted(map(str, task.plans)) == [
        f"{name}:{steps}" for name in ("cloud", "device", "edge") for steps in (2, 4)
    ]


# ---------------------------------------------------------------------------- the file


def a_row(model: str, steps: int, pictures: int = 2) -> Recording:
    return Recording(
        model=model,
        steps=steps,
        scores=(0.5,) * pictures,
        changes=((0.1,) * (steps - 1),) * pictures,
    )


def a_file(*rows: Recording) -> Signals:
    return Signals(
        family="tiny", metric="distance", size=16, seed=0, prompts="here", weights="", rows=rows
    )


def test_a_row_is_found_by_model_and_nearest_number_of_steps() -> None:
    known = a_file(a_row("cloud", 10), a_row("cloud", 20), a_row("device", 20))
    for model, steps, found in (("cloud", 20, 20), ("cloud", 12, 10), ("device", 4, 20)):
        row = known.row(model, steps)
        assert row is not None
        assert (row.model, row.steps) == (model, found)
    assert known.row("edge", 20) is None


def test_what_is_no_recording_is_refused() -> None:
    with pytest.raises(ValidationError, match="3 steps have 2 changes"):
        Recording(model="cloud", steps=3, scores=(0.5,), changes=((0.1,),))
    with pytest.raises(ValidationError, match="2 scores, but changes of 1"):
        Recording(model="cloud", steps=2, scores=(0.5, 0.6), changes=((0.1,),))
    with pytest.raises(ValidationError, match="more pictures than others"):
        a_file(a_row("cloud", 10), a_row("device", 10, pictures=3))
