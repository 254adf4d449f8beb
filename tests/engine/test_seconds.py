"""The record of a stage's seconds: what one more figure changes, and how much is kept."""

from __future__ import annotations

import pytest

from diffusion_edge.engine.seconds import SEEN, SIZES, Recent, Seconds, Steps


def known(**changes: object) -> Seconds:
    settled: dict[str, object] = {
        "steps": {16: Steps({1: 1.0, 2: 1.2, 4: 1.6})},
        "encode": {1: Recent((0.1,))},
        "decode": {16: {1: Recent((0.5,))}},
        "lanes": {16: 1, 64: 2},
    }
    return Seconds(**(settled | changes))  # type: ignore[arg-type]


def test_a_few_stalls_count_for_nothing_and_a_change_is_learned() -> None:
    recent = Recent((1.0,) * SEEN)
    for _ in range(SEEN // 2):
        recent = recent.after(50.0)
        assert recent.typical_s == 1.0
    assert recent.after(50.0).typical_s == 50.0
    assert len(recent.taken_s) == SEEN


def test_the_first_figure_of_anything_does_not_count_if_it_is_a_stall() -> None:
    seconds = known().after_step(16, 3, 90.0).after_step(64, 1, 90.0).after_decoding(64, 1, 90.0)
    assert seconds.step(16, 3) == pytest.approx(1.4)
    assert seconds.step(64, 1) == pytest.approx(1.6)
    assert seconds.decoding(64) == pytest.approx(2.0)
    better = known().after_step(64, 1, 1.5).after_decoding(64, 1, 1.5)
    assert better.step(64, 1) == 1.5
    assert better.decoding(64) == 1.5
    assert (better.step(16, 1), better.decoding(16)) == (1.0, 0.5)


def test_what_is_kept_of_sizes_is_bounded_and_the_latest_stay() -> None:
    seconds = known()
    for cells in range(100, 100 + 2 * SIZES):
        seconds = seconds.after_step(cells, 1, 1.0).after_decoding(cells, 1, 1.0)
    assert len(seconds.step_s) == len(seconds.decode_s) == SIZES
    assert max(seconds.step_s) == max(seconds.decode_s) == 99 + 2 * SIZES


def test_passes_are_cut_as_those_of_as_many_cells_are() -> None:
    assert known().lanes_for(16, 1) == 1
    assert known().lanes_for(16, 4) == 2
    assert known().lanes_for(64, 1) == 1  # one row cannot be cut
    assert known().lanes_for(64, 2) == 2


def test_memory_bounds_rows_by_their_cells() -> None:
    full = known().out_of_memory(16, 4)
    assert full.rows(16, unit=1, waiting=9, most=32) == 2  # half of what was too many
    assert full.rows(64, unit=1, waiting=9, most=32) == 1
    assert full.out_of_memory(16, 8).too_many == 64
    assert full.out_of_memory(16, 2).too_many == 32


def test_a_trial_that_pays_is_followed_by_the_next() -> None:
    """Until it is believed: here passes of 4 rows were slow nine times."""
    seconds = known(steps={16: Steps({1: 1.0, 2: 1.2, 4: 9.0})})
    for _ in range(SEEN):
        seconds = seconds.after_step(16, 4, 9.0)
    assert seconds.rows(16, unit=1, waiting=4, most=4) == 2
    while seconds.rows(16, unit=1, waiting=4, most=4) == 2:
        seconds = seconds.after_step(16, 2, 1.2)
    for _ in range(SEEN // 2 + 1):
        assert seconds.rows(16, unit=1, waiting=4, most=4) == 4
        seconds = seconds.after_step(16, 4, 1.6)
    assert seconds.curve(16)[4] == 1.6
    assert seconds.rows(16, unit=1, waiting=4, most=4) == 4


def test_calls_for_several_have_figures_of_their_own() -> None:
    seconds = known()
    assert (seconds.encoding(3), seconds.decoding(32, 3)) == (pytest.approx(0.3), 3.0)
    for _ in range(3):
        seconds = seconds.after_encoding(4, 0.16).after_decoding(16, 4, 0.8)
    assert seconds.texts_s == {1: 0.1, 4: 0.16}
    assert seconds.encoding(2) == pytest.approx(0.12)  # on the line between what was seen
    assert seconds.decoding(16, 4) == 0.8
    assert seconds.decoding(32, 4) == 1.6  # the nearest size's, in proportion to cells
    assert seconds.decode_s == {16: 0.5}


def test_one_picture_of_a_size_that_was_seen_by_the_four_takes_a_quarter() -> None:
    seconds = known(decode={16: {4: Recent((0.8,))}})
    assert seconds.decode_s == {16: 0.2}
    assert seconds.after_decoding(16, 1, 0.3).decode_s == {16: 0.2}  # of two the lower one


def test_what_is_stated_stays() -> None:
    stated = known(stated=True)
    assert stated.after_step(16, 1, 9.0).after_encoding(1, 9.0).after_decoding(16, 1, 9.0) == stated
