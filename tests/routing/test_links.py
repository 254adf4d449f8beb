from __future__ import annotations

import random
from math import exp, log

import pytest

from diffusion_edge.routing.links.candidates import (
    SHORTEST_S,
    Candidate,
    Harmonic,
    Hop,
    Kalman,
    Smoothed,
    miss,
)
from diffusion_edge.routing.links.estimate import (
    BELIEFS,
    NEUTRAL,
    STALE_S,
    WINDOW,
    LinkEstimate,
    candidates,
)
from diffusion_edge.routing.links.learned import FILE, Learned, trained_on, weights
from diffusion_edge.routing.links.probes import QUIET_S, SHARE, SMALL, probe_bytes
from diffusion_edge.view import Link

SIZES = (2_224, 3_248, 17_000, 66_000, 132_000)
LARGE = 1_050_000
NAMES = ("last", "ewma", "harmonic", "kalman", "learned")


def fed(
    estimate: LinkEstimate,
    link: Link,
    hops: int,
    noise: float = 0.0,
    sizes: tuple[int, ...] = SIZES,
    gap_s: float = 2.0,
) -> LinkEstimate:
    draw = random.Random(hops)
    for _ in range(hops):
        nbytes = draw.choice(sizes)
        seconds = link.transfer_s(nbytes) * exp(draw.gauss(0.0, noise))
        estimate = estimate.observe(nbytes, seconds, estimate.at + gap_s + seconds)
    return estimate


def off(estimate: LinkEstimate, link: Link, nbytes: int) -> float:
    """How far the logarithm of the predicted seconds is off."""
    return abs(log(estimate.predict(nbytes, estimate.at)[0] / link.transfer_s(nbytes)))


@pytest.mark.parametrize("link", [Link(1e6, 0.05), Link(5e4, 0.2), Link(2e7, 0.03)])
def test_delay_and_rate_are_told_apart_by_hops_of_several_sizes(link: Link) -> None:
    estimate = fed(LinkEstimate.start(Link(3e6, 0.01)), link, 60)
    assert off(estimate, link, LARGE) < 0.12  # eight times as large as any that was seen
    assert off(estimate, link, 100) < 0.12
    told = estimate.link(estimate.at)
    assert told.bytes_per_s == pytest.approx(link.bytes_per_s, rel=0.12)
    assert told.delay_s == pytest.approx(link.delay_s, rel=0.12)


def test_noise_leaves_larger_packets_right() -> None:
    link = Link(1e6, 0.05)
    estimate = fed(LinkEstimate.start(), link, 120, noise=0.1)
    assert off(estimate, link, LARGE) < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_every_candidate_learns_a_steady_link(name: str) -> None:
    link = Link(4e5, 0.04)
    state = candidates(NEUTRAL)[name]
    for index in range(80):
        nbytes = SIZES[index % len(SIZES)]
        seconds = link.transfer_s(nbytes)
        state = state.observe(Hop(nbytes, seconds, 2.0 * index + seconds))
    hop = Hop(66_000, link.transfer_s(66_000), 200.0)
    assert abs(miss(state.link(161.0), hop)) < 0.15


@pytest.mark.parametrize("guess", [None, Link(1e8, 0.001), Link(1e4, 1.0)])
def test_one_hop_overrules_the_first_guess(guess: Link | None) -> None:
    link = Link(1e6, 0.05)
    estimate = LinkEstimate.start(guess)
    assert estimate.link(0.0).bytes_per_s == pytest.approx((guess or NEUTRAL).bytes_per_s)
    estimate = estimate.observe(66_000, link.transfer_s(66_000), 1.0)
    assert off(estimate, link, 66_000) < 0.3


def test_a_link_is_stated_measured_and_then_stale() -> None:
    guess = Link(1e6, 0.05)
    assert LinkEstimate.start().view(5.0).known == "guessed"
    stated = LinkEstimate.start(guess).view(5.0)
    assert (stated.known, stated.hops, stated.age_s) == ("stated", 0, None)
    estimate = fed(LinkEstimate.start(guess), guess, 3)
    view = estimate.view(estimate.at + 1.5)
    assert (view.known, view.hops, view.age_s) == ("measured", 3, 1.5)
    assert estimate.view(estimate.at + STALE_S).known == "measured"
    assert estimate.view(estimate.at + STALE_S + 0.1).known == "stale"
    assert estimate.view(estimate.at + 1.5, stale_s=1.0).known == "stale"
    again = estimate.observe(3_000, 0.05, estimate.at + 2 * STALE_S)
    assert again.view(again.at).known == "measured"


def test_observing_makes_another_value() -> None:
    before = fed(LinkEstimate.start(), Link(1e6, 0.05), 5)
    told = before.predict(LARGE, before.at)
    before.observe(66_000, 9.0, before.at + 9.0)
    assert (before.hops, before.predict(LARGE, before.at)) == (5, told)


def test_what_is_kept_is_bounded() -> None:
    estimate = fed(LinkEstimate.start(), Link(1e6, 0.05), WINDOW + 20)
    assert (len(estimate.misses), len(estimate.beliefs)) == (WINDOW, BELIEFS)


@pytest.mark.parametrize(
    ("nbytes", "seconds", "at"),
    [(0, 1.0, 1.0), (10, -1.0, 1.0), (10, float("inf"), 1.0), (10, 1.0, float("nan"))],
)
def test_what_is_no_hop_is_refused(nbytes: int, seconds: float, at: float) -> None:
    with pytest.raises(ValueError, match="no hop"):
        LinkEstimate.start().observe(nbytes, seconds, at)


def test_a_hop_of_no_seconds_and_a_link_of_no_delay_are_taken() -> None:
    estimate = LinkEstimate.start(Link(1e6, 0.0)).observe(10, 0.0, 1.0).observe(10, 1.0, 0.5)
    middle_s, slow_s = estimate.predict(10, 2.0)
    assert SHORTEST_S / 2 < middle_s <= slow_s


@pytest.mark.parametrize("noise", [0.05, 0.3, 0.8])
def test_nine_in_ten_hops_lie_below_the_quantile(noise: float) -> None:
    link, draw = Link(1e6, 0.05), random.Random(3)
    estimate, below = LinkEstimate.start(link), []
    for _ in range(400):
        nbytes = draw.choice(SIZES)
        seconds = link.transfer_s(nbytes) * exp(draw.gauss(0.0, noise))
        below.append(seconds <= estimate.predict(nbytes, estimate.at + 1.0)[1])
        estimate = estimate.observe(nbytes, seconds, estimate.at + 1.0 + seconds)
    assert 0.87 <= sum(below) / len(below) <= 0.93


def test_the_quantile_is_as_wide_as_the_errors() -> None:
    link = Link(1e6, 0.05)
    calm, rough = (fed(LinkEstimate.start(link), link, 150, noise).slow for noise in (0.05, 0.5))
    assert 1.0 < calm < 1.2
    assert 1.5 < rough < 3.5


def test_the_chosen_one_follows_a_change_of_regime() -> None:
    fast, slow = Link(2e6, 0.03), Link(1e5, 0.1)
    estimate = fed(LinkEstimate.start(), fast, 60, noise=0.1)
    changed = fed(estimate, slow, 8)
    assert off(estimate, fast, 66_000) < 0.2
    assert off(estimate, slow, 66_000) > 2.0
    assert off(changed, slow, 66_000) < 0.5
    assert off(fed(changed, slow, 30), slow, 66_000) < 0.1


def test_weight_goes_to_who_was_right() -> None:
    """Noise around a steady mean: the last value is the worst guess, a long mean the best."""
    link = Link(1e6, 0.05)
    newest = fed(LinkEstimate.start(link), link, 150, noise=0.6).beliefs[-1]
    assert sum(newest.weights.values()) == pytest.approx(1.0)
    assert newest.weights["last"] < 0.05 < newest.weights["harmonic"]
    walk, estimate = random.Random(1), LinkEstimate.start(link)
    rate = 1e6
    for _ in range(150):  # a rate that wanders: the last value is right, a long mean is not
        rate *= exp(walk.gauss(0.0, 0.7))
        estimate = estimate.observe(66_000, 0.001 + 66_000 / rate, estimate.at + 100.0)
    weights_now = estimate.beliefs[-1].weights
    assert weights_now["last"] > weights_now["harmonic"]


def test_candidates_are_judged_by_what_was_known_when_the_hop_was_predicted() -> None:
    """Two hops predicted at once: the second one must not profit from the end of the first."""
    link = Link(1e6, 0.05)
    first = fed(LinkEstimate.start(link), link, 30)
    asked, slow_s = first.at, 40 * link.transfer_s(66_000)
    one = first.observe(66_000, slow_s, asked + slow_s)
    known = one.observe(66_000, slow_s, asked + 2 * slow_s + 0.5)
    unknown = one.observe(66_000, slow_s, asked + 2 * slow_s + 0.5, asked_at=asked)
    assert unknown.misses[-1] == pytest.approx(log(40), abs=0.1)
    assert known.misses[-1] < unknown.misses[-1] - 0.5
    assert unknown.losses["last"] > known.losses["last"]
    assert unknown.link(unknown.at) != known.link(known.at)  # the weights differ


def test_quiet_makes_a_kalman_filter_trust_the_next_hop_more() -> None:
    link = Link(1e6, 0.05)
    state: Kalman = Kalman(link, link)
    for index in range(40):
        state = state.observe(Hop(66_000, link.transfer_s(66_000), float(index)))
    slow = 3.0 * link.transfer_s(66_000)
    soon, late = (state.observe(Hop(66_000, slow, 40.0 + quiet)) for quiet in (0.0, 60.0))
    assert soon.guess.transfer_s(66_000) < late.guess.transfer_s(66_000) <= slow * 1.01


def test_the_last_value_explains_the_last_hop_and_a_mean_of_logs_a_share() -> None:
    link = Link(1e6, 0.05)
    hop = Hop(66_000, 4.0 * link.transfer_s(66_000), 1.0)
    last: Candidate = Smoothed(link, 1.0, hops=9).observe(hop)
    mean: Candidate = Smoothed(link, 0.5, hops=9).observe(hop)
    assert miss(last.link(1.0), hop) == pytest.approx(0.0, abs=1e-3)
    assert miss(mean.link(1.0), hop) == pytest.approx(log(2.0), abs=1e-3)


def test_a_window_forgets() -> None:
    fast, slow = Link(1e6, 0.05), Link(1e5, 0.05)
    state = Harmonic(fast, window=4, firm=0.03)
    for index, nbytes in enumerate((*SIZES, *SIZES)):
        state = state.observe(Hop(nbytes, slow.transfer_s(nbytes), float(index)))
    assert len(state.recent) == 4
    assert state.guess.transfer_s(66_000) == pytest.approx(slow.transfer_s(66_000), rel=0.05)


def test_the_learned_ones_weights_are_small_and_see_no_scale() -> None:
    from importlib import resources

    file = resources.files("diffusion_edge.routing.links").joinpath(FILE)
    assert len(file.read_bytes()) < 100_000
    assert trained_on()
    seen = []
    for times in (1, 8):  # sizes and rate eight times as large: the same signals
        state = Learned.start(Link(1e6 * times, 0.05), weights())
        for index, nbytes in enumerate(SIZES * 3):
            state = state.observe(Hop(nbytes * times, 0.1 + nbytes / 1e6, float(index)))
        signals = state.signals(20.0)
        seen.append((*signals[:6], *signals[7:]))
    assert seen[0] == pytest.approx(seen[1])


# ---------------------------------------------------------------------------- probes


def test_a_link_that_is_used_or_just_known_is_not_probed() -> None:
    estimate = fed(LinkEstimate.start(), Link(1e7, 0.05), 4)
    assert probe_bytes(estimate, LARGE, estimate.at + QUIET_S - 0.1) is None
    assert probe_bytes(LinkEstimate.start(at=100.0), LARGE, 101.0) is None
    assert probe_bytes(estimate, LARGE, estimate.at + 1000.0) is not None


@pytest.mark.parametrize("link", [Link(3e3, 0.2), Link(1e5, 0.05), Link(2e7, 0.03)])
def test_probes_take_at_most_one_percent_of_the_rate(link: Link) -> None:
    estimate = fed(LinkEstimate.start(link), link, 10, noise=0.3)
    began = now = estimate.at
    sent, sizes = 0, set()
    while now < began + 3600.0:
        asked = probe_bytes(estimate, LARGE, now)
        if asked is not None:
            seconds = link.transfer_s(asked)
            sent, sizes = sent + asked, sizes | {asked}
            estimate = estimate.observe(asked, seconds, now + seconds)
        now = max(now + 1.0, estimate.at)
        assert sent <= SHARE * link.bytes_per_s * (now - began)
    assert sent > 0
    assert SMALL in sizes
    assert max(sizes) <= max(LARGE, SMALL)
    assert len(sizes) > 1 or link.bytes_per_s < 1e4  # both small and large ones


def test_a_probe_that_was_tried_counts_as_use_whatever_came_of_it() -> None:
    estimate = fed(LinkEstimate.start(), Link(1e7, 0.05), 4)
    now = estimate.at + 1000.0
    assert probe_bytes(estimate, LARGE, now, tried_at=now - QUIET_S + 0.1) is None
    assert probe_bytes(estimate, LARGE, now, tried_at=now - 4 * QUIET_S) is not None
    assert probe_bytes(estimate, LARGE, now, tried_at=estimate.at - 5.0) == probe_bytes(
        estimate, LARGE, now
    )
    slow = LinkEstimate.start(
        Link(SMALL / SHARE / QUIET_S / 2, 0.1)
    )  # SMALL needs 40 quiet s or more
    assert probe_bytes(slow, SMALL, 1000.0, tried_at=970.0) is None
    assert probe_bytes(slow, SMALL, 1000.0, tried_at=500.0) == SMALL
