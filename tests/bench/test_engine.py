"""`bench engine` on the tiny family: its arms, its JSON line, its page. Nothing here is timed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from diffusion_edge.bench import arms, isolated, report
from diffusion_edge.bench.isolated import Arm, relative
from diffusion_edge.bench.report import ENGINE_MARKS, NOT_MEASURED
from diffusion_edge.bench.stock import StockPipeline
from diffusion_edge.bench.timing import timed
from diffusion_edge.bench.workload import Asked, mixed
from diffusion_edge.commands.app import app
from diffusion_edge.errors import ConfigError, EdgeError
from diffusion_edge.families.card import FamilyCard, load_card
from diffusion_edge.families.load import load_family

ARMS = {
    "mixed": [
        arms.ONE_BY_ONE,
        arms.BY_WAITING,
        arms.IN_FLIGHT,
        arms.BATCHING_OFF,
        arms.TOGETHER_OFF,
        arms.LANES_OFF,
        arms.REPRODUCIBLE,
    ],
    "equal": [arms.ONE_BY_ONE, arms.BY_WAITING, arms.IN_FLIGHT, arms.TOGETHER_OFF],
    "alone": [arms.ONE_BY_ONE, arms.IN_FLIGHT],
}


def run(*more: str | Path, rounds: int = 1) -> Result:
    arguments = ("bench", "engine", *more, "--rounds", rounds, "--steps", "4")
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class Inside:
    """An arm without a process of its own, which would take seconds to start."""

    def __init__(self, name: str, card: FamilyCard, stage: str, threads: int) -> None:
        self.name = name
        self._closing = ExitStack()
        self._maker = self._closing.enter_context(arms.maker(name, card, stage, threads))

    def await_ready(self) -> None: ...

    def seconds(self, requests: Sequence[Asked]) -> float:
        return timed(lambda: self._maker.pictures(requests))()

    def latents(self, requests: Sequence[Asked]) -> list[Tensor]:
        return list(self._maker.latents(requests))

    def close(self) -> None:
        self._closing.close()


@pytest.mark.timeout(300)
def test_it_measures_all_arms_and_writes_between_the_marks(
    tiny_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them in processes, as all are in earnest."""

    def arm(name: str, *more: object) -> Arm | Inside:
        made = Arm if name in (arms.ONE_BY_ONE, arms.IN_FLIGHT) else Inside
        return made(name, *more)

    monkeypatch.setattr(isolated, "Arm", arm)
    page = tmp_path / "performance.md"
    page.write_text(f"# Before\n\n{ENGINE_MARKS[0]}\nold\n{ENGINE_MARKS[1]}\n\nafter\n")
    result = run(tiny_family, "--stage", "edge", "--page", page, rounds=2)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["stage"], found["pipeline"]) == ("edge", "PixArtSigmaPipeline")
    groups = {group["key"]: group["rows"] for group in found["groups"]}
    assert {key: [row["arm"] for row in groups[key]] for key in ARMS} == ARMS
    assert len(groups["solver"]) == 3
    for row in (row for each in groups.values() for row in each):
        assert row["precision"] == "float32"
        assert len(row["seconds"]) == 2
        assert 0 <= row["error"] <= 1e-5
    assert {"torch", "diffusers", "python"} <= found["versions"].keys()
    assert len(found["load_before"]) == len(found["load_after"]) == 3
    assert found["machine"]["torch_threads"] == torch.get_num_threads()
    assert all(target["ratio"] > 0 for target in found["targets"])
    text = page.read_text()
    assert text.startswith("# Before\n\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    for arm in (row["arm"] for each in groups.values() for row in each):
        assert f"| {arm} | float32 | " in text


def test_with_several_threads_there_is_a_stock_pipeline_on_each_core(tiny_family: Path) -> None:
    card = load_card(tiny_family)
    requests = mixed(card, 5, 4, 0)
    assert arms.names(2) == [*arms.names(1)[:2], arms.EACH_CORE, *arms.names(1)[2:]]
    before = torch.get_num_threads()
    try:
        with (
            arms.maker(arms.ONE_BY_ONE, card, "edge", 1) as one,
            arms.maker(arms.EACH_CORE, card, "edge", 2) as each,
        ):
            pairs = zip(one.latents(requests), each.latents(requests), strict=True)
            assert all(relative(x, y) <= 1e-5 for x, y in pairs)
            assert len(each.pictures(requests)) == 5
    finally:
        torch.set_num_threads(before)


def test_an_arm_whose_process_fails_says_so(tiny_family: Path) -> None:
    card = load_card(tiny_family)
    arm = Arm(arms.IN_FLIGHT, card, "no such stage", 1)
    try:
        with pytest.raises(ConfigError, match="no such stage"):
            arm.await_ready()
        with pytest.raises(EdgeError, match=r"the process of the arm .* ended"):
            arm.seconds([])
    finally:
        arm.close()


def test_an_arm_that_makes_other_images_stops_it(
    tiny_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(Inside):
        def latents(self, requests: Sequence[Asked]) -> list[Tensor]:
            *rest, last = super().latents(requests)
            return [*rest, last * 1.001 if self.name == arms.IN_FLIGHT else last]

    monkeypatch.setattr(isolated, "Arm", Other)
    monkeypatch.setattr(arms, "names", lambda threads: [arms.ONE_BY_ONE, arms.IN_FLIGHT])
    page = tmp_path / "performance.md"
    result = run(tiny_family, "--stage", "device", "--requests", "2", "--page", page)
    assert result.exit_code == 1
    assert f"the arm '{arms.IN_FLIGHT}' differs from the stock pipeline by 1.0e-03" in result.stderr
    assert "request 1, euler 4/5" in result.stderr
    assert "at most 1e-05" in result.stderr
    assert not page.exists()


def test_the_stock_pipeline_gives_the_order_of_the_requests(tiny_family: Path) -> None:
    """Also where it takes them by groups, here the first and the last together."""
    card = load_card(tiny_family)
    pipeline = StockPipeline(card, "device", load_family(card, "device").device)
    first, second = mixed(card, 2, 4, 0)
    asked = [first, second, replace(first, seed=9)]
    alone = pipeline.one_by_one(asked, "latent")
    waited = pipeline.by_waiting(asked, "latent")
    for x, y in zip(alone, waited, strict=True):
        assert relative(x, y) <= 1e-5
    assert relative(alone[0], alone[2]) > 1e-2


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--stage", "moon"), "has no stage model 'moon'"),
        (("--page", "nowhere/performance.md"), "there is no folder nowhere"),
    ],
)
def test_wrong_arguments_end_with_a_sentence(
    tiny_family: Path, more: tuple[str, ...], told: str
) -> None:
    result = run(tiny_family, *more)
    assert result.exit_code == 1
    assert told in result.stderr


def test_a_page_without_the_marks_is_told_before_the_work(
    tiny_family: Path, tmp_path: Path
) -> None:
    page = tmp_path / "performance.md"
    page.write_text("# Mine\n")
    result = run(tiny_family, "--page", page)
    assert result.exit_code == 1
    assert "lacks the lines" in result.stderr
    assert "equality" not in result.stderr


@pytest.mark.parametrize(
    ("ratio", "told"),
    [
        (None, NOT_MEASURED),
        (2.29, "not reached"),
        (2.3, "reached, the aim not"),
        (3.0, "reached, the aim too"),
    ],
)
def test_a_target_says_whether_it_is_reached(ratio: float | None, told: str) -> None:
    assert report.Target("throughput", 2.3, 3.0, ratio).reached == told


def test_seconds_have_a_unit_that_suits_them() -> None:
    assert [report.seconds(s) for s in (12.345, 0.0123, 0.000456)] == [
        "12.35 s",
        "12.3 ms",
        "456 µs",
    ]
    alone = report.Target("alone", 1.0, 1.25, 0.8, as_time=True)
    assert [alone.shown(v) for v in (1.0, 1.25, 0.8, None)] == [
        "1.00 of its time",
        "0.80 of its time",
        "1.25 of its time",
        NOT_MEASURED,
    ]
