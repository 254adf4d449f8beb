"""The benchmark of the server: whole with the tiny family, and in its parts without a server."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from diffusion_edge.bench import serve, stock_server
from diffusion_edge.bench.open_loop import Sent
from diffusion_edge.bench.report import NOT_MEASURED, Machine
from diffusion_edge.bench.serve import OURS_OFF, STOCK, STOCK_EACH, Arm, Bench, Task
from diffusion_edge.bench.serve_report import (
    OURS,
    Loaded,
    Overhead,
    ServeReport,
    Sustained,
    Unloaded,
    page_lines,
    targets,
)
from diffusion_edge.bench.servers import running
from diffusion_edge.bench.workload import Asked
from diffusion_edge.commands.app import app
from diffusion_edge.config import read_settings
from diffusion_edge.errors import EdgeError, UnequalArm
from diffusion_edge.families.card import load_card
from tests.long import long


@pytest.mark.ray
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "arms",
    [[STOCK, OURS], pytest.param([STOCK, STOCK_EACH, OURS, OURS_OFF], marks=long)],
    ids=["two", "four"],
)
def test_the_whole_of_it(
    tiny_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arms: list[str]
) -> None:
    """A server for every arm, every part once, and nothing left behind."""
    monkeypatch.setattr(serve, "arms", lambda cores: arms)
    monkeypatch.setattr(serve, "PROBES", 1)
    monkeypatch.setattr(serve, "PAIRS", 1)
    page = tmp_path / "performance.md"
    before = set(psutil.Process().children(recursive=True))
    said = ("--rounds", "1", "--seconds", "1", "--steps", "4", "--page", str(page))
    result = CliRunner().invoke(app, ["bench", "serve", str(tiny_family), *said])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert [row["arm"] for row in found["unloaded"]] == arms
    assert all(load["failed"] == 0 for load in found["loads"])
    assert max(found["worst_levels"].values()) <= 1
    assert len(found["targets"]) == 3
    for arm in arms:
        assert page.read_text().count(f"| {arm} | float32 |") >= 3
    assert set(psutil.Process().children(recursive=True)) <= before


# ---------------------------------------------------------------------------- without servers


def test_with_several_cores_there_is_an_arm_that_uses_them_by_pipelines() -> None:
    assert serve.arms(1) == [STOCK, OURS, OURS_OFF]
    assert serve.arms(2) == [STOCK, STOCK_EACH, OURS, OURS_OFF]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of servers, none of which is started. A file is told by what stands in it."""
    told: list[list[str]] = []

    @contextmanager
    def started(module: str, arguments: list[str]) -> Iterator[str]:
        files = [Path(each).read_text() if each.endswith(".yaml") else each for each in arguments]
        told.append([module, *files])
        yield "http://127.0.0.1:1"

    monkeypatch.setattr(serve, "running", started)
    return told


def begun(name: str, family: Path) -> None:
    with asyncio.Runner() as runner, serve._server(name, a_task(family), runner, cores=3):
        pass


@pytest.mark.parametrize(("name", "replicas", "threads"), [(STOCK, 1, 3), (STOCK_EACH, 3, 1)])
def test_the_cores_are_divided_among_the_stock_pipelines(
    tiny_family: Path, started: list[list[str]], name: str, replicas: int, threads: int
) -> None:
    begun(name, tiny_family)
    ((_, family, stage, *options),) = started
    assert (family, stage) == (str(tiny_family), "cloud")
    said = dict(zip(options[::2], options[1::2], strict=True))
    assert (said["--replicas"], said["--threads"]) == (str(replicas), str(threads))
    application = stock_server.application(family, stage, replicas, threads)
    (pipelines,) = application._bound_deployment.init_args
    assert pipelines._bound_deployment.num_replicas == replicas
    assert pipelines._bound_deployment.init_args == (family, stage, threads)


@pytest.mark.parametrize(("name", "batching"), [(OURS, "in-flight"), (OURS_OFF, "off")])
def test_our_server_has_all_cores_and_emulates_nothing(
    tiny_family: Path, started: list[list[str]], name: str, batching: str
) -> None:
    begun(name, tiny_family)
    ((module, command, config),) = started
    assert (module, command) == ("diffusion_edge", "serve")
    settings = read_settings(json.loads(config)["applications"][0]["args"])
    stage = settings.stages["cloud"]
    assert (stage.model, stage.threads, stage.batching) == ("cloud", 3, batching)
    assert not settings.emulates


def a_task(family: Path, seconds: float = 0.05) -> Task:
    return Task(load_card(family), "cloud", steps=4, seconds=seconds, rounds=2, seed=0)


def a_bench(family: Path, runner: asyncio.Runner, seconds: float = 0.05) -> Bench:
    return Bench(a_task(family, seconds), runner, lambda line: None)


def grey(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def painting(name: str, level: int) -> Arm:
    async def ask(asked: Asked) -> bytes:
        return grey(level)

    return Arm(name, ask)


@pytest.mark.parametrize(("level", "equal"), [(100, True), (101, True), (102, False)])
def test_an_arm_that_makes_other_pictures_is_not_timed(
    tiny_family: Path, level: int, equal: bool
) -> None:
    with asyncio.Runner() as runner:
        bench = a_bench(tiny_family, runner)
        assert bench.levels(painting("stock", 100)) == 0
        if equal:
            assert bench.levels(painting("ours", level)) == level - 100
        else:
            with pytest.raises(UnequalArm, match=r"'ours' differs .* by 2 of 255"):
                bench.levels(painting("ours", level))


def test_all_arms_get_the_same_arrivals_and_failures_are_counted(tiny_family: Path) -> None:
    asked: dict[str, list[Asked]] = {"stock": [], "ours": []}

    def arm(name: str) -> Arm:
        async def ask(request: Asked) -> bytes | None:
            asked[name].append(request)
            return None if name == "ours" and request.seed == 0 else grey(0)

        return Arm(name, ask)

    with asyncio.Runner() as runner:
        bench = a_bench(tiny_family, runner)
        stock, ours = (
            serve.loaded(
                "bursty", name, 200.0, [bench.load(arm(name), "bursty", 200.0, i) for i in range(2)]
            )
            for name in asked
        )
    assert sorted(asked["stock"], key=str) == sorted(asked["ours"], key=str)
    assert len({request.solver for request in asked["stock"]}) > 1
    assert stock.sent == ours.sent
    assert (stock.failed, ours.failed) == (0, 2)  # one in each round
    assert len(stock.p95_by_round_s) == 2


def test_a_rate_with_failures_does_not_hold(tiny_family: Path) -> None:
    async def ask(asked: Asked) -> bytes | None:
        return None

    with asyncio.Runner() as runner:
        bench = a_bench(tiny_family, runner, seconds=0.1)
        stock = bench.search(painting("stock", 0), capacity=200.0, limit_s=30.0)
        ours = bench.search(Arm("ours", ask), capacity=200.0, limit_s=30.0)
    assert (stock.fails, ours.holds) == (None, None)  # neither end of the range was tried
    assert stock.holds == pytest.approx(200 * 3.0 / 10 ** (1 / 2**5))
    assert ours.fails == pytest.approx(200 * 0.3 * 10 ** (1 / 2**5))


def test_a_probe_that_sends_nothing_shows_nothing(tiny_family: Path) -> None:
    with asyncio.Runner() as runner:
        bench = a_bench(tiny_family, runner)
        search = bench.search(painting("stock", 0), capacity=1e-6, limit_s=30.0)
    assert (search.holds, search.fails) == (None, None)


def a_load(*latencies_s: float, failed: int = 0) -> list[Sent]:
    answered = [Sent(0.0, latency_s, True) for latency_s in latencies_s]
    return [*answered, *[Sent(0.0, 0.001, False)] * failed]


def test_a_rate_holds_while_one_in_twenty_is_late() -> None:
    assert serve.sustains(a_load(*[1.0] * 19, 5.0), 3.0)
    assert not serve.sustains(a_load(*[1.0] * 18, 5.0, 5.0), 3.0)
    assert not serve.sustains(a_load(*[1.0] * 18, 5.0), 3.0)
    assert not serve.sustains(a_load(3.0), 3.0)  # the limit itself is late
    assert not serve.sustains(a_load(*[1.0] * 100, failed=1), 3.0)


def test_a_failed_request_took_longer_than_any() -> None:
    """An arm that refuses half of its load is not the faster for it."""
    good, bad = [float(i) for i in range(1, 21)], [1.0] * 10
    whole = serve.loaded("poisson", "ours", 2.0, [a_load(*good), a_load(*good)])
    assert (whole.sent, whole.failed) == (40, 0)
    assert (whole.p50_s, whole.p95_s, whole.p95_by_round_s) == (10.0, 19.0, (19.0, 19.0))
    some = serve.loaded("poisson", "ours", 2.0, [a_load(*good), a_load(*good[:19], failed=1)])
    assert (some.sent, some.failed) == (40, 1)
    assert (some.p50_s, some.p95_s, some.p95_by_round_s) == (10.0, 19.0, (19.0, 19.0))
    half = serve.loaded("poisson", "ours", 2.0, [a_load(*bad, failed=15)])
    assert (half.sent, half.failed, half.p50_s, half.p95_s) == (25, 15, None, None)
    none = serve.loaded("poisson", "ours", 2.0, [a_load(failed=3), []])
    assert (none.sent, none.failed, none.p50_s, none.p95_by_round_s) == (3, 3, None, (None, None))


def test_the_tail_of_few_requests_is_not_told() -> None:
    few = serve.unloaded("ours", [1.0, 2.0, 6.0])
    assert (few.p50_s, few.p95_s, few.mean_s) == (2.0, None, 3.0)
    assert serve.unloaded("ours", [*[1.0] * 18, 3.0, 9.0]).p95_s == 3.0


def test_the_overhead_is_of_pairs() -> None:
    pairs = [(0.3, 0.1), (0.5, 0.4), (0.9, 0.5), (0.6, 0.1)]
    found = serve.overhead("ddim 4", pairs)
    assert found.served_s == pytest.approx(0.55)
    assert found.bare_s == pytest.approx(0.25)
    assert found.difference_s == pytest.approx(0.3)
    assert (found.lowest_s, found.highest_s) == (pytest.approx(0.1), pytest.approx(0.4))


def test_an_arm_that_is_lost_is_told_in_a_sentence(tiny_family: Path) -> None:
    async def ask(asked: Asked) -> bytes:
        raise httpx.ConnectError("refused")

    with asyncio.Runner() as runner:
        bench = a_bench(tiny_family, runner)
        with pytest.raises(UnequalArm, match="'ours' gave no picture"):
            bench.levels(Arm("ours", ask))
        assert not any(one.ok for one in bench.load(Arm("ours", ask), "poisson", 200.0, 0))


def test_a_server_that_does_not_start_says_why() -> None:
    with (
        pytest.raises(EdgeError, match=r"did not start; it said: .*no folder"),
        running("diffusion_edge", ["serve", "no folder at all.yaml"]),
    ):
        pass


def a_report() -> ServeReport:
    def loaded(kind: str, arm: str, p95_s: float | None) -> Loaded:
        return Loaded(kind, arm, 1.5, 60, 0, 0.4, p95_s, (p95_s,))

    return ServeReport(
        command="diffusion-edge bench serve",
        measured="2026-01-01",
        family="tiny",
        stage="cloud",
        mixed="ddim 4/3.5",
        machine=Machine("a CPU", 2, 2, 2, ""),
        versions={"torch": "2.13.0"},
        load_before=(0.0, 0.0, 0.0),
        load_after=(1.0, 1.0, 1.0),
        seconds=40,
        rounds=2,
        burst=4,
        worst_levels={STOCK: 0, OURS: 1},
        unloaded=(Unloaded(STOCK, 0.5, 0.7, 0.5), Unloaded(OURS, 0.5, 0.7, 0.5)),
        capacity_per_s=2.0,
        loads=tuple(
            loaded(kind, arm, p95_s)
            for kind in ("poisson", "bursty")
            for arm, p95_s in ((STOCK, 2.0), (OURS, 0.8))
        ),
        limit_s=1.5,
        sustained=(Sustained(STOCK, 1.0, 1.1), Sustained(OURS, 2.5, 2.6)),
        overhead=Overhead("ddim 4/3.5", 0.22, 0.20, 0.020, 0.018, 0.024),
    )


def test_targets_are_judged_against_one_stock_pipeline() -> None:
    p95, rate, overhead = targets(a_report())
    assert (p95.reached, rate.reached, overhead.reached) == (
        "reached, the aim not",
        "reached, the aim too",
        "reached, the aim not",
    )
    page = "\n".join(page_lines(a_report()))
    assert "| 0.50 of its time | 0.35 of its time | 0.40 of its time |" in page
    assert "| 30.0 ms | 15.0 ms | 20.0 ms | reached, the aim not |" in page
    assert "| diffusion-edge | float32 | 2.50/s | 2.60/s | 2.50 |" in page


def test_an_arm_without_an_answer_has_no_ratio() -> None:
    report = a_report()
    silent = tuple(replace(load, p95_s=None) if load.arm == OURS else load for load in report.loads)
    report = replace(report, loads=silent)
    assert targets(report)[0].reached == NOT_MEASURED
    assert "| - |" in "\n".join(page_lines(report))


@pytest.mark.parametrize(
    ("arm", "found"),
    [
        (STOCK, Sustained(STOCK, None, 0.32)),
        (STOCK, Sustained(STOCK, 2.9, None)),
        (OURS, Sustained(OURS, None, 0.32)),
        (OURS, Sustained(OURS, 2.9, None)),
        (OURS, Sustained(OURS, None, None)),
    ],
)
def test_a_rate_that_was_not_found_is_not_compared(arm: str, found: Sustained) -> None:
    """Where every probe held, or none: the end of the range is no result."""
    report = a_report()
    sustained = tuple(found if each.arm == arm else each for each in report.sustained)
    report = replace(report, sustained=sustained)
    rate = targets(report)[1]
    assert rate.reached == NOT_MEASURED
    holds, fails = (
        "-" if value is None else f"{value:.2f}/s"
        for value in (found.holds_per_s, found.fails_per_s)
    )
    assert f"| {arm} | float32 | {holds} | {fails} | - |" in list(page_lines(report))
