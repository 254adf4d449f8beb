"""Stages by group, and the ways to choose among them."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np

from diffusion_edge.routing.layout import Told, layout

TOLD: tuple[Told, ...] = (
    ("small", "edge", "b"),
    ("large", "cloud", "d"),
    ("small", "edge", "a"),
    ("small", "device", "c"),
    ("small", "edge", "e"),
)


def test_stages_of_a_group_lie_side_by_side() -> None:
    known = layout(TOLD)
    assert known.names == ("d", "c", "a", "b", "e")
    assert [known.names[stages] for stages in known.stages] == [("d",), ("c",), ("a", "b", "e")]
    assert known.of.tolist() == [0, 1, 2, 2, 2]
    assert known.members.tolist() == [[0, -1, -1], [1, -1, -1], [2, 3, 4]]
    assert known.rank.tolist() == [3, 2, 0, 1, 4]


def test_the_least_and_the_most_of_groups() -> None:
    known, of = layout(TOLD), np.random.default_rng(1).random((5, 5, 2))
    for told, best in ((known.least, np.min), (known.most, np.max)):
        for axis in (0, 1):
            each = [best(of.take(range(5)[s], axis=axis), axis=axis) for s in known.stages]
            np.testing.assert_array_equal(told(of, axis=axis), np.stack(each, axis=axis))
        np.testing.assert_array_equal(told(of[:, 0]), told(of)[:, 0])


def test_paths_are_counted_as_they_are_found_one_by_one() -> None:
    known, chance = layout(TOLD), np.random.default_rng(2)
    linked = chance.random((5, 5)) < 0.6
    np.fill_diagonal(linked, False)
    for spans, counted in enumerate(known.paths(linked), 1):
        expected = np.zeros_like(counted)
        for order in permutations(range(5), spans):
            if all(linked[hop] for hop in pairwise(order)):
                expected[tuple(known.of[list(order)])] += 1
        np.testing.assert_array_equal(counted, expected)
