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


def scipy_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The minimum for Platt's targets, written out."""
    num_images, num_classes = logits.shape
    targets = np.full(logits.shape, 1 / (num_images + 2) / (num_classes - 1))
    targets[np.arange(num_images), labels] = (num_images + 1) / (num_images + 2)

    def loss(log_t: float) -> float:
        return float(-(targets * scipy.special.log_softmax(logits / math.exp(log_t), axis=1)).sum())

    bounds = (math.log(0.05), math.log(20))
    return math.exp(scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9}).x)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0, 15.0])
def test_the_minimum_is_scipys(seed: int, temperature: float) -> None:
    logits, labels = draw_rows(seed, temperature)
    fitted = calibration.fit_temperature(logits, labels)
    assert fitted == pytest.approx(scipy_temperature(logits, labels), rel=1e-5)
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


def test_constants_per_row_and_float32_do_not_matter() -> None:
    logits, labels = draw_rows(1, 2.0)
    shifted = logits + np.random.default_rng(0).normal(size=(len(labels), 1)) * 1000
    expected = calibration.fit_temperature(logits, labels)
    assert calibration.fit_temperature(shifted, labels) == pytest.approx(expected, rel=1e-8)
    assert calibration.fit_temperature(logits.astype(np.float32), labels) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("num_images", [10, 1000])
def test_when_every_picture_is_right_it_claims_what_their_number_allows(num_images: int) -> None:
    labels = np.arange(num_images) % 2
    logits = np.eye(2)[labels]
    probs = calibration.apply_temperature(logits, calibration.fit_temperature(logits, labels))
    assert probs.max(axis=1) == pytest.approx((num_images + 1) / (num_images + 2), rel=1e-4)


def test_a_part_of_many_rows_sets_the_temperature() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 1000)
    logits = (2 * np.eye(4)[labels] + rng.normal(0, 2, (1000, 4))).astype(np.float32)
    assert calibration.fit_temperature_to_part(logits, labels, 4000) == calibration.fit_temperature(logits, labels)
    expected = calibration.fit_temperature(logits[::3], labels[::3])
    assert calibration.fit_temperature_to_part(logits, labels, 1500) == expected


def test_the_bounds_hold() -> None:
    wrong = np.array([[5.0, 0], [0, 5.0]])
    assert calibration.fit_temperature(wrong, [1, 0]) == calibration.MAX_TEMPERATURE
    assert calibration.fit_temperature(np.eye(2) / 1000, [0, 1]) == calibration.MIN_TEMPERATURE


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
    ("logits", "labels", "message"),
    [
        ([[0.0, np.nan]], [0], "logits has nan or infinity in row 0 (1 of 1 rows)"),
        ([[0.0, np.inf]], [0], "logits has nan or infinity in row 0"),
        ([0.0, 1.0], [0], "logits is float64 (2,). Expected numbers (N, K)"),
        (np.zeros((0, 2)), [], "logits is float64 (0, 2)."),
        ([[0.0, 1.0]], [2], "labels holds 2 in row 0"),
        ([[0.0, 1.0]], [0, 1], "labels has 2 rows and logits has 1"),
    ],
)
def test_bad_input_is_named(logits: object, labels: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        calibration.fit_temperature(logits, labels)  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_bad_temperatures_are_named(temperature: float) -> None:
    with pytest.raises(ConfigError, match="Expected a number over 0"):
        calibration.apply_temperature([[0.0, 1.0]], temperature)
