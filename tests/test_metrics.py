"""The figures against scikit-learn and against plain loops."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics as reference

from headstart import metrics
from headstart.errors import ConfigError, DataError


def make_rows(seed: int, n: int = 300, k: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(k, 0.4), n).clip(
        1e-5
    )  # above the floor of the log loss, which is not the reference's
    probs = (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32)
    labels = np.where(rng.random(n) < 0.6, probs.argmax(axis=1), rng.integers(0, k, n))
    return labels, probs


@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_scikit_learn(seed: int) -> None:
    labels, probs = make_rows(seed)
    guess = probs.argmax(axis=1)
    assert metrics.compute_accuracy(labels, guess, 7) == reference.accuracy_score(labels, guess)
    assert metrics.compute_balanced_accuracy(labels, guess, 7) == pytest.approx(
        reference.balanced_accuracy_score(labels, guess), abs=1e-12
    )
    assert (metrics.compute_confusion_matrix(labels, guess, 7) == reference.confusion_matrix(labels, guess)).all()
    exact = probs / probs.sum(axis=1, keepdims=True, dtype=np.float64)
    assert metrics.compute_log_loss(labels, probs) == pytest.approx(
        reference.log_loss(labels, exact, labels=range(7)), abs=1e-6
    )
    for k in (1, 2, 7):
        expected = reference.top_k_accuracy_score(labels, probs, k=k, labels=range(7)) if k < 7 else 1.0
        assert metrics.compute_top_k_accuracy(labels, probs, k) == pytest.approx(expected, abs=1e-12)
    scores = metrics.compute_precision_recall_f1(labels, guess, 7)
    expected = reference.precision_recall_fscore_support(labels, guess, zero_division=np.nan)
    for ours, theirs in zip((scores.precision, scores.recall, scores.f1, scores.num_images), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert scores.macro_f1 == pytest.approx(reference.f1_score(labels, guess, average="macro"), abs=1e-12)
    assert scores.macro_precision == pytest.approx(reference.precision_score(labels, guess, average="macro"), abs=1e-12)


def test_zero_over_zero_is_nan_and_left_out_of_the_means() -> None:
    # Class 2 has a picture and is never predicted; class 3 is predicted and has no picture; class 4 has neither.
    labels, guess = [0, 0, 1, 2], [0, 3, 1, 0]
    scores = metrics.compute_precision_recall_f1(labels, guess, 5)
    np.testing.assert_array_equal(scores.precision, [0.5, 1, np.nan, 0, np.nan])
    np.testing.assert_array_equal(scores.recall, [0.5, 1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(scores.f1, [0.5, 1, 0, 0, np.nan])
    assert scores.macro_f1 == 1.5 / 4
    assert scores.macro_f1 == reference.f1_score(labels, guess, average="macro", zero_division=0)
    assert metrics.compute_balanced_accuracy(labels, guess, 5) == 0.5
    np.testing.assert_array_equal(
        metrics.compute_confusion_matrix(labels, guess, 5),
        reference.confusion_matrix(labels, guess, labels=range(5)),
    )


def test_log_loss_is_capped() -> None:
    cap = -math.log(2**-23)
    assert metrics.compute_log_loss([1], [[1.0, 0.0]]) == cap == pytest.approx(15.942, abs=1e-3)
    assert metrics.compute_log_loss([1], [[1 - 1e-9, 1e-9]]) == cap
    assert metrics.compute_log_loss([0], [[1.0, 0.0]]) == 0


def loop_ece(labels: np.ndarray, probs: np.ndarray, num_bins: int) -> float:
    """Equation 3 of Guo et al. 2017, one bin and one picture at a time."""
    total = 0.0
    for m in range(num_bins):
        inside = [i for i in range(len(labels)) if m / num_bins < max(probs[i]) <= (m + 1) / num_bins]
        if inside:
            accuracy = sum(int(np.argmax(probs[i]) == labels[i]) for i in inside) / len(inside)
            confidence = sum(float(max(probs[i])) for i in inside) / len(inside)
            total += len(inside) / len(labels) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize(("seed", "num_bins"), [(0, 15), (1, 15), (2, 10), (3, 1)])
def test_ece_equals_a_loop_over_the_formula(seed: int, num_bins: int) -> None:
    labels, probs = make_rows(seed)
    assert metrics.compute_ece(labels, probs, num_bins) == pytest.approx(loop_ece(labels, probs, num_bins), abs=1e-9)


def test_reliability_bins_by_hand() -> None:
    probs = [[0.5, 0.5], [0.6, 0.4], [0.2, 0.8], [0.0, 1.0]]
    bins = metrics.compute_reliability_bins([1, 0, 1, 0], probs, num_bins=4)
    np.testing.assert_array_equal(bins.edges, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(bins.num_images, [0, 1, 1, 2])  # 0.5 is in (0.25, 0.5]
    np.testing.assert_allclose(bins.confidence, [np.nan, 0.5, 0.6, 0.9])
    np.testing.assert_allclose(bins.accuracy, [np.nan, 0, 1, 0.5])
    assert metrics.compute_ece([1, 0, 1, 0], probs, 4) == pytest.approx((0.5 + 0.4 + 2 * 0.4) / 4)


def test_ties_go_to_the_lower_class() -> None:
    probs = np.full((3, 3), 1 / 3)
    assert metrics.compute_top_k_accuracy([0, 1, 2], probs, 1) == pytest.approx(1 / 3)
    assert metrics.compute_top_k_accuracy([0, 1, 2], probs, 2) == pytest.approx(2 / 3)
    assert metrics.compute_top_k_accuracy([1], [[0.4, 0.4, 0.2]], 1) == 0


GOOD = [[0.5, 0.5], [0.9, 0.1]]


@pytest.mark.parametrize(
    ("labels", "probs", "message"),
    [
        ([], np.zeros((0, 2)), "probs has shape (0, 2): there is nothing to evaluate."),
        ([0, 1, 1], GOOD, "labels has 3 rows and probs has 2."),
        ([0, 2], GOOD, "labels holds 2 in row 1 (1 of 2 rows are out of range). Expected 0 to 1"),
        ([-1, 0], GOOD, "labels holds -1 in row 0"),
        ([0.0, 1.0], GOOD, "labels holds float64 values. Expected whole class numbers"),
        ([True, False], GOOD, "labels holds bool values"),
        ([[0], [1]], GOOD, "labels has shape (2, 1)."),
        ([0, 1], [0.5, 0.5], "probs has shape (2,). Expected one row per picture"),
        ([0, 1], [[0, 1], [1, 0]], "probs holds int64 values."),
        ([0, 1], [[0.5, 0.5], [np.nan, 0.5]], "probs holds nan in row 1"),
        ([0, 1], [[0.5, 0.5], [3.0, -2.0]], "probs holds 3.0 in row 1"),
        ([0, 1], [[0.5, 0.5], [0.6, 0.402]], "probs sums to 1.002 in row 1 (1 of 2 rows miss 1)."),
    ],
)
def test_bad_input_is_named(labels: list[int], probs: list[list[float]], message: str) -> None:
    for function in (metrics.compute_log_loss, metrics.compute_ece):
        with pytest.raises(DataError) as caught:
            function(labels, probs)
        assert message in str(caught.value)


def test_sums_within_the_tolerance_are_accepted() -> None:
    assert metrics.compute_log_loss([0], [[0.6, 0.4009]]) == pytest.approx(-math.log(0.6))


def test_bad_predictions_and_settings_are_named() -> None:
    with pytest.raises(DataError, match="labels is empty: there is no picture to evaluate"):
        metrics.compute_accuracy(np.zeros(0, int), np.zeros(0, int), 2)
    with pytest.raises(DataError, match="predicted holds 5 in row 0"):
        metrics.compute_accuracy([0], [5], 2)
    with pytest.raises(DataError, match="labels has 2 rows and predicted has 1"):
        metrics.compute_confusion_matrix([0, 1], [1], 2)
    with pytest.raises(ConfigError, match=r"k is 3\. Expected 1 to 2"):
        metrics.compute_top_k_accuracy([0, 1], GOOD, 3)
    with pytest.raises(ConfigError, match=r"num_bins is 0"):
        metrics.compute_ece([0, 1], GOOD, 0)
    with pytest.raises(ConfigError, match=r"num_classes is 0"):
        metrics.compute_accuracy([0], [0], 0)


def test_evaluating_imports_neither_scipy_nor_scikit_learn() -> None:
    code = (
        "import sys; import headstart.evaluation, headstart.summary, headstart.calibration; "
        "heavy = {'numpy', 'scipy', 'sklearn', 'pandas', 'pyarrow', 'rich'}; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['numpy']"
