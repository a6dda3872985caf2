"""Intervals and tests: how far to trust a number that comes from a limited number of pictures."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from headstart.errors import ConfigError, DataError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
NUM_RESAMPLES = 1000
_DRAWS_AT_ONCE = 2**19  # 4 MiB of row numbers: stays in the processor's cache


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The score interval for a proportion `successes / n` (Wilson 1927), within 0 .. 1.

    It stays useful where the usual one fails: for few pictures and for proportions near 0 and 1.
    Raises DataError unless 0 <= successes <= n and n >= 1.
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"{successes} of {n} is not a proportion. Expected n >= 1 and 0 <= successes <= n.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    frac = successes / n
    middle = (frac + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(frac * (1 - frac) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == n else min(1.0, middle + half)
    return low, high


def count_for_half_width(frac: float, half_width: float, confidence: float = CONFIDENCE) -> int:
    """How many pictures give a proportion of about `frac` a Wilson interval of at most +/- `half_width`, above 0."""

    def is_enough(n: int) -> bool:
        low, high = wilson_interval(round(frac * n), n, confidence)
        return high - low <= 2 * half_width

    most = 1
    while not is_enough(most):
        most *= 2
    return bisect.bisect_left(range(most + 1), True, lo=1, key=is_enough)


def bootstrap_interval(
    statistic: Callable[[IntArray], FloatArray],
    num_rows: int,
    rng: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    estimate: npt.ArrayLike | None = None,
) -> FloatArray:
    """The percentile interval (Efron 1979) of one or several statistics of N rows.

    `statistic` gets row numbers (B, N), B resamples at once, and returns (B,) or, for S statistics of the same
    resamples, (B, S). The result is (2,), low and high, or (S, 2). It is called on blocks that together make
    `num_resamples`; a value of nan is left out.

    With `estimate`, the statistics of the rows themselves, () or (S,), the percentiles are mirrored at it: the basic
    interval (Davison and Hinkley 1997, section 5.2), widened to hold the estimate. It is the right one for a statistic
    that resampling biases, as it does macro F1 with few pictures a class, or the calibration error.

    Rows are drawn with replacement from all rows, not class by class: the pictures are taken as a random sample, their
    class counts included, as the Wilson interval of the accuracy takes them. A resample may therefore miss a rare
    class, and the interval is slightly wider than one with fixed counts. Rows that are not independent (ten pictures of
    one animal) make any such interval too narrow.
    """
    _check_confidence(confidence)
    if num_rows < 1:
        raise DataError("There is no row to draw from. Pass at least one picture.")
    if num_resamples < 1:
        raise ConfigError(f"num_resamples is {num_resamples}. Expected at least 1; {NUM_RESAMPLES} is usual.")
    block = max(1, _DRAWS_AT_ONCE // num_rows)
    values = [
        statistic(rng.integers(0, num_rows, size=(min(block, num_resamples - start), num_rows)))
        for start in range(0, num_resamples, block)
    ]
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(np.concatenate(values), [tail, 1 - tail], axis=0)
    if estimate is not None:
        middle = np.asarray(estimate, np.float64)
        low, high = np.minimum(middle, 2 * middle - high), np.maximum(middle, 2 * middle - low)
    return np.stack([low, high], axis=-1)


def mcnemar_exact(correct_a: npt.ArrayLike, correct_b: npt.ArrayLike) -> float:
    """The two-sided p-value that two classifiers are right equally often on the same pictures (McNemar 1947).

    `correct_a` and `correct_b` are bool (N,). Only pictures on which exactly one is right count; of those, each falls
    to either side with probability 1/2 if the classifiers are equal: an exact binomial test. 1.0 when there are none.
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if a.shape != b.shape or a.ndim != 1 or a.dtype != np.bool_ or b.dtype != np.bool_:
        raise DataError(
            f"Got {a.dtype} {a.shape} and {b.dtype} {b.shape}. Expected two bool arrays (N,) about the same pictures."
        )
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    fewer, total = min(only_a, only_b), only_a + only_b
    if 2 * fewer == total:
        return 1.0
    # P(X <= fewer) for X ~ Binomial(total, 1/2): the last term, times the sum of the terms relative to it.
    last = math.lgamma(total + 1) - math.lgamma(fewer + 1) - math.lgamma(total - fewer + 1) - total * math.log(2)
    smaller = np.arange(fewer, 0, -1)
    relative = 1.0 + float(np.cumprod(smaller / (total - smaller + 1)).sum())
    return min(1.0, 2 * math.exp(last) * relative)


def format_percent(frac: float | None) -> str:
    """`99.3` for 0.993, "-" for None and nan. What is not 0 or 1 never reads as 0.0 or 100.0."""
    if frac is None or math.isnan(frac):
        return "-"
    for digits in range(1, 8):
        text = f"{100 * frac:.{digits}f}"
        if frac in (0.0, 1.0) or float(text) not in (0.0, 100.0):
            break
    return text


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}. Expected a fraction between 0 and 1, such as {CONFIDENCE}.")
