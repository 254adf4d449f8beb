"""The card says which stage quality is relative to, and by what it is judged."""

from pathlib import Path

import pytest

from diffusion_edge.errors import ConfigError
from diffusion_edge.families.card import load_card
from tests import tiny

CARD = tiny.CARD % "ddim"


def card_of(folder: Path, text: str) -> Path:
    (folder / "family.yaml").write_text(text)
    return folder


def test_the_reference_is_cloud_or_else_the_last_stage(tmp_path: Path) -> None:
    assert load_card(card_of(tmp_path, CARD)).reference == "cloud"
    renamed = CARD.replace("  cloud: {folder: cloud, ", "  big: {folder: cloud, ")
    assert load_card(card_of(tmp_path, renamed)).reference == "big"


def test_a_metric_may_be_named(tmp_path: Path) -> None:
    assert load_card(card_of(tmp_path, CARD)).metric == "distance"
    assert load_card(card_of(tmp_path, CARD + "metric: mine:judge\n")).metric == "mine:judge"


def test_an_unknown_key_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"family\.yaml: metrik"):
        load_card(card_of(tmp_path, CARD + "metrik: mine:judge\n"))
