"""What packets that have not come say of their link."""

from __future__ import annotations

import pytest

from diffusion_edge.routing.links.taken import Links
from diffusion_edge.routing.links.underway import Underway
from diffusion_edge.view import Link
from tests.fakes import FakeClock

PAIR, BACK = ("phone", "hall"), ("hall", "phone")
KNOWN = Link(1000.0, 0.5)


def test_a_link_is_no_faster_than_what_it_has_not_delivered_by_now() -> None:
    hops = Underway()
    hops.left("first", PAIR, 2000, now=10.0)
    hops.left("second", PAIR, 2000, now=11.0)
    assert hops.link(PAIR, KNOWN, 12.5) == KNOWN  # it might come just now
    assert hops.link(PAIR, KNOWN, 18.5) == Link(250.0, 0.5)
    assert hops.link(PAIR, KNOWN, 18.5).transfer_s(2000) == pytest.approx(8.5)
    assert hops.link(BACK, KNOWN, 18.5) == KNOWN
    hops.came("first")
    assert hops.link(PAIR, KNOWN, 18.5) == Link(2000 / 7.0, 0.5)
    hops.came("second")
    hops.came("never left")
    assert hops.link(PAIR, KNOWN, 18.5) == KNOWN


@pytest.mark.parametrize("measured", [True, False])
def test_only_links_that_are_measured_are_taken_for_less(measured: bool) -> None:
    clock = FakeClock()
    links = Links({PAIR: KNOWN}, clock.now, measured)
    links.left(1, PAIR, 2000)
    clock.advance(8.5)
    assert links.link(PAIR).bytes_per_s == (250.0 if measured else 1000.0)
    links.came(1)
    assert links.link(PAIR) == KNOWN
