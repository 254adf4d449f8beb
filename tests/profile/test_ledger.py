from pathlib import Path

import pytest

from diffusion_edge.profile.ledger import results


def run(path: Path, settings: dict[str, int], fails_at: int = 99) -> tuple[list[int], list[int]]:
    """The results of four parts, and those parts that were done in this run."""
    done: list[int] = []

    def do(part: int) -> int:
        if part == fails_at:
            raise KeyboardInterrupt
        done.append(part)
        return part * part

    return [entry for entry, _ in results(path, settings, range(4), do)], done


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(path, {"seed": 1}, fails_at=2)
    assert run(path, {"seed": 1}) == ([0, 1, 4, 9], [2, 3])
    assert run(path, {"seed": 1}) == ([0, 1, 4, 9], [])


def test_what_other_settings_left_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    run(path, {"seed": 1})
    assert run(path, {"seed": 2})[1] == [0, 1, 2, 3]


@pytest.mark.parametrize("garbage", ["not a ledger", '{"seed": 1', ""])
def test_what_is_no_ledger_is_dropped(tmp_path: Path, garbage: str) -> None:
    path = tmp_path / "part.jsonl"
    path.write_text(garbage)
    assert run(path, {"seed": 1})[1] == [0, 1, 2, 3]


def test_a_line_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    run(path, {"seed": 1})
    path.write_text(path.read_text()[:-2] + "[1, ")
    assert run(path, {"seed": 1}) == ([0, 1, 4, 9], [3])
