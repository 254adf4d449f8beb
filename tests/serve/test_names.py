"""What a config names outside of itself, as replicas find it that work somewhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_edge.config import Settings, load_config
from diffusion_edge.emulation import EmulatePackets
from diffusion_edge.families.card import load_card
from diffusion_edge.places import family_folder, trace_file
from diffusion_edge.serve.names import check_names, located
from tests.families.test_card import CARD, card_of
from tests.serve.live import EMULATED

TRACE = "loadtest/traces/links/lte_walking_nyc.csv"


def emulating(trace: str, family: str) -> Settings:
    made = load_config(EMULATED).settings
    first, *others = made.links
    links = [first.model_copy(update={"trace": trace}), *others]
    packets = EmulatePackets(packet_bytes=family)
    return made.model_copy(update={"links": links, "emulate": packets})


def names(made: Settings) -> tuple[str | None, str]:
    assert made.emulate is not None
    return made.links[0].trace, made.emulate.packet_bytes


def test_what_lies_in_the_repository_is_named_from_there() -> None:
    assert names(located(emulating(TRACE, "sdxl"))) == (TRACE, "stage_models/sdxl")
    plain = load_config(EMULATED).settings
    assert located(plain) == plain


def test_what_lies_in_the_working_directory_is_found_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("mine.csv").write_text("t_s,bytes_per_s\n0,1\n")
    Path("mine").mkdir()
    card_of(Path("mine"), CARD)
    made = located(emulating("mine.csv", "mine"))
    check_names(made, load_card(family_folder("shapes")))
    monkeypatch.chdir(tmp_path / "elsewhere")
    trace, family = names(made)
    assert trace is not None
    assert trace_file(trace) == tmp_path / "here" / "mine.csv"
    assert family_folder(family) == tmp_path / "here" / "mine"
