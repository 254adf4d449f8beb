from __future__ import annotations

import pytest

from diffusion_edge.markdown import section, table


def test_a_table_has_a_line_for_its_head_and_for_each_row() -> None:
    assert list(table(("arm", "", "p95"), [("ours", "", "1 s"), ("theirs", "x", "2 s")])) == [
        "| arm | | p95 |",
        "|---|---|---|",
        "| ours | | 1 s |",
        "| theirs | x | 2 s |",
    ]
    assert list(section("Load", ("a",), []))[:4] == ["", "**Load**", "", "| a |"]


@pytest.mark.parametrize("row", [("ours",), ("ours", "1 s", "2 s")])
def test_a_row_that_does_not_fit_is_no_table(row: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="under a head of 2"):
        list(table(("arm", "p95"), [row]))
