from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from diffusion_edge.bench.links import ARMS, CANDIDATES, CHOSEN, Report, Score, best, excess
from diffusion_edge.bench.links_report import MARKS, targets
from diffusion_edge.commands.app import app
from diffusion_edge.profile.hops import Recordings
from diffusion_edge.profile.links import blank, examples, runs, train
from diffusion_edge.routing.links.candidates import NEUTRAL
from diffusion_edge.routing.links.learned import Learned


def score(trace: str, chosen: float, **others: float) -> Score:
    errors = dict.fromkeys(ARMS, 0.5) | others | {CHOSEN: chosen}
    return Score(trace, "shapes", 0.7, 10, errors, errors, 0.9)


def test_the_chosen_one_is_held_against_the_best_of_each_trace() -> None:
    scores = [score("a", 0.22, last=0.2, ewma=0.4), score("b", 0.3, last=0.7, ewma=0.4)]
    assert best(scores, trace="a") == ("last", 0.2)
    assert best(scores) == ("ewma", pytest.approx(0.4))
    assert excess(scores, trace="a") == pytest.approx(0.1)
    assert excess(scores) == pytest.approx(0.26 / 0.4 - 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name, column in (("links", "bytes_per_s"), ("rtt", "rtt_s")):
        (tmp_path / name).mkdir()
        more = ",segment" if name == "rtt" else ""
        rows = [f"t_s,{column}{more}"]
        for second in range(60):
            value = 2e5 * np.exp(random.normal(0, 0.4)) if name == "links" else 0.05
            rows.append(f"{second},{value:.3f}" + (",0" if more else ""))
        files = ("a",) if name == "links" else ("rtt_driving_verizon", "rtt_driving_tmobile")
        for file in files:
            (tmp_path / name / f"{file}.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_the_command_writes_the_page_and_ends_in_json(folder: Path) -> None:
    page = folder / "links.md"
    page.write_text("before\n" + "\n".join(MARKS) + "\nafter\n")
    arguments = ["bench", "links", str(folder), "--hops", "20", "--page", str(page)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert {each["hops"] for each in found["scores"]} == {20}
    assert set(found["scores"][0]["errors"]) == set(ARMS)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "`a` *" in text  # not among those that chose something
    assert "more than 5 % worse" in text


def test_targets_that_are_not_reached_are_told() -> None:
    from diffusion_edge.bench.links import Quiet

    bad = Report("", "", (), (score("a", 0.9),), (), (Quiet("a", 0.1, 0.1, 0.02),))
    assert [reached for _, _, reached in targets(bad)] == [False, False, True, False]
    good = Report("", "", (), (score("a", 0.4),), (), (Quiet("a", 0.1, 0.1, 0.001),))
    assert all(reached for _, _, reached in targets(good))
    assert len(CANDIDATES) == 5


def test_a_folder_without_recordings_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "links", str(tmp_path)])
    assert (done.exit_code, "must have links/*.csv" in done.stderr) == (1, True)


def test_training_lowers_the_error_of_what_it_saw(folder: Path) -> None:
    recordings = Recordings.read(folder)
    network = blank(len(Learned.start(NEUTRAL, blank(1)).signals(0.0)))
    found = examples(recordings, runs(["a"], 6, 1), network)
    trained = train(found, seed=1, epochs=40)
    delay, rate, nbytes, seconds = found.hops.T
    moves = np.array([trained.moves(signals) for signals in found.signals])
    before = np.abs(np.log((delay + nbytes / rate) / seconds)).mean()
    moved = delay * np.exp(moves[:, 0]) + nbytes / rate / np.exp(moves[:, 1])
    assert np.abs(np.log(moved / seconds)).mean() < before
