from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffusion_edge.errors import InvalidRequest
from diffusion_edge.profile.hops import (
    HANDLING_S,
    SHAPES,
    Recordings,
    Run,
    paced,
    packet_bytes,
    replay,
)
from diffusion_edge.traces import Trace

STEADY = Trace(np.array([0.0]), np.array([1000.0]), 1.0)
DELAY = Trace(np.array([0.0]), np.array([0.5]), 1.0)


def test_packets_pass_one_after_another_and_each_has_a_delay() -> None:
    first, second, third = replay(STEADY, DELAY, [(1.0, 2000), (2.0, 1000), (9.0, 500)])
    assert (first.start_s, first.hop.seconds, first.hop.at) == (1.0, 2.5, 3.5)
    assert (second.start_s, second.hop.seconds, second.hop.at) == (3.0, 1.5, 4.5)
    assert (third.start_s, third.hop.seconds) == (9.0, 1.0)


def test_a_packet_is_predicted_by_what_has_ended_by_then() -> None:
    sendings = list(replay(STEADY, DELAY, [(1.0, 2000), (2.0, 1000), (9.0, 500)], lead_s=1.0))
    seen = [[each.hop.nbytes for each in ended] for ended, _ in paced(sendings)]
    assert seen == [[], [], [2000, 1000]]
    assert [sending.asked_s for sending in sendings] == [0.0, 1.0, 8.0]


def test_packets_of_shapes_are_as_large_as_measured() -> None:
    assert packet_bytes("shapes", "exact", 1) == pytest.approx(3248, rel=0.01)
    assert packet_bytes("shapes", "int8", 1) == pytest.approx(1806, rel=0.06)
    assert packet_bytes("shapes", "exact", 2) == pytest.approx(5372, rel=0.02)


def test_a_slow_link_gets_packets_less_often(tmp_path: Path) -> None:
    run = Run("a", SHAPES, 0.001, 0.5, 0.06, 0.0, (2.0, 1.0), 200, 1)
    recordings = Recordings({"a": STEADY}, {})
    sendings = recordings.sendings(run)
    passing_s = sum(sending.hop.seconds - 0.06 - HANDLING_S for sending in sendings)
    assert 0.35 < passing_s / (sendings[-1].hop.at - sendings[0].asked_s) < 0.65
    assert recordings.truth(run).bytes_per_s == 500.0
    assert recordings.stated(run).bytes_per_s == 1000.0
    with pytest.raises(InvalidRequest, match="must have"):
        Recordings.read(tmp_path)
