"""Which way a stage takes, with ways that are made up around the eager one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from diffusion_edge.config import Execution
from diffusion_edge.errors import ConfigError, InvalidRequest
from diffusion_edge.execution import choose, openvino
from diffusion_edge.execution.choose import GAIN, chosen, fastest
from diffusion_edge.execution.parts import LOOKS, Use
from diffusion_edge.execution.way import PARTS, Part, Way
from diffusion_edge.execution.ways import TRIED, WAYS
from diffusion_edge.families.base import Conditioning, Loaded
from diffusion_edge.families.card import load_card
from diffusion_edge.families.load import load_family

USE = Use((16,), "dpmpp-2m")


@pytest.fixture(scope="module")
def family(tiny_family: Path) -> Loaded:
    torch.set_num_threads(1)
    return load_family(load_card(tiny_family), "device")


@dataclass
class Made:
    """A way that multiplies what eager makes, and counts how often it was prepared."""

    factor: float = 1.0
    refusal: str | None = None
    error: Exception | None = None
    prepared: int = 0
    seen: list[tuple[Sequence[int], int]] = field(default_factory=list)

    def way(self, name: str = "openvino") -> Way:
        return Way(name, "lossless", lambda *_: self.refusal, {"predict": self._prepare})

    def _prepare(self, family: Loaded, sizes: Sequence[int], threads: int) -> Any:
        self.prepared += 1
        self.seen.append((sizes, torch.get_num_threads()))
        if self.error is not None:
            raise self.error

        def predict(*inputs: Any) -> Tensor:
            return self.factor * family.predict(*inputs)

        return predict


@pytest.fixture
def auto(
    family: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Loaded, Made]]:
    """What `auto` takes where the one other way is this one and takes so many seconds, eager 1."""

    def choose_among(takes_s: float = 0.5, use: Use = USE, **made: Any) -> tuple[Loaded, Made]:
        other = Made(**made)
        monkeypatch.setitem(TRIED, "cpu", (other.way(),))  # type: ignore[misc]  # it is a dict
        monkeypatch.setattr(
            choose,
            "seconds",
            lambda part, able, use: {n: {2: 1.0 if n == "eager" else takes_s} for n in able},
        )
        return chosen(family, "auto", use, tmp_path), other

    return choose_among


def test_the_config_names_the_ways() -> None:
    assert set(get_args(Execution)) == {"auto", *WAYS}


def test_the_fastest_way_that_gains_is_taken() -> None:
    eager = {2: 1.0, 8: 4.0}
    assert fastest({"eager": eager}) == "eager"
    assert fastest({"eager": eager, "a": {2: 0.9, 8: 3.9}, "b": {2: 0.5, 8: 4.1}}) == "b"
    slightly = {rows: took_s / (0.99 * GAIN) for rows, took_s in eager.items()}
    assert fastest({"eager": eager, "a": slightly}) == "eager"


def test_auto_takes_what_is_faster_and_lossless(auto: Callable[..., tuple[Loaded, Made]]) -> None:
    taken, made = auto(takes_s=0.5)
    assert (taken.execution, made.prepared) == ("openvino", 1)
    assert taken.denoiser is not None


def test_auto_stays_eager_where_another_way_is_slower(
    auto: Callable[..., tuple[Loaded, Made]], family: Loaded
) -> None:
    assert auto(takes_s=1.0)[0] is family


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ({"factor": 1.0 + 1e-3}, "differ from eager's by"),
        ({"factor": float("nan")}, "differ from eager's by nan"),
        ({"error": RuntimeError("no such operation\nand more")}, "no such operation"),
        ({"refusal": "not installed"}, "not installed"),
    ],
)
def test_a_way_that_cannot_says_why_and_eager_is_taken(
    auto: Callable[..., tuple[Loaded, Made]],
    family: Loaded,
    made: dict[str, Any],
    told: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert auto(**made)[0] is family
    (line,) = caplog.messages
    assert line.split(" of ")[-1].startswith("device does not run by openvino: ")
    assert told in line
    assert "and more" not in line


def test_a_choice_is_remembered_by_weights_and_use(
    auto: Callable[..., tuple[Loaded, Made]],
    family: Loaded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        assert auto(takes_s=0.5)[0].execution == "openvino"
        made = Made()
        patched.setitem(WAYS, "openvino", made.way())  # type: ignore[misc]  # it is a dict
        patched.setattr(choose, "_checked", None)  # nor is it held against eager again
        assert auto(takes_s=2.0)[0].execution == "openvino"
        assert made.prepared == 1
        made.error = RuntimeError("no memory")
        assert auto(takes_s=2.0)[0] is family
    assert auto(takes_s=2.0, use=replace(USE, sizes=(16, 32)))[0] is family
    taken, made = auto(takes_s=0.5, use=replace(USE, sizes=(16, 32)))
    assert (taken, made.prepared) == (family, 0)  # nor is what was not taken prepared
    with torch.no_grad():
        weight = next(family.denoiser.parameters())
        weight.view(-1)[0] += 1
        assert auto(takes_s=2.0)[0] is family
        weight.view(-1)[0] -= 1
    for file in tmp_path.iterdir():
        file.write_text("{")
    assert auto(takes_s=2.0)[0] is family


@pytest.fixture
def beside(
    family: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Loaded]:
    """What `auto` takes where another way has these parts, and is faster for all but `slow`."""

    def choose_among(slow: str = "", **parts: Any) -> Loaded:
        way = replace(Made().way(), prepare={p: lambda *_, p=p: parts[p] for p in parts})
        monkeypatch.setitem(TRIED, "cpu", (way,))  # type: ignore[misc]  # it is a dict
        monkeypatch.setitem(WAYS, way.name, way)  # type: ignore[misc]

        def seconds(part: Part, able: Any, use: Use) -> dict[str, dict[int, float]]:
            other_s = 2.0 if part == slow else 0.5
            return {name: {2: 1.0 if name == "eager" else other_s} for name in able}

        monkeypatch.setattr(choose, "seconds", seconds)
        return chosen(family, "auto", USE, tmp_path)

    return choose_among


def scaled(family: Loaded, factor: float) -> dict[str, Callable[..., Any]]:
    """What the parts of a family make, times a factor."""

    def predict(*inputs: Any) -> Tensor:
        return family.predict(*inputs) * factor

    def images(latent: Tensor) -> Tensor:
        return family.images(latent) * factor

    def encode(words: Any) -> Conditioning:
        made = family.encode(words).tensors
        return Conditioning(
            {n: t * factor if t.is_floating_point() else t for n, t in made.items()}
        )

    return {"predict": predict, "images": images, "encode": encode}


def made_by(family: Loaded) -> dict[str, Tensor]:
    """What each of its parts makes of the same."""
    latent = torch.ones(1, *family.latent_shape(16, 16))
    texts = family.encode_text(["a circle"])
    text = next(t for t in texts.tensors.values() if t.is_floating_point())
    known = Conditioning({n: torch.ones_like(t) for n, t in texts.tensors.items()})
    steps = family.predict(latent, torch.full((1,), 500.0), torch.ones(1), known)
    return {"predict": steps, "images": family.images(latent), "encode": text}


@pytest.mark.parametrize("part", PARTS)
def test_every_part_takes_a_way_of_its_own(
    beside: Callable[..., Loaded], family: Loaded, monkeypatch: pytest.MonkeyPatch, part: Part
) -> None:
    barely, stock = scaled(family, 1 + 2e-7), made_by(family)
    for _ in range(2):  # then as it is remembered
        own = beside(**{part: barely[part]})
        assert own.execution == ("openvino" if part == "predict" else "eager")
        for other, made in made_by(own).items():
            assert torch.equal(made, stock[other]) == (other != part)
        assert own.decode(torch.ones(2, *family.latent_shape(16, 16)))[1].width == 16
        monkeypatch.setattr(choose, "_checked", None)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_makes_something_else_is_left(
    beside: Callable[..., Loaded], family: Loaded, caplog: pytest.LogCaptureFixture, part: Part
) -> None:
    assert beside(**{part: scaled(family, 1.01)[part]}) is family
    (line,) = caplog.messages
    assert line.startswith(f"{LOOKS[part].called} of device does not run by openvino: its results")


def test_one_part_may_be_slower_by_a_way_and_the_others_faster(
    beside: Callable[..., Loaded], family: Loaded
) -> None:
    made, stock = made_by(beside("images", **scaled(family, 1 + 2e-7))), made_by(family)
    assert torch.equal(made["images"], stock["images"])
    assert not torch.equal(made["encode"], stock["encode"])
    assert not torch.equal(made["predict"], stock["predict"])


@pytest.mark.parametrize("part", PARTS)
def test_seconds_are_of_all_rows(family: Loaded, part: Part) -> None:
    found = choose.seconds(part, {"eager": family}, USE)
    assert found["eager"].keys() == set(LOOKS[part].rows)
    assert min(found["eager"].values()) > 0


def test_what_is_asked_for_is_taken_or_refused_by_name(
    family: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen(family, "eager", USE, tmp_path) is family
    for made, told in (
        (Made(refusal="not installed"), "'device' cannot run by openvino: not installed"),
        (Made(1.01), "'device' cannot run by openvino: its results differ"),
    ):
        monkeypatch.setitem(WAYS, "openvino", made.way())  # type: ignore[misc]  # it is a dict
        with pytest.raises(ConfigError, match=told):
            chosen(family, "openvino", USE, tmp_path)
    monkeypatch.setitem(WAYS, "openvino", Made().way())  # type: ignore[misc]
    assert chosen(family, "openvino", USE, tmp_path).execution == "openvino"
    assert not list(tmp_path.iterdir())
    with pytest.raises(InvalidRequest, match=r"known: auto, eager, .* mean 'openvino'"):
        chosen(family, "openvin", USE, tmp_path)


def test_it_is_prepared_with_the_stage_s_threads_and_in_none_of_the_caller_s(
    auto: Callable[..., tuple[Loaded, Made]],
) -> None:
    torch.set_num_threads(1)
    _, made = auto(use=replace(USE, threads=2))
    assert made.seen == [((16,), 2)]
    assert torch.get_num_threads() == 1


def test_openvino_refuses_what_it_cannot_hold(
    family: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small:
        available = 1000

    monkeypatch.setattr(openvino, "EXTRA", "torch")  # as if it were installed
    assert openvino.refuses(family, [16], 1) is None
    monkeypatch.setattr(openvino.psutil, "virtual_memory", Small)
    assert "main memory has 1 kB free" in str(openvino.refuses(family, [16], 1))
    monkeypatch.setattr(openvino, "EXTRA", "no_such_package")
    assert "pip install diffusion-edge[no_such_package]" in str(openvino.refuses(family, [16], 1))
