"""`diffusion-edge profile` and `plots` from end to end, on the tiny family."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from diffusion_edge.commands.app import app
from diffusion_edge.errors import InvalidRequest
from diffusion_edge.families.card import load_card
from diffusion_edge.plan import Plan
from diffusion_edge.profile import bounds, grid, measure, metric, picks, plots
from diffusion_edge.profile.fit import fit
from diffusion_edge.request import Picture
from diffusion_edge.routing.losses import Model, StageCurve
from diffusion_edge.routing.quality import QualityRow, QualityTable, SizeQuality
from diffusion_edge.routing.signals import Signals

PROMPTS = [
    f"a {c} {s} on a white background" for c in ("red", "blue") for s in ("circle", "square")
]
PLANS = len(grid.plans(("device", "edge", "cloud"), 4))


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture
def folder(tiny_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny family with 4 steps by default, prompts beside it, batches of two."""
    quickly(monkeypatch)
    return made(tiny_family, tmp_path)


def quickly(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(measure, "BATCH", 2)
    patch.setattr(bounds, "DRAWS", 10)
    patch.setattr(picks, "DEADLINES", 2)
    patch.setattr(picks, "FLOORS", (0.9, 0.98))


def made(tiny_family: Path, where: Path) -> Path:
    (where / "prompts.txt").write_text("\n".join(["", *PROMPTS, ""]))
    folder = Path(shutil.copytree(tiny_family, where / "family"))
    default_steps(folder, 4)
    return folder


@pytest.fixture(scope="module")
def measured(tiny_family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of that family."""
    folder = made(tiny_family, tmp_path_factory.mktemp("measured"))
    with pytest.MonkeyPatch.context() as patch:
        quickly(patch)
        assert profile(folder).exit_code == 0
    return folder / "quality.json"


def default_steps(folder: Path, steps: int) -> None:
    card = folder / "family.yaml"
    card.write_text(re.sub(r"steps: \d+", f"steps: {steps}", card.read_text()))


def profile(folder: Path, *more: str) -> Result:
    prompts = folder.parent / "prompts.txt"
    return run("profile", folder, "--prompts", prompts, "--steps", "4", "--seed", "3", *more)


def test_the_table_is_what_the_router_reads(folder: Path) -> None:
    result = profile(folder, "--steps", "2")
    assert result.exit_code == 0, result.output
    table = QualityTable.read(folder / "quality.json")
    (here,) = table.sizes
    assert here.steps == table.counts((16, 16)) == (2, 4)
    assert sum(row.total == 4 for row in here.rows) == PLANS
    assert {row.n for row in here.rows} == {here.captions} == {4}
    assert (table.metric, here.prompts, here.seed) == ("distance", "prompts.txt", 3)
    assert (table.solver, table.guidance, table.steps, here.size) == ("dpmpp-2m", 4.0, 4, 16)
    assert len(table.weights) == 32
    for row in here.rows:
        assert row.interval[0] <= row.score <= row.interval[1]
        assert row.relative_interval[0] <= row.relative <= row.relative_interval[1]
        assert row.relative == pytest.approx(row.score)  # the reference is as itself: 1
    assert table.relative(Plan.parse("cloud:4"), (16, 16)) == 1.0
    plan = Plan.parse("device:1,cloud:2,edge:1")
    assert 0 < table.bound(plan, (16, 16)) <= table.relative(plan, (16, 16)) <= 1
    assert here.left_out
    assert len(here.orders) == 2 * 3
    assert not list(folder.glob("*.part.jsonl"))
    assert "cloud:4: score 1.000" in result.output
    assert "fitted without it" in result.output


def test_signals_are_recorded_beside_the_table(folder: Path, tmp_path: Path) -> None:
    result = profile(folder, "--signals", str(tmp_path / "signals.json"), "--captions", "3")
    assert result.exit_code == 0, result.output
    known = Signals.read(tmp_path / "signals.json")
    assert [(row.model, row.steps) for row in known.rows] == [
        ("device", 4),
        ("edge", 4),
        ("cloud", 4),
    ]
    assert (known.pictures, known.prompts, known.seed, known.size) == (3, "prompts.txt", 3, 16)
    assert "3 rows of 3 pictures" in result.output
    assert not (folder / "quality.json").exists()


def test_it_is_as_if_each_order_had_been_measured_alone(measured: Path) -> None:
    """The difference between orders is the mean of the differences between their rows."""
    (here,) = QualityTable.read(measured).sizes
    rows = {str(row.plan): row.relative for row in here.rows}
    order = next(o for o in here.orders if (o.small, o.large) == ("device", "cloud"))
    differences = [
        rows[f"device:{n},cloud:{4 - n}"] - rows[f"cloud:{4 - n},device:{n}"] for n in (1, 2, 3)
    ]
    assert order.difference == pytest.approx(sum(differences) / 3, abs=2e-4)
    assert order.interval[0] < order.difference < order.interval[1]


def test_an_interrupted_run_goes_on_where_it_stopped(
    folder: Path, measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    most = 2 * PLANS + 5  # within the second batch

    def stops(prompt: str, picture: Picture, reference: Picture) -> float:
        if len(scored) == most:
            raise KeyboardInterrupt
        scored.append(prompt)
        return distance(prompt, picture, reference)

    distance = metric.distance
    monkeypatch.setattr(metric, "distance", stops)
    stopped = profile(folder)
    assert stopped.exit_code == 130
    assert "goes on from there" in stopped.output
    assert not (folder / "quality.json").exists()
    scored.clear()
    assert profile(folder).exit_code == 0
    assert len(scored) == 2 * PLANS
    assert (folder / "quality.json").read_bytes() == measured.read_bytes()


def test_other_weights_are_measured_anew(folder: Path) -> None:
    before = measure.fingerprint(load_card(folder))
    weights = next((folder / "edge").glob("transformer/*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert measure.fingerprint(load_card(folder)) != before


def test_every_size_is_measured_by_itself_and_stands_beside_the_others(
    folder: Path, measured: Path
) -> None:
    """As long as they are of the same weights."""
    written = folder / "quality.json"
    shutil.copy(measured, written)
    assert profile(folder, "--size", "32").exit_code == 0
    both = QualityTable.read(written)
    assert [each.size for each in both.sizes] == [16, 32]
    assert both.sizes[0] == QualityTable.read(measured).sizes[0]
    written.write_text(both.model_copy(update={"weights": "other"}).model_dump_json())
    told = profile(folder, "--size", "32")
    assert "dropped: 16 pixels" in " ".join(told.output.split())
    assert [each.size for each in QualityTable.read(written).sizes] == [32]
    assert "makes no squares of 17 pixels" in profile(folder, "--size", "17").output


def test_what_is_left_wide_is_said(folder: Path) -> None:
    """All plans draw two prompts; decisive ones more, while there are pictures and prompts."""
    result = profile(folder, "--coarse", "2", "--pictures", str(2 * PLANS + 1))
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert f"2 prompts by {PLANS} plans; then more" in said
    (here,) = QualityTable.read(folder / "quality.json").sizes
    counts = {str(row.plan): row.n for row in here.rows}
    assert set(counts.values()) == {2, 4}
    assert counts["cloud:4"] == 4
    left = re.findall(r"(\S+) decides and is known to ([0-9.]+) points only, by (\d) prompts", said)
    assert {plan: counts[plan] for plan, _, _ in left} == {plan: int(n) for plan, _, n in left}
    assert all(float(points) > 1 for _, points, _ in left)


def test_promises_are_held_against_fresh_prompts(folder: Path, measured: Path) -> None:
    prompts = ("--prompts", folder.parent / "prompts.txt", "--verify")
    assert "quality.json" in run("profile", folder, *prompts).output  # there is none yet
    shutil.copy(measured, folder)
    stale = run("profile", folder, *prompts, "--seed", "5")
    assert stale.exit_code == 1
    assert "not fresh" in " ".join(stale.output.split())
    kept = run("profile", folder, *prompts, "--seed", "90")
    assert kept.exit_code == 0, kept.output
    assert "| 0.98 | `" in kept.output
    assert not list(folder.glob("*.part.jsonl"))
    table = QualityTable.read(folder / "quality.json")
    wrong = table.model_copy(update={"sizes": tuple(map(careless, table.sizes))})
    (folder / "quality.json").write_text(wrong.model_dump_json())
    broken = run("profile", folder, *prompts, "--seed", "90")
    assert broken.exit_code == 1
    assert "**broken**" in broken.output
    assert "break their floor" in broken.output


def careless(size: SizeQuality) -> SizeQuality:
    """All plans are said to be as good as the reference."""
    flat = [
        StageCurve(stage=stage, steps=4, loss=(0.0, 0.0)) for stage in ("device", "edge", "cloud")
    ]
    model = Model(power=1.0, curves=tuple(flat))
    return size.model_copy(update={"model": model, "low": model})


METRIC = """
class Judge:
    def prompts(self, count, seed):
        return [f"a red circle on a white background {i}" for i in range(count)]
    def score(self, prompt, picture, reference):
        return 0.0 if WORTHLESS else 0.5 + 0.5 * (picture.rgb == reference.rgb)
judge = Judge()
"""


def with_metric(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, worthless: bool) -> None:
    (folder.parent / f"{name}.py").write_text(METRIC.replace("WORTHLESS", str(worthless)))
    card = folder / "family.yaml"
    card.write_text(card.read_text() + f"metric: {name}:judge\n")
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(sys, "path", sys.path.copy())


def test_the_cards_metric_brings_its_prompts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_metric(folder, monkeypatch, "a_tiny_metric", worthless=False)
    default_steps(folder, 1)
    result = run("profile", folder, "--steps", "1", "--captions", "3")
    assert result.exit_code == 0, result.output
    table = QualityTable.read(folder / "quality.json")
    (here,) = table.sizes
    assert table.metric == here.prompts == "a_tiny_metric:judge"
    assert [row.relative for row in here.rows] == [0.5, 0.5, 1.0]
    assert here.left_out is None


def test_people_are_told_what_is_wrong(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default_steps(folder, 1)
    few = tmp_path / "few.txt"
    few.write_text("only one\n")
    for arguments, told in (
        (["--metric", "distance"], "with --prompts"),
        (["--prompts", str(tmp_path / "none.txt")], "none.txt: cannot be read: No such file"),
        (["--prompts", str(few)], "has 1 prompts, not 2"),
        (["--prompts", str(tmp_path / "prompts.txt"), "--captions", "9"], "has 4 prompts, not 9"),
        (["--metric", "nowhere.at.all:x"], "cannot be imported"),
        (["--out", "/no/such/folder/q.json", "--prompts", str(tmp_path / "prompts.txt")], "folder"),
    ):
        result = run("profile", folder, "--steps", "1", *arguments)
        assert result.exit_code == 1
        assert told in " ".join(result.output.split())
    with_metric(folder, monkeypatch, "a_worthless_metric", worthless=True)
    result = run("profile", folder, "--steps", "1", "--captions", "2")
    assert result.exit_code == 1
    assert "cloud:1 scored 0 on every prompt" in result.output


# ---------------------------------------------------------------------------- plots


def a_table(folder: Path) -> QualityTable:
    """Made up: large first is worse by 0.1, small first as good as large alone."""
    plans = [plan for steps in (10, 20) for plan in grid.plans(("small", "large"), steps)]
    rows = []
    for plan in plans:
        alone = len(plan.spans) == 1
        first = plan.spans[0].stage
        value = (
            {"large": 1.0, "small": 0.8}[first] if alone else {"large": 0.9, "small": 0.99}[first]
        )
        value += 0.005 * (plan.spans[0].steps == 7)
        rows.append(
            {
                "stages": [span.stage for span in plan.spans],
                "steps": [span.steps for span in plan.spans],
                "score": 0.9 * value,
                "interval": [0.8 * value, 0.95 * value],
                "relative": value,
                "relative_interval": [value - 0.02, value + 0.02],
                "n": 50,
            }
        )
    orders = [
        {"small": "small", "large": "large", "steps": 10, "difference": 0.09, "interval": i}
        for i in ([0.05, 0.13],)
    ] + [{"small": "small", "large": "large", "steps": 20, "difference": 0.0, "interval": [-1, 1]}]
    found = tuple(QualityRow.model_validate_json(json.dumps(row)) for row in rows)
    model = fit(found, "large", 20)
    size = {"size": 64, "seed": 0, "prompts": "", "captions": 50, "measured": "2026-01-01"}
    size |= {"orders": orders, "rows": rows, "model": json.loads(model.model_dump_json())}
    size |= {"low": size["model"]}
    data = json.loads(QualityTable.unknown("mine", "large", 20).model_dump_json())
    data |= {"solver": "ddim", "metric": "distance", "sizes": [size]}
    return QualityTable.model_validate_json(json.dumps(data))


def test_the_page_says_what_the_data_say(folder: Path) -> None:
    page = folder / "quality.md"
    page.write_text("# Before\n" + "\nold\n".join(plots.MARKS) + "\nafter\n")
    for _ in range(2):
        files = plots.write_page(a_table(folder), page, {64: "the command"})
    assert files == [page, folder / "quality-64-small-large.png"]
    assert files[1].read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "by `the command`" in text
    assert "](quality-64-small-large.png)" in text
    assert "| `small`, `large` | 10 | +9.0 points (+5.0 to +13.0) | `small` |" in text
    assert (
        "| `small`, `large` | 20 | +0.0 points (-100.0 to +100.0) | neither is shown to be |"
        in text
    )
    assert "| 10 | `small:7,large:3` | 99.5 % (97.5 to 101.5) | " in text
    assert "| `small` | 20 | 50 | 0.720 (0.640 to 0.760) | 80.0 % (78.0 to 82.0) | " in text


def test_the_same_table_draws_the_same_bytes(folder: Path) -> None:
    files = [folder / "a.png", folder / "b.png"]
    for file in files:
        plots.draw(a_table(folder), a_table(folder).sizes[0], "small", "large", file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_page_without_marks_is_left_alone(folder: Path) -> None:
    page = folder / "quality.md"
    page.write_text("mine\n")
    with pytest.raises(InvalidRequest, match="lacks the lines"):
        plots.write_page(a_table(folder), page, {64: ""})
    assert page.read_text() == "mine\n"


def test_plots_of_what_was_measured(folder: Path, measured: Path) -> None:
    shutil.copy(measured, folder)
    result = run("plots", folder, "--page", folder / "page.md")
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in folder.glob("page*")) == [
        "page-16-device-cloud.png",
        "page-16-device-edge.png",
        "page-16-edge-cloud.png",
        "page.md",
    ]
    command = "diffusion-edge profile tiny --size 16 --captions 4 --seed 3 --steps 4"
    assert f"`{command} --prompts prompts.txt`" in (folder / "page.md").read_text()
    assert run("plots", folder, "--page", folder / "no" / "page.md").exit_code == 1


def test_without_matplotlib_people_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InvalidRequest, match="pip install"):
        plots.write_page(a_table(folder), folder / "quality.md", {64: ""})


def test_the_server_never_imports_a_metric() -> None:
    """Nor matplotlib: what serves has no use for what measures."""
    code = (
        "import sys, diffusion_edge.serve.ingress, diffusion_edge.api.http;"
        "sys.exit(any(m.startswith(('diffusion_edge.profile', 'stage_models', 'matplotlib'))"
        " for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
