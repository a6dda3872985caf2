"""Intervals against scipy and against known coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats as reference

from headstart import stats
from headstart.errors import ConfigError, DataError


@pytest.mark.parametrize("n", [1, 2, 7, 100, 2000])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_equals_scipy(n: int, confidence: float) -> None:
    for successes in {0, 1, n // 3, n - 1, n}:
        expected = reference.binomtest(successes, n).proportion_ci(confidence, method="wilson")
        assert stats.wilson_interval(successes, n, confidence) == pytest.approx(tuple(expected), abs=1e-12)


def test_wilson_touches_0_and_1_exactly() -> None:
    assert stats.wilson_interval(0, 50)[0] == 0.0
    assert stats.wilson_interval(50, 50)[1] == 1.0
    assert stats.wilson_interval(1986, 2000) == pytest.approx((0.98829, 0.99582), abs=1e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_proportion(successes: int, n: int) -> None:
    with pytest.raises(DataError, match=f"{successes} of {n} is not a proportion"):
        stats.wilson_interval(successes, n)


@pytest.mark.parametrize("confidence", [0, 1, 95, math.nan])
def test_confidence_is_a_fraction(confidence: float) -> None:
    with pytest.raises(ConfigError, match="Expected a fraction between 0 and 1"):
        stats.wilson_interval(1, 2, confidence)
    with pytest.raises(ConfigError, match="Expected a fraction between 0 and 1"):
        stats.bootstrap_interval(lambda rows: rows.mean(axis=1), 3, np.random.default_rng(0), confidence=confidence)


def test_bootstrap_of_a_mean_equals_its_normal_interval() -> None:
    values = np.random.default_rng(1).normal(5, 2, 2000)
    low, high = stats.bootstrap_interval(
        lambda rows: values[rows].mean(axis=1), 2000, np.random.default_rng(0), num_resamples=4000
    )
    half = 1.95996 * values.std() / math.sqrt(2000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06 * half)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        values = rng.random(100) < 0.7
        low, high = stats.bootstrap_interval(lambda rows, v=values: v[rows].mean(axis=1), 100, rng, 300, confidence=0.9)
        covered += bool(low <= 0.7 <= high)
    assert 0.84 < covered / 400 < 0.95  # four standard errors about 0.9


def test_bootstrap_draws_whole_resamples_in_blocks_and_is_repeatable() -> None:
    seen = []

    def statistic(rows: np.ndarray) -> np.ndarray:
        assert rows.shape[1] == 200_000
        assert rows.min() >= 0
        assert rows.max() < 200_000
        seen.append(len(rows))
        return np.stack([rows.mean(axis=1), np.full(len(rows), 7.0)], axis=1)

    first = stats.bootstrap_interval(statistic, 200_000, np.random.default_rng(5), num_resamples=7)
    assert sum(seen) == 7
    assert len(seen) > 1
    assert first.shape == (2, 2)
    assert first[0, 0] < first[0, 1]
    np.testing.assert_array_equal(first[1], [7, 7])
    again = stats.bootstrap_interval(statistic, 200_000, np.random.default_rng(5), num_resamples=7)
    np.testing.assert_array_equal(first, again)


def test_bootstrap_mirrors_at_an_estimate_and_holds_it() -> None:
    values = np.random.default_rng(1).exponential(size=50)

    def statistic(rows: np.ndarray) -> np.ndarray:
        means = values[rows].mean(axis=1)
        return np.stack([means, means + 9], axis=1)  # the second is biased by 9

    estimate = np.array([values.mean(), values.mean()])
    plain = stats.bootstrap_interval(statistic, 50, np.random.default_rng(5))
    basic = stats.bootstrap_interval(statistic, 50, np.random.default_rng(5), estimate=estimate)
    np.testing.assert_allclose(basic[0], 2 * values.mean() - plain[0, ::-1])
    np.testing.assert_allclose(basic[1], [2 * values.mean() - plain[1, 1], values.mean()])


def test_bootstrap_refuses_nothing_to_draw() -> None:
    with pytest.raises(DataError, match="no row to draw from"):
        stats.bootstrap_interval(lambda rows: rows.mean(axis=1), 0, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="num_resamples is 0"):
        stats.bootstrap_interval(lambda rows: rows.mean(axis=1), 3, np.random.default_rng(0), 0)


@pytest.mark.parametrize(
    ("only_a", "only_b"), [(0, 0), (1, 0), (0, 5), (3, 3), (4, 3), (10, 2), (60, 41), (9000, 8700), (0, 3000)]
)
def test_mcnemar_equals_the_exact_binomial_test(only_a: int, only_b: int) -> None:
    a = np.array([True] * only_a + [False] * only_b + [True, False] * 20)
    b = np.array([False] * only_a + [True] * only_b + [True, False] * 20)
    total = only_a + only_b
    expected = reference.binomtest(only_a, total).pvalue if total else 1.0
    assert stats.mcnemar_exact(a, b) == pytest.approx(expected, rel=1e-8, abs=1e-300)
    assert stats.mcnemar_exact(b, a) == stats.mcnemar_exact(a, b)


@pytest.mark.parametrize("other", [[True], [1, 0], [[True, False]]])
def test_mcnemar_refuses_other_arrays(other: list[bool]) -> None:
    with pytest.raises(DataError, match="Expected two bool arrays"):
        stats.mcnemar_exact([True, False], other)


@pytest.mark.parametrize(
    ("frac", "text"),
    [(0.993, "99.3"), (1.0, "100.0"), (0.0, "0.0"), (0.9999, "99.99"), (0.99996, "99.996"), (0.0003, "0.03"),
     (0.5, "50.0"), (None, "-"), (math.nan, "-")],
)  # fmt: skip
def test_percent_never_rounds_to_certainty(frac: float | None, text: str) -> None:
    assert stats.format_percent(frac) == text


@pytest.mark.parametrize(("frac", "half_width", "expected"), [(0.5, 0.01, 9600), (0.05, 0.01, 1825), (0.0, 0.01, 189)])
def test_count_for_half_width_is_the_first_that_is_enough(frac: float, half_width: float, expected: int) -> None:
    count = stats.count_for_half_width(frac, half_width)
    assert count == pytest.approx(expected, rel=0.02)
    low, high = stats.wilson_interval(round(frac * count), count)
    assert (high - low) / 2 <= half_width
