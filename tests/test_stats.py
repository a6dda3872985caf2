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


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(12, 2, 14), (0, 0, 50), (9, 3, 74), (7, 0, 300)])
def test_paired_difference_is_where_the_score_test_turns(only_a: int, only_b: int, n: int) -> None:
    def log_likelihood(frac_only_b: np.ndarray, difference: float) -> np.ndarray:
        fracs = frac_only_b + difference, frac_only_b, 1 - 2 * frac_only_b - difference
        with np.errstate(divide="ignore", invalid="ignore"):
            return sum(
                np.where(count > 0, count * np.log(f), 0)
                for count, f in zip((only_a, only_b, n - only_a - only_b), fracs, strict=True)
            )

    low, high = stats.paired_difference_interval(only_a, only_b, n)
    for limit in (low, high):  # by search: the likeliest rates with this difference, and the score test against it
        grid = np.linspace(max(0.0, -limit), (1 - limit) / 2, 400_001)[1:-1]
        best = grid[np.argmax(log_likelihood(grid, limit))]
        variance = n * (2 * best + limit - limit**2)
        assert abs(only_a - only_b - n * limit) / math.sqrt(variance) == pytest.approx(1.95996, abs=2e-3)


def test_paired_difference_refuses_what_does_not_fit() -> None:
    with pytest.raises(DataError, match="no paired counts"):
        stats.paired_difference_interval(3, 3, 5)


def count_covered(trials: int, draw: object) -> float:
    return float(np.mean([draw() for _ in range(trials)]))  # type: ignore[operator]


@pytest.mark.parametrize(("accuracy", "gap", "n"), [(0.7, 0.02, 100), (0.95, 0.02, 50), (0.99, 0.005, 50)])
def test_paired_difference_covers_where_the_bootstrap_fails(accuracy: float, gap: float, n: int) -> None:
    rng = np.random.default_rng(0)
    only_b = (1 - accuracy) / 2
    fracs = only_b + gap, only_b, 1 - 2 * only_b - gap

    def draw() -> bool:
        a, b, _ = rng.multinomial(n, fracs)
        low, high = stats.paired_difference_interval(int(a), int(b), n)
        return bool(low <= gap <= high)

    assert count_covered(500, draw) > 0.92


def test_score_interval_of_a_proportion_is_wilsons() -> None:
    assert stats.score_interval(0.9, 50) == pytest.approx(stats.wilson_interval(45, 50))
    assert stats.score_interval(1.0, 50) == pytest.approx(stats.wilson_interval(50, 50))
    with pytest.raises(DataError, match="Expected a value in 0 .. 1"):
        stats.score_interval(1.1, 50)


def test_weighted_rates() -> None:
    one = stats.weighted_rate_interval([90], [100], [1.0])
    assert one == pytest.approx(stats.wilson_interval(90, 100), abs=0.005)
    low, high = stats.weighted_rate_interval([25, 25], [25, 25], [0.5, 0.5])
    assert high == 1
    assert low == pytest.approx(stats.wilson_interval(50, 50)[0], abs=0.005)
    rare = stats.weighted_rate_interval([900, 9], [1000, 10], [0.5, 0.5])
    assert rare[1] - rare[0] > 1.5 * (one[1] - one[0])  # the class of ten decides


@pytest.mark.parametrize("accuracy", [0.8, 0.99])
def test_intervals_over_classes_cover(accuracy: float) -> None:
    """Two classes of about 25 pictures: a bootstrap covers the mean recall and the macro F1 in 40 % at 0.99."""
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(400):
        labels = rng.integers(0, 2, 50)
        guess = np.where(rng.random(50) < accuracy, labels, 1 - labels)
        confusion = np.bincount(2 * labels + guess, minlength=4).reshape(2, 2)
        recall = stats.weighted_rate_interval(confusion.diagonal(), confusion.sum(axis=1), [0.5, 0.5])
        f1 = stats.macro_f1_interval(confusion)
        covered.append([low <= accuracy <= high for low, high in (recall, f1)])
    assert np.mean(covered, axis=0).min() > 0.9


def test_macro_f1_interval_of_many_pictures_is_that_of_a_bootstrap() -> None:
    confusion = np.array([[800, 60, 10], [30, 300, 20], [5, 45, 130]])
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(confusion.sum(), confusion.ravel() / confusion.sum(), 4000).reshape(-1, 3, 3)
    f1 = 2 * drawn.diagonal(axis1=1, axis2=2) / (drawn.sum(axis=1) + drawn.sum(axis=2))
    expected = np.quantile(f1.mean(axis=1), [0.025, 0.975])
    assert stats.macro_f1_interval(confusion) == pytest.approx(tuple(expected), abs=0.002)
    assert stats.macro_f1_interval([[7, 0], [0, 0]])[1] == 1.0


def test_difference_interval_is_newcombes() -> None:
    # Newcombe 1998, table II, method 10: 56/70 and 48/80.
    low, high = stats.difference_interval(
        56 / 70, stats.wilson_interval(56, 70), 48 / 80, stats.wilson_interval(48, 80)
    )
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def draw_binary(rng: np.random.Generator, n: int, sureness: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Calibrated probabilities (n, 2), losses (n,) and what the losses are on average."""
    stated = 0.5 + 0.5 * rng.beta(2 * sureness, 2 * (1 - sureness), n)
    probs = np.stack([stated, 1 - stated], axis=1).clip(1e-6, 1)
    losses = np.where(rng.random(n) < stated, -np.log(probs[:, 0]), -np.log(probs[:, 1]))
    return probs, losses, -(probs * np.log(probs)).sum(axis=1)


@pytest.mark.parametrize("sureness", [0.6, 0.98])
def test_log_loss_interval_covers_though_no_mistake_was_seen(sureness: float) -> None:
    rng = np.random.default_rng(2)
    truth = draw_binary(rng, 200_000, sureness)[2].mean()
    covered = []
    for _ in range(500):
        probs, losses, _ = draw_binary(rng, 50, sureness)
        low, high = stats.log_loss_interval(losses, probs)
        assert low <= losses.mean() <= high
        covered.append(low <= truth <= high)
    assert 0.92 < np.mean(covered) < 0.995


def test_paired_log_loss_interval_covers_though_no_mistake_was_seen() -> None:
    rng = np.random.default_rng(3)

    def draw(n: int) -> tuple[np.ndarray, ...]:
        probs_a, _, _ = draw_binary(rng, n, 0.98)
        powers = probs_a**0.7
        probs_b = powers / powers.sum(axis=1, keepdims=True)
        wrong = (rng.random(n) > probs_a[:, 0]).astype(int)
        rows = np.arange(n)
        return -np.log(probs_a[rows, wrong]), -np.log(probs_b[rows, wrong]), probs_a, probs_b

    many = draw(400_000)
    truth = (many[0] - many[1]).mean()
    intervals = np.array([stats.paired_log_loss_interval(*draw(50)) for _ in range(400)])
    assert ((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).mean() > 0.92
    same = draw(50)
    assert stats.paired_log_loss_interval(same[0], same[0], same[2], same[2]) == (0, 0)


def test_median_interval_has_binomial_ranks() -> None:
    values = np.random.default_rng(0).permutation(50.0 + np.arange(50))
    assert stats.median_interval(values) == (50 + 17, 50 + 32)  # the 18th and the 33rd, as in tables
    assert stats.median_interval([3.0]) == (3, 3)
    assert stats.median_interval([3.0, 1.0, 2.0]) == (1, 3)


def test_holm_steps_down() -> None:
    # Raw p-values in any order; R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    np.testing.assert_allclose(stats.correct_holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(stats.correct_holm([0.9, 0.8]), [1, 1])


@pytest.mark.parametrize(("only_a", "only_b"), [(0.05, 0.03), (0.02, 0.01), (0.2, 0.05)])
@pytest.mark.parametrize("level", [0.05, 0.005])
def test_mcnemar_size_gives_the_power_it_says(only_a: float, only_b: float, level: float) -> None:
    n = stats.compute_mcnemar_size(only_a, only_b, 0.8, level)
    assert n is not None
    drawn = np.random.default_rng(0).multinomial(n, [only_a, only_b, 1 - only_a - only_b], 3000)
    fewer, total = drawn[:, :2].min(axis=1), drawn[:, :2].sum(axis=1)
    found = np.minimum(1, 2 * reference.binom.cdf(fewer, total, 0.5)) < level
    assert 0.77 < found.mean() < 0.86  # three standard errors about 0.8; whole counts give a little more


def test_mcnemar_size_of_equals_is_none() -> None:
    assert stats.compute_mcnemar_size(0.02, 0.02) is None
    assert stats.compute_mcnemar_size(0, 0) is None
