"""Temperature scaling: one number that makes the probabilities of a trained head mean what they say."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headstart.errors import ConfigError, DataError
from headstart.metrics import NUM_BINS, assign_bins, check_labels, check_probs
from headstart.stats import CONFIDENCE, NUM_RESAMPLES

FloatArray = npt.NDArray[np.float64]

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The temperature T that minimises the negative log likelihood of softmax(logits / T) (Guo et al. 2017).

    `logits` is (N, K), finite, of pictures that the head was not fitted on.
    The labelled class counts for (N + 1) / (N + 2) of a row and the others for the rest (Platt 1999, 2.2), so that a
    head without mistakes gets a temperature too: one that claims about as much as N right answers allow. T stays within
    0.05 .. 20.
    """
    scores = _check_logits(logits)
    true = check_labels(labels, scores.shape[1])
    if len(true) != len(scores):
        raise DataError(
            f"labels has {len(true)} rows and logits has {len(scores)}. Expected the same pictures in both."
        )
    scores = scores - scores.max(axis=1, keepdims=True)
    others = 1 / (len(true) + 2) / (scores.shape[1] - 1) if scores.shape[1] > 1 else 0.0
    label_scores = (1 - scores.shape[1] * others) * scores[np.arange(len(true)), true] + others * scores.sum(axis=1)
    return _minimise(scores, label_scores)


def fit_temperature_to_part(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], max_numbers: int) -> float:
    """The temperature by every n-th row, of about `max_numbers` logits in all: memory and time stay bounded."""
    step = -(-logits.size // max_numbers)
    return fit_temperature(logits[::step], labels[::step])


def _minimise(scores: FloatArray, label_scores: FloatArray) -> float:
    """Newton's method on s = ln T, kept inside a bracket of the minimum.

    With b = 1/T the loss is f(b) = mean_i (ln sum_k exp(b z_ik) - b z_iy), convex in b, with
    f'(b) = mean_i (E_i[z] - z_iy) and f''(b) = mean_i Var_i[z], both under softmax(b z_i). So f' changes its
    sign once, and db/ds = -b.
    """

    # Classes first: sums over them then run along memory, which for few classes takes a third of the time.
    by_class = np.ascontiguousarray(scores.T)
    squares = by_class**2

    def derivatives(log_t: float) -> tuple[float, float]:
        b = math.exp(-log_t)
        powers = np.exp(b * by_class)
        total = powers.sum(axis=0)
        mean = np.einsum("kn,kn->n", powers, by_class) / total
        variance = np.einsum("kn,kn->n", powers, squares) / total - mean**2
        return float((mean - label_scores).mean()), -b * float(variance.mean())

    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    if derivatives(low)[0] <= 0:
        return MIN_TEMPERATURE
    if derivatives(high)[0] >= 0:
        return MAX_TEMPERATURE
    current = 0.0
    for _ in range(100):
        slope, curvature = derivatives(current)
        if slope > 0:
            low = current
        else:
            high = current
        step = current - slope / curvature if curvature < 0 else math.inf
        following = step if low < step < high else (low + high) / 2
        if abs(following - current) < 1e-10:
            break
        current = following
    return math.exp(following)


def apply_temperature(logits: npt.ArrayLike, temperature: float) -> FloatArray:
    """softmax(logits / temperature), float64 (N, K). Large logits do not overflow."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"temperature is {temperature}. Expected a number over 0; 1 leaves the logits as they are.")
    scores = _check_logits(logits)
    return _softmax((scores - scores.max(axis=1, keepdims=True)) / temperature)


def compute_chance_ece(
    probs: npt.ArrayLike,
    rng: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    num_bins: int = NUM_BINS,
) -> tuple[float, float]:
    """The range of metrics.compute_ece for a classifier with these confidences that is perfectly calibrated.

    Every picture is taken as right with the probability it states, again and again: consistency resampling (Bröcker and
    Smith 2007). A measured error inside the range may be chance alone.
    """
    stated = np.clip(np.sort(check_probs(probs).max(axis=1).astype(np.float64)), 0, 1)
    starts = np.unique(assign_bins(stated, num_bins), return_index=True)[1]
    block = max(1, 2**19 // len(stated))
    values = []
    for start in range(0, num_resamples, block):
        right = rng.random((min(block, num_resamples - start), len(stated))) < stated
        values.append(np.abs(np.add.reduceat(stated - right, starts, axis=1)).sum(axis=1) / len(stated))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(values), [tail, 1 - tail])
    return float(low), float(high)


def _softmax(scores: FloatArray) -> FloatArray:
    """Rows of `scores` have a maximum of 0, so nothing overflows and every sum is at least 1."""
    powers = np.exp(scores)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float64)


def _check_logits(logits: npt.ArrayLike) -> FloatArray:
    array = np.asarray(logits)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "fiu":
        raise DataError(f"logits is {array.dtype} {array.shape}. Expected numbers (N, K), at least one row.")
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise DataError(
            f"logits has nan or infinity in row {int(np.argmax(bad))} ({bad.sum()} of {len(array)} rows). "
            "Expected finite numbers; check the features that went in."
        )
    return array.astype(np.float64)
