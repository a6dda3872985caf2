"""Temperature scaling against scipy's minimiser and against data with a known temperature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from headstart import calibration, metrics
from headstart.errors import ConfigError, DataError


def draw_rows(seed: int, temperature: float, n: int = 400, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that follow softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k)) * 2 * temperature
    probs = scipy.special.softmax(logits / temperature, axis=1)
    return logits, (probs.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=k - 1)


def scipy_temperature(logits: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> float:
    def loss(log_t: float) -> float:
        log_probs = scipy.special.log_softmax(logits / math.exp(log_t), axis=1)
        return float(-(weight * log_probs[np.arange(len(labels)), labels]).sum())

    bounds = (math.log(0.05), math.log(20))
    return math.exp(scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9}).x)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0, 15.0])
def test_the_minimum_is_scipys(seed: int, temperature: float) -> None:
    logits, labels = draw_rows(seed, temperature)
    weight = np.random.default_rng(seed).random(len(labels))
    for sample_weight in (None, weight):
        used = np.ones(len(labels)) if sample_weight is None else weight
        fitted = calibration.fit_temperature(logits, labels, sample_weight)
        assert fitted == pytest.approx(scipy_temperature(logits, labels, used), rel=1e-5)
        assert fitted == pytest.approx(temperature, rel=0.35)


def test_the_minimum_takes_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = 0
    softmax = calibration._softmax

    def count(scores: np.ndarray) -> np.ndarray:
        nonlocal passes
        passes += 1
        return softmax(scores)

    monkeypatch.setattr(calibration, "_softmax", count)
    calibration.fit_temperature(*draw_rows(0, 6.0))
    assert passes <= 15  # bisection alone needs over 30


def test_a_weight_is_a_repetition_and_zero_leaves_out() -> None:
    logits, labels = draw_rows(0, 2.0, n=50)
    counts = np.arange(50) % 3
    repeated = calibration.fit_temperature(np.repeat(logits, counts, axis=0), np.repeat(labels, counts))
    assert calibration.fit_temperature(logits, labels, counts) == pytest.approx(repeated, rel=1e-8)


def test_constants_per_row_and_float32_do_not_matter() -> None:
    logits, labels = draw_rows(1, 2.0)
    shifted = logits + np.random.default_rng(0).normal(size=(len(labels), 1)) * 1000
    expected = calibration.fit_temperature(logits, labels)
    assert calibration.fit_temperature(shifted, labels) == pytest.approx(expected, rel=1e-8)
    assert calibration.fit_temperature(logits.astype(np.float32), labels) == pytest.approx(expected, rel=1e-4)


def test_when_every_picture_is_right_the_logits_stay() -> None:
    logits = np.array([[9.0, 0, 0], [0, 1, 0], [2, 2, 1]])  # the last is a tie with the label among the highest
    assert calibration.fit_temperature(logits, [0, 1, 0]) == 1.0
    assert calibration.fit_temperature(logits, [0, 1, 2], [1, 1, 0]) == 1.0
    assert calibration.fit_temperature(logits, [0, 1, 2]) != 1.0


def test_the_bounds_hold() -> None:
    wrong = np.array([[5.0, 0], [0, 5.0]])
    assert calibration.fit_temperature(wrong, [1, 0]) == calibration.MAX_TEMPERATURE
    nearly = np.vstack([np.tile([100.0, 0], (1000, 1)), [[0.0001, 0]]])
    assert calibration.fit_temperature(nearly / 100, [0] * 1000 + [1]) == calibration.MIN_TEMPERATURE


def test_huge_logits_do_not_overflow() -> None:
    probs = calibration.apply_temperature([[1e30, 0.0, -1e30], [-1e300, -1e300, 0.0]], 0.05)
    np.testing.assert_array_equal(probs, [[1, 0, 0], [0, 0, 1]])
    assert math.isfinite(calibration.fit_temperature([[1e6, 0], [0, 1e6], [1e6, 0]], [0, 1, 1]))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
def test_apply_is_the_softmax_of_scipy(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(size=(20, 6)) * 30
    expected = scipy.special.softmax(logits / temperature, axis=1)
    np.testing.assert_allclose(calibration.apply_temperature(logits, temperature), expected, rtol=1e-12, atol=1e-300)


def test_scaling_repairs_an_overconfident_head() -> None:
    logits, labels = draw_rows(2, 4.0, n=3000)
    fitted = calibration.fit_temperature(logits[:1500], labels[:1500])
    before = metrics.compute_ece(labels[1500:], calibration.apply_temperature(logits[1500:], 1.0))
    after = metrics.compute_ece(labels[1500:], calibration.apply_temperature(logits[1500:], fitted))
    assert after < 0.05 < 0.15 < before


def test_chance_range_holds_the_error_of_calibrated_rows_and_not_of_others() -> None:
    inside = outside = 0
    for seed in range(60):
        logits, labels = draw_rows(seed, 1.0)
        for scale in (1.0, 2.0):
            probs = calibration.apply_temperature(logits * scale, 1.0)
            low, high = calibration.compute_chance_ece(probs, np.random.default_rng(seed), num_resamples=300)
            within = low <= metrics.compute_ece(labels, probs) <= high
            inside += within and scale == 1.0
            outside += not within and scale == 2.0
    assert inside >= 50  # 57 are expected; fewer than 50 has a chance of about 1 in 1000
    assert outside == 60


@pytest.mark.parametrize(
    ("logits", "labels", "weight", "message"),
    [
        ([[0.0, np.nan]], [0], None, "logits has nan or infinity in row 0 (1 of 1 rows)"),
        ([[0.0, np.inf]], [0], None, "logits has nan or infinity in row 0"),
        ([0.0, 1.0], [0], None, "logits is float64 (2,). Expected numbers (N, K)"),
        (np.zeros((0, 2)), [], None, "logits is float64 (0, 2)."),
        ([[0.0, 1.0]], [2], None, "labels holds 2 in row 0"),
        ([[0.0, 1.0]], [0, 1], None, "labels has 2 rows and logits has 1"),
        ([[0.0, 1.0]], [0], [1.0, 2.0], "sample_weight has shape (2,). Expected one weight per picture, (1,)."),
        ([[0.0, 1.0]], [0], [-1.0], "sample_weight holds negative values"),
        ([[0.0, 1.0]], [0], [0.0], "only zeros"),
    ],
)
def test_bad_input_is_named(logits: object, labels: object, weight: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        calibration.fit_temperature(logits, labels, weight)  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_bad_temperatures_are_named(temperature: float) -> None:
    with pytest.raises(ConfigError, match="Expected a number over 0"):
        calibration.apply_temperature([[0.0, 1.0]], temperature)
