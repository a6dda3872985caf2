"""Figures of merit on plain arrays: `labels` int (N,), `predicted` int (N,), `probs` float (N, K).

Every public function checks its input and raises DataError for data and ConfigError for settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headstart.errors import ConfigError, DataError, raise_all

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

NUM_BINS = 15
SUM_TOLERANCE = 1e-3
LOG_LOSS_FLOOR = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Per class, in class order (K,), and their unweighted means over the classes where they are defined.

    A quotient 0/0 is nan: precision of a class never predicted, recall of a class without pictures, F1 of a class
    with neither. F1 is 2 TP / (2 TP + FP + FN), so it is 0, not nan, for a class that has pictures and is never found.
    """

    num_images: IntArray
    precision: FloatArray
    recall: FloatArray
    f1: FloatArray
    macro_precision: float
    macro_recall: float
    macro_f1: float


@dataclass(frozen=True, slots=True)
class ReliabilityBins:
    """Confidence against accuracy in M bins of equal width; bin m holds confidences in (edges[m], edges[m + 1]].

    `edges` is (M + 1,), the rest (M,). Mean confidence and accuracy of an empty bin are nan.
    """

    edges: FloatArray
    num_images: IntArray
    confidence: FloatArray
    accuracy: FloatArray


def check_labels(labels: npt.ArrayLike, num_classes: int, name: str = "labels") -> IntArray:
    """`labels` as int64 (N,), or DataError: not whole numbers, not one-dimensional, none, or not in 0 .. K - 1."""
    array = np.asarray(labels)
    if array.ndim != 1:
        raise DataError(f"{name} has shape {array.shape}. Expected one class number per picture, shape (N,).")
    if array.size == 0:
        raise DataError(f"{name} is empty: there is no picture to evaluate. Pass at least one.")
    if array.dtype.kind not in "iu":
        raise DataError(f"{name} holds {array.dtype} values. Expected whole class numbers, 0 to {num_classes - 1}.")
    outside = np.flatnonzero((array < 0) | (array >= num_classes))
    if outside.size:
        row = int(outside[0])
        raise DataError(
            f"{name} holds {array[row]} in row {row} ({outside.size} of {array.size} rows are out of range). "
            f"Expected 0 to {num_classes - 1}, as there are {num_classes} classes."
        )
    return array.astype(np.int64, copy=False)


def check_probs(probs: npt.ArrayLike, name: str = "probs") -> npt.NDArray[np.floating]:
    """`probs` as a float array (N, K), or DataError: wrong shape, nan, outside 0 .. 1, or rows that do not sum to 1.

    Rows may miss 1 by `SUM_TOLERANCE`, and single values may leave 0 .. 1 by as much. The values are not changed.
    """
    array = np.asarray(probs)
    if array.ndim != 2:
        raise DataError(f"{name} has shape {array.shape}. Expected one row per picture, shape (N, K).")
    if array.size == 0:
        raise DataError(f"{name} has shape {array.shape}: there is nothing to evaluate. Pass at least one picture.")
    if array.dtype.kind != "f":
        raise DataError(f"{name} holds {array.dtype} values. Expected floats between 0 and 1.")
    sums = array.sum(axis=1, dtype=np.float64)
    bad_value = ~((array >= -SUM_TOLERANCE) & (array <= 1 + SUM_TOLERANCE)).all(axis=1)  # true for nan as well
    bad_sum = ~bad_value & (np.abs(sums - 1) > SUM_TOLERANCE)
    problems = []
    if bad_value.any():
        row = int(np.argmax(bad_value))
        wrong = array[row][~((array[row] >= -SUM_TOLERANCE) & (array[row] <= 1 + SUM_TOLERANCE))][0]
        problems.append(
            f"{name} holds {wrong} in row {row} ({bad_value.sum()} of {len(array)} rows have such values). "
            "Expected probabilities from 0 to 1; for logits call apply_temperature first."
        )
    if bad_sum.any():
        row = int(np.argmax(bad_sum))
        problems.append(
            f"{name} sums to {sums[row]:.6g} in row {row} ({bad_sum.sum()} of {len(array)} rows miss 1). "
            f"Expected every row to sum to 1 within {SUM_TOLERANCE}."
        )
    raise_all(DataError, problems)
    return array


def compute_accuracy(labels: npt.ArrayLike, predicted: npt.ArrayLike, num_classes: int) -> float:
    """The fraction of pictures whose predicted class is the labelled one."""
    true, guess = _check_pair(labels, predicted, num_classes)
    return float((true == guess).mean())


def compute_balanced_accuracy(labels: npt.ArrayLike, predicted: npt.ArrayLike, num_classes: int) -> float:
    """The mean recall of the classes that have pictures; classes without any are left out."""
    return compute_precision_recall_f1(labels, predicted, num_classes).macro_recall


def compute_confusion_matrix(labels: npt.ArrayLike, predicted: npt.ArrayLike, num_classes: int) -> IntArray:
    """Counts (K, K): row = labelled class, column = predicted class."""
    true, guess = _check_pair(labels, predicted, num_classes)
    counts = np.bincount(true * num_classes + guess, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64, copy=False)


def compute_precision_recall_f1(labels: npt.ArrayLike, predicted: npt.ArrayLike, num_classes: int) -> ClassScores:
    """Precision TP / (TP + FP), recall TP / (TP + FN) and F1 of every class; see ClassScores for 0/0."""
    true, guess = _check_pair(labels, predicted, num_classes)
    num_true = np.bincount(true, minlength=num_classes)
    num_predicted = np.bincount(guess, minlength=num_classes)
    num_right = np.bincount(true[true == guess], minlength=num_classes)
    precision = _divide(num_right, num_predicted)
    recall = _divide(num_right, num_true)
    f1 = _divide(2 * num_right, num_true + num_predicted)
    # N >= 1, so at least one class is labelled and one predicted: no mean is over nothing.
    means = [float(np.nanmean(values)) for values in (precision, recall, f1)]
    return ClassScores(num_true.astype(np.int64, copy=False), precision, recall, f1, *means)


def compute_log_loss(labels: npt.ArrayLike, probs: npt.ArrayLike) -> float:
    """The mean of -ln(probability of the labelled class), in nats.

    Probabilities under `LOG_LOSS_FLOOR` (2**-23, float32's epsilon) count as that, so one picture costs at most 15.94.
    """
    true, checked = _check_rows(labels, probs)
    return float(compute_losses(true, checked).mean())


def compute_losses(labels: IntArray, probs: npt.NDArray[np.floating]) -> FloatArray:
    """The loss of every picture (N,), as in compute_log_loss; the arguments are taken as checked."""
    chosen = probs[np.arange(len(labels)), labels].astype(np.float64)
    return -np.log(np.clip(chosen, LOG_LOSS_FLOOR, 1.0))


def compute_top_k_accuracy(labels: npt.ArrayLike, probs: npt.ArrayLike, k: int) -> float:
    """The fraction of pictures whose labelled class is among the `k` most probable; in a tie the lower one is first."""
    true, checked = _check_rows(labels, probs)
    num_classes = checked.shape[1]
    if not 1 <= k <= num_classes:
        raise ConfigError(f"k is {k}. Expected 1 to {num_classes}, the number of classes.")
    chosen = checked[np.arange(len(true)), true][:, None]
    before = (checked > chosen) | ((checked == chosen) & (np.arange(num_classes) < true[:, None]))
    return float((before.sum(axis=1) < k).mean())


def compute_reliability_bins(labels: npt.ArrayLike, probs: npt.ArrayLike, num_bins: int = NUM_BINS) -> ReliabilityBins:
    """Count, mean confidence and accuracy in `num_bins` bins of equal width over 0 .. 1.

    The confidence is the probability of the predicted class (Guo et al. 2017, "On Calibration of Modern Neural
    Networks", section 2).
    """
    true, checked = _check_rows(labels, probs)
    _check_num_bins(num_bins)
    confidence = checked.max(axis=1).astype(np.float64)
    bins = assign_bins(confidence, num_bins)
    counts = np.bincount(bins, minlength=num_bins)
    return ReliabilityBins(
        edges=np.arange(num_bins + 1) / num_bins,
        num_images=counts.astype(np.int64, copy=False),
        confidence=_divide(np.bincount(bins, weights=confidence, minlength=num_bins), counts),
        accuracy=_divide(np.bincount(bins, weights=checked.argmax(axis=1) == true, minlength=num_bins), counts),
    )


def compute_ece(labels: npt.ArrayLike, probs: npt.ArrayLike, num_bins: int = NUM_BINS) -> float:
    """The expected calibration error: sum over bins of (bin's count / N) |accuracy - mean confidence|, 0 to 1.

    Source: Guo et al. 2017, equation 3. Chance alone makes it positive; calibration.compute_chance_ece says how much.
    """
    bins = compute_reliability_bins(labels, probs, num_bins)
    gaps = np.abs(bins.accuracy - bins.confidence)
    return float(np.nansum(gaps * bins.num_images) / bins.num_images.sum())


def assign_bins(confidence: FloatArray, num_bins: int = NUM_BINS) -> IntArray:
    """The bin (N,) of every confidence: m for a value in (m / M, (m + 1) / M]."""
    bins = np.ceil(confidence * num_bins).astype(np.int64) - 1
    return np.clip(bins, 0, num_bins - 1)


def _check_pair(labels: npt.ArrayLike, predicted: npt.ArrayLike, num_classes: int) -> tuple[IntArray, IntArray]:
    if num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes}. Expected at least 1.")
    true = check_labels(labels, num_classes)
    guess = check_labels(predicted, num_classes, "predicted")
    if len(true) != len(guess):
        raise DataError(
            f"labels has {len(true)} rows and predicted has {len(guess)}. Expected the same pictures in both."
        )
    return true, guess


def _check_rows(labels: npt.ArrayLike, probs: npt.ArrayLike) -> tuple[IntArray, npt.NDArray[np.floating]]:
    checked = check_probs(probs)
    true = check_labels(labels, checked.shape[1])
    if len(true) != len(checked):
        raise DataError(
            f"labels has {len(true)} rows and probs has {len(checked)}. Expected the same pictures in both."
        )
    return true, checked


def _check_num_bins(num_bins: int) -> None:
    if num_bins < 1:
        raise ConfigError(f"num_bins is {num_bins}. Expected at least 1; {NUM_BINS} is usual.")


def _divide(part: npt.ArrayLike, whole: npt.ArrayLike) -> FloatArray:
    """part / whole, nan where whole is 0."""
    top, bottom = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    quotients: FloatArray = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
    return quotients
