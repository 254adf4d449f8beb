"""The built-in distance, and what people are told of a metric that is wrong."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from diffusion_edge.errors import ConfigError
from diffusion_edge.profile.metric import Metric, distance, load_metric
from diffusion_edge.request import Picture


def flat(*rgb: int) -> Picture:
    return Picture(2, 2, bytes(rgb) * 4)


def test_the_distance_by_hand() -> None:
    grey = flat(100, 100, 100)
    assert distance("", grey, grey) == 1.0
    assert distance("", flat(100, 100, 151), grey) == pytest.approx(1 - 51 / 255 / math.sqrt(3))
    assert distance("", flat(0, 0, 0), flat(255, 255, 255)) == 0.0
    assert load_metric("distance").score("", grey, grey) == 1.0


PLUGIN = """
def length(prompt, picture, reference):
    return len(prompt) / 100

class Judge:
    def score(self, prompt, picture, reference):
        return 0.5
    def prompts(self, count, seed):
        return [f"{seed} {i}" for i in range(count)]

judge = Judge()
number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a plug-in, which is the current one."""
    (tmp_path / "some_metric.py").write_text(PLUGIN)
    (tmp_path / "broken_metric.py").write_text("import not_there_at_all")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "some_metric", raising=False)


@pytest.mark.usefixtures("here")
def test_a_function_or_an_object_is_found() -> None:
    function = load_metric("some_metric:length")
    assert function.prompts is None
    assert function.score("x" * 30, flat(0, 0, 0), flat(0, 0, 0)) == 0.3
    judge = load_metric("some_metric:judge")
    assert judge.score("", flat(0, 0, 0), flat(0, 0, 0)) == 0.5
    assert judge.prompts
    assert judge.prompts(2, 7) == ["7 0", "7 1"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "is not module:object"),
        ("some_metric", "is not module:object"),
        ("some_metric:", "is not module:object"),
        ("no_such_module:x", "cannot be imported from .*No module named 'no_such_module'"),
        ("broken_metric:x", "No module named 'not_there_at_all'"),
        ("some_metric:judgement", "module 'some_metric' has no 'judgement'"),
        ("some_metric:number", "is neither a function"),
    ],
)
def test_a_metric_that_is_not_there(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_metric(name)


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, None, "good"])
def test_a_score_that_is_none(value: object) -> None:
    metric = Metric("mine:score", lambda *_: value)  # type: ignore[arg-type, return-value]  # wrong on purpose
    with pytest.raises(ConfigError, match=r"'mine:score' gave .* for 'a cat'; a score is a number"):
        metric.score("a cat", flat(0, 0, 0), flat(0, 0, 0))
