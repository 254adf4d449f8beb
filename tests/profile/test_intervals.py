import numpy as np
import pytest

from diffusion_edge.profile import intervals


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # p = (right + 2) / (n + 4), and p -+ 1.96 sqrt(p (1 - p) / (n + 3))
    [(50, 100, 0.4034, 0.5966), (20, 20, 0.8037, 1.0), (0, 20, 0.0, 0.1963)],
)
def test_the_mean_of_zeros_and_ones(right: int, n: int, low: float, high: float) -> None:
    found = intervals.of_mean([1.0] * right + [0.0] * (n - right))
    assert found == pytest.approx((low, high), abs=1e-4)


def share_that_hold(draws: int, n: int) -> tuple[float, float]:
    """How often intervals hold the truth, for a mean and for a ratio of paired scores."""
    rng = np.random.default_rng(0)
    held = np.zeros(2)
    for _ in range(draws):
        reference = rng.integers(6, 11, n) / 10  # mean 0.8
        ours = reference - rng.integers(0, 3, n) / 10  # mean 0.7
        low, high = intervals.of_mean(list(ours))
        held[0] += low <= 0.7 <= high
        low, high = intervals.of_ratio(list(ours), list(reference))
        held[1] += low <= 0.7 / 0.8 <= high
    return float(held[0] / draws), float(held[1] / draws)


@pytest.mark.parametrize("n", [16, 64, 256])
def test_they_hold_the_truth_about_as_often_as_they_say(n: int) -> None:
    of_mean, of_ratio = share_that_hold(600, n)
    assert of_mean >= 0.93  # the made-up scores make it wide where there are few others
    assert 0.91 <= of_ratio <= 0.98


def test_pairing_makes_a_ratio_certain() -> None:
    rng = np.random.default_rng(1)
    reference = rng.random(50) + 0.1
    low, high = intervals.of_ratio(list(0.9 * reference), list(reference))
    assert low == pytest.approx(0.9)
    assert high == pytest.approx(0.9)
    apart = intervals.of_ratio(list(0.9 * rng.permutation(reference)), list(reference))
    assert apart[1] - apart[0] > 0.1
