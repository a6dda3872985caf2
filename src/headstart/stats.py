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


def paired_difference_interval(only_a: int, only_b: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The score interval of accuracy a minus accuracy b on the same n pictures (Tango 1998), within -1 .. 1.

    `only_a` pictures are right in a alone, `only_b` in b alone. Where few pictures tell the two apart, bootstrap
    intervals are far too narrow, of no width at all when there are none; this one covers the truth there too.
    """
    _check_confidence(confidence)
    if n < 1 or only_a < 0 or only_b < 0 or only_a + only_b > n:
        raise DataError(
            f"{only_a} and {only_b} of {n} pictures are no paired counts. Expected a sum of at most n >= 1."
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)

    def is_inside(difference: float) -> bool:
        """Whether the score test admits this difference; 2 n q^2 + b q + c = 0 gives its q = P(only b)."""
        b = -only_a - only_b + (2 * n - only_a + only_b) * difference
        c = -only_b * difference * (1 - difference)
        frac_only_b = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        variance = n * (2 * frac_only_b + difference * (1 - difference))
        return (only_a - only_b - n * difference) ** 2 <= z * z * max(variance, 0.0)

    def find_limit(outside: float) -> float:
        if is_inside(outside):
            return outside
        inside = (only_a - only_b) / n
        for _ in range(50):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
        return inside

    return find_limit(-1.0), find_limit(1.0)


def weighted_rate_interval(
    successes: npt.ArrayLike, counts: npt.ArrayLike, weights: npt.ArrayLike, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """The interval of sum_k w_k p_k for independent proportions p_k = successes_k / counts_k, all (K,), counts over 0.

    `weights` are 0 or more and sum to 1; all 1/K make it the interval of a mean recall. It is the score interval with
    the effective sample size; for the variance alone the parts are drawn by 2 pictures towards the whole, so that a
    part of which all few pictures are right does not count as certain.
    """
    right, n, w = (np.asarray(values, np.float64) for values in (successes, counts, weights))
    pooled = (right.sum() + 1) / (n.sum() + 2)
    smooth = (right + 2 * pooled) / (n + 2)
    whole = float(w @ smooth)
    variance = float((w * w) @ (smooth * (1 - smooth) / n))
    return score_interval(min(1.0, float(w @ (right / n))), whole * (1 - whole) / variance, confidence)


def macro_f1_interval(confusion: npt.ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The score interval of the macro F1 of a confusion matrix (K, K), rows the labelled class, at least one count.

    The variance is that of the linearised figure (delta method), with one mistake more, spread as chance would. With
    under ten pictures a class the macro F1 is biased, which this leaves out: take a basic bootstrap interval as well.
    """
    counts = np.asarray(confusion, np.float64)
    rows, columns = counts.sum(axis=1), counts.sum(axis=0)
    known = rows + columns > 0
    chance = np.outer(rows, columns) + 1e-9 * np.outer(known, known)
    np.fill_diagonal(chance, 0)
    smooth = counts + chance / chance.sum() if chance.any() else counts
    total = np.where(known, smooth.sum(axis=0) + smooth.sum(axis=1), 1.0)
    whole = float((2 * smooth.diagonal() / total)[known].mean())
    pull = (
        2 * smooth.diagonal() / total**2
    )  # what one more picture, labelled or predicted so, takes from its class's F1
    influence = -(pull[:, None] + pull[None, :]) + np.diag(np.where(known, 2 / total, 0.0))
    variance = float((smooth * influence**2).sum()) / known.sum() ** 2
    value = float((2 * counts.diagonal() / np.where(known, rows + columns, 1.0))[known].mean())
    return score_interval(value, whole * (1 - whole) / variance if variance > 0 else counts.sum(), confidence)


def difference_interval(
    first: float, interval_first: tuple[float, float], second: float, interval_second: tuple[float, float]
) -> tuple[float, float]:
    """The interval of `first` minus `second`, figures of different pictures, from an interval of each.

    The squares of the distances to the limits add up (MOVER, Zou and Donner 2008). With two proportions and their
    Wilson intervals it is the hybrid score interval of Newcombe (1998, Statistics in Medicine 17, 873-890, method 10).
    """
    low = math.hypot(first - interval_first[0], interval_second[1] - second)
    high = math.hypot(interval_first[1] - first, second - interval_second[0])
    return first - second - low, first - second + high


def score_interval(value: float, num_effective: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's interval of any figure within 0 .. 1 that varies like a proportion of `num_effective` > 0 pictures.

    That number is value (1 - value) / variance, the effective sample size (Kott and Carr 1997). Unlike value plus or
    minus two standard errors the interval stays within 0 .. 1 and has a width at 0 and 1.
    """
    _check_confidence(confidence)
    if not (0 <= value <= 1 and num_effective > 0):
        raise DataError(
            f"{value} of {num_effective} effective pictures. Expected a value in 0 .. 1 and a number over 0."
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    shrink = 1 + z * z / num_effective
    middle = (value + z * z / (2 * num_effective)) / shrink
    half = z * math.sqrt(value * (1 - value) / num_effective + z * z / (4 * num_effective**2)) / shrink
    return max(0.0, min(value, middle - half)), min(1.0, max(value, middle + half))


def log_loss_interval(
    losses: npt.ArrayLike, probs: npt.ArrayLike, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """The interval of the mean of `losses` (N,), in nats, of pictures whose predicted probabilities are `probs` (N, K).

    A score interval for a mean whose variance grows with it. Few pictures may show none of the rare costly mistakes,
    and resampling cannot show what is not there; so the ratio of variance to mean is the greater of the one seen and
    the one that the probabilities state.
    """
    _check_confidence(confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    seen = np.asarray(losses, np.float64)
    mean = float(seen.mean())
    logs = -np.log(np.clip(np.asarray(probs, np.float64), np.finfo(np.float32).eps, 1.0))
    stated, squares = (np.exp(-logs) * logs).sum(axis=1), (np.exp(-logs) * logs**2).sum(axis=1)
    floor = np.finfo(np.float64).tiny
    ratio = max(
        float(seen.var()) / max(mean, floor), float(squares.mean() - stated.mean() ** 2) / max(stated.mean(), floor)
    )
    shift = z * z * ratio / (2 * len(seen))
    half = math.sqrt(2 * mean * shift + shift * shift)
    return max(0.0, mean + shift - half), mean + shift + half


def paired_log_loss_interval(
    losses_a: npt.ArrayLike,
    losses_b: npt.ArrayLike,
    probs_a: npt.ArrayLike,
    probs_b: npt.ArrayLike,
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """The interval of log loss a minus log loss b on the same pictures, arguments as in log_loss_interval.

    A normal interval with the greater of two variances: of the differences seen, and of those expected if the truth
    were drawn by the mean of the two predictions. A bootstrap knows the first alone and is far too narrow where the
    pictures show hardly any mistake.
    """
    _check_confidence(confidence)
    gaps = np.asarray(losses_a, np.float64) - np.asarray(losses_b, np.float64)
    floor = np.finfo(np.float32).eps
    a, b = np.asarray(probs_a, np.float64), np.asarray(probs_b, np.float64)
    stated = np.log(np.clip(b, floor, 1.0)) - np.log(np.clip(a, floor, 1.0))
    weights = (a + b) / 2
    expected = float((weights * stated).sum(axis=1).mean())
    variance = float((weights * stated**2).sum(axis=1).mean()) - expected**2
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    half = z * math.sqrt(max(float(gaps.var()), variance) / len(gaps))
    return float(gaps.mean()) - half, float(gaps.mean()) + half


def median_interval(values: npt.ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of a median from two of the sorted values (N,), right whatever their distribution; N >= 1.

    Their ranks are those of a binomial with probability 1/2. Under 6 values the least and the greatest are given, which
    is less sure than asked.
    """
    _check_confidence(confidence)
    ordered = np.sort(np.asarray(values, np.float64))
    n, tail, rank, total = len(ordered), (1 - confidence) / 2, 0, 0.0
    for rank in range(n // 2 + 1):
        total += math.exp(math.lgamma(n + 1) - math.lgamma(rank + 1) - math.lgamma(n - rank + 1) - n * math.log(2))
        if total > tail:
            break
    rank = min(max(rank, 1), (n + 1) // 2)
    return float(ordered[rank - 1]), float(ordered[n - rank])


def correct_holm(p_values: npt.ArrayLike) -> FloatArray:
    """The p-values (M,) after Holm's step-down correction (1979): refusing those under 0.05 errs at all in 5 %."""
    raw = np.asarray(p_values, np.float64)
    order = np.argsort(raw, kind="stable")
    corrected = np.empty_like(raw)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1)))
    return corrected


def compute_mcnemar_size(
    frac_only_a: float, frac_only_b: float, power: float = 0.8, max_p_value: float = 1 - CONFIDENCE
) -> int | None:
    """How many pictures McNemar's exact test needs to find the difference between two classifiers, or None.

    The fractions are of pictures that only one of the two gets right. The sample size is Connor's (1987, Biometrics 43,
    207-211) plus 1 / |difference|, as a test on whole counts takes more. None where the two fractions are equal: no
    number would do.
    """
    either, difference = frac_only_a + frac_only_b, abs(frac_only_a - frac_only_b)
    if difference == 0:
        return None
    z_test, z_power = NormalDist().inv_cdf(1 - max_p_value / 2), NormalDist().inv_cdf(power)
    root = z_test * math.sqrt(either) + z_power * math.sqrt(max(0.0, either - difference**2))
    return math.ceil((root / difference) ** 2 + 1 / difference)


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
