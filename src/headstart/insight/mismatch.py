"""Training and test pictures from different sources: what of the test error is variance, what is mismatch, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from headstart.errors import DataError, raise_all
from headstart.insight.properties import measure_properties
from headstart.metrics import FloatArray, IntArray, check_labels, check_probs
from headstart.splits import assign_folds
from headstart.stats import (
    CONFIDENCE,
    correct_holm,
    difference_interval,
    paired_difference_interval,
    score_interval,
    weighted_rate_interval,
)

MAX_PICTURES = 1000
"""Pictures a side that the sources are told apart on: enough for an interval of 0.05, and memory stays small."""
MAX_DECODED = 300
"""Pictures a side that are decoded for their properties."""
_MIN_PICTURES = 10
_NUM_COMPONENTS = 256
_NUM_PERMUTATIONS = 199
_NUM_FOLDS = 5
_RIDGE = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """The pictures of one source: `labels` int64 (N,), `features` float32 (N, D), `keys` and `paths` of N entries.

    `probs` (N, K) are of heads that had not seen the picture: out of fold for the training side. Pictures that share a
    key stay on one side of every split. Without `paths`, no properties are measured.
    """

    labels: IntArray
    probs: np.ndarray
    features: np.ndarray
    keys: Sequence[str]
    paths: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PropertyGap:
    """How well one property alone tells the sources apart.

    `auroc` is the chance that of two pictures of a class the one from the test source has the greater value, ties
    counting half: 0.5 where there is no difference. `p_value` is corrected for all properties (Holm).
    """

    name: str
    median_train: float
    median_test: float
    auroc: Figure
    p_value: float


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Errors are fractions, over the classes that both sources have, at the test source's shares of the classes.

    `variance` is out-of-fold minus training error, `mismatch` test minus out-of-fold error. `source_auroc` says how
    well the features tell the sources apart; without a difference `source_chance` is where it lies in 95 %, and it is
    as high with probability `source_p_value`. The three are None where there are too few pictures. `properties` come
    with the most telling first.
    """

    num_train: int
    num_test: int
    train_error: Figure
    out_of_fold_error: Figure
    test_error: Figure
    variance: Figure
    mismatch: Figure
    source_auroc: Figure | None
    source_chance: tuple[float, float] | None
    source_p_value: float | None
    properties: tuple[PropertyGap, ...]

    @property
    def is_mismatched(self) -> bool:
        """Whether test pictures are harder than chance allows."""
        return self.mismatch.low > 0

    @property
    def is_told_apart(self) -> bool:
        """Whether the sources differ in the features."""
        return self.source_p_value is not None and self.source_p_value < 1 - CONFIDENCE


def measure_mismatch(train: Side, test: Side, fitted_probs: np.ndarray, rng: np.random.Generator) -> Mismatch:
    """Tell variance from mismatch. `fitted_probs` (N, K) is what the head says of the pictures it was fitted on.

    Shares of the classes that differ between the sources are no mismatch: errors are taken at the test source's shares,
    and sources are told apart on as many pictures of a class from either. Out-of-fold predictions come from heads
    fitted on fewer pictures, and chose the layers: the two small faults have opposite signs.
    Raises DataError where arrays do not fit, or no class is in both sources.
    """
    train_labels, test_labels = _check(train, test, fitted_probs)
    num_classes = train.probs.shape[1]
    counts = [np.bincount(labels, minlength=num_classes) for labels in (train_labels, test_labels)]
    shared = np.flatnonzero((counts[0] > 0) & (counts[1] > 0))
    if not shared.size:
        raise DataError("No class has pictures in both sources. Compare sources that share classes.")
    shares = counts[1][shared] / counts[1][shared].sum()
    fitted_wrong = fitted_probs.argmax(axis=1) != train_labels
    unseen_wrong, test_wrong = (side.probs.argmax(axis=1) != side.labels for side in (train, test))
    errors = [
        _measure_error(wrong, labels, shared, shares)
        for wrong, labels in ((fitted_wrong, train_labels), (unseen_wrong, train_labels), (test_wrong, test_labels))
    ]
    rows = _match_classes(train_labels, test_labels, shared, MAX_PICTURES, rng)
    auroc, chance, p_value = _tell_apart(train, test, rows, rng)
    return Mismatch(
        num_train=int(counts[0][shared].sum()),
        num_test=int(counts[1][shared].sum()),
        train_error=errors[0],
        out_of_fold_error=errors[1],
        test_error=errors[2],
        variance=_measure_variance(fitted_wrong, unseen_wrong, train_labels, shared, shares),
        mismatch=_subtract(errors[2], errors[1]),
        source_auroc=auroc,
        source_chance=chance,
        source_p_value=p_value,
        properties=_compare_properties(train, test, shared, rng) if len(train.paths) and len(test.paths) else (),
    )


def _check(train: Side, test: Side, fitted_probs: np.ndarray) -> tuple[IntArray, IntArray]:
    num_classes = check_probs(train.probs, "train.probs").shape[1]
    problems = []
    if check_probs(test.probs, "test.probs").shape[1] != num_classes:
        problems.append(f"test.probs has {test.probs.shape[1]} columns and train.probs has {num_classes}.")
    if check_probs(fitted_probs, "fitted_probs").shape != train.probs.shape:
        problems.append(f"fitted_probs has shape {fitted_probs.shape} and train.probs has {train.probs.shape}.")
    for name, side in (("train", train), ("test", test)):
        for part in ("labels", "features", "keys", "paths"):
            length = len(getattr(side, part))
            if length != len(side.probs) and (part != "paths" or length):
                problems.append(f"{name}.{part} has {length} entries and {name}.probs has {len(side.probs)} rows.")
    raise_all(DataError, problems)
    return check_labels(train.labels, num_classes, "train.labels"), check_labels(
        test.labels, num_classes, "test.labels"
    )


def _measure_error(wrong: np.ndarray, labels: IntArray, shared: IntArray, shares: FloatArray) -> Figure:
    num = np.bincount(labels, minlength=shared.max() + 1)[shared]
    num_wrong = np.bincount(labels, wrong, minlength=shared.max() + 1)[shared]
    return Figure(float(shares @ (num_wrong / num)), *weighted_rate_interval(num_wrong, num, shares))


def _subtract(left: Figure, right: Figure) -> Figure:
    interval = difference_interval(left.value, (left.low, left.high), right.value, (right.low, right.high))
    return Figure(left.value - right.value, *interval)


def _measure_variance(
    fitted_wrong: np.ndarray, unseen_wrong: np.ndarray, labels: IntArray, shared: IntArray, shares: FloatArray
) -> Figure:
    """Out-of-fold minus training error of the same pictures: paired, with as many pictures as the weights leave."""
    num = np.bincount(labels, minlength=shared.max() + 1)[shared]
    rates = [
        float(shares @ (np.bincount(labels, only, minlength=shared.max() + 1)[shared] / num))
        for only in (unseen_wrong & ~fitted_wrong, fitted_wrong & ~unseen_wrong)
    ]
    effective = 1 / float((shares**2 / num).sum())
    counts = [round(rate * effective) for rate in rates]
    interval = paired_difference_interval(counts[0], counts[1], max(round(effective), sum(counts)))
    value = rates[0] - rates[1]
    return Figure(value, min(value, interval[0]), max(value, interval[1]))


def _match_classes(
    train_labels: IntArray, test_labels: IntArray, shared: IntArray, max_pictures: int, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """As many rows of each class from either side, drawn at random, together at most about `max_pictures` a side."""
    rows = [[rng.permutation(np.flatnonzero(labels == k)) for k in shared] for labels in (train_labels, test_labels)]
    numbers = np.array([min(len(a), len(b)) for a, b in zip(*rows, strict=True)])
    if numbers.sum() > max_pictures:
        numbers = np.maximum(1, numbers * max_pictures // numbers.sum())
    train_rows, test_rows = (
        np.concatenate([part[:n] for part, n in zip(parts, numbers, strict=True)]) for parts in rows
    )
    return train_rows, test_rows


def _tell_apart(
    train: Side, test: Side, rows: tuple[IntArray, IntArray], rng: np.random.Generator
) -> tuple[Figure | None, tuple[float, float] | None, float | None]:
    """Cross-validated ridge regression of the source on the features, and the same with sources permuted in classes."""
    if len(rows[0]) < _MIN_PICTURES:
        return None, None, None
    features = np.concatenate([train.features[rows[0]], test.features[rows[1]]]).astype(np.float32)
    labels = np.concatenate([train.labels[rows[0]], test.labels[rows[1]]])
    keys = [f"train {train.keys[row]}" for row in rows[0]] + [f"test {test.keys[row]}" for row in rows[1]]
    is_test = np.repeat([False, True], [len(rows[0]), len(rows[1])])
    if min(len({key for key, side in zip(keys, is_test, strict=True) if side == part}) for part in (0, 1)) < 2:
        return None, None, None
    folds = assign_folds(is_test.astype(np.int64), keys, num_folds=_NUM_FOLDS)
    scale = features.std(axis=0)
    features = (features - features.mean(axis=0)) / np.where(scale > 0, scale, 1)
    from sklearn.decomposition import PCA

    count = min(_NUM_COMPONENTS, len(features) // 2, features.shape[1])
    seed = int(rng.integers(2**31))
    columns = PCA(count, svd_solver="randomized", random_state=seed).fit_transform(features).astype(np.float64)
    sources = np.tile(is_test[:, None], _NUM_PERMUTATIONS + 1)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        sources[members, 1:] = rng.permuted(sources[members, 1:], axis=0)
    scores = _predict_sources(columns, sources, folds)
    aurocs = _compute_auroc(scores, sources, folds)
    value = float(aurocs[0])
    low, high = np.quantile(aurocs[1:], [0.025, 0.975]).tolist()
    figure = Figure(value, *_auroc_interval(value, scores[:, 0], is_test, folds))
    return figure, (low, high), float((1 + (aurocs[1:] >= value).sum()) / len(aurocs))


def _predict_sources(columns: FloatArray, sources: np.ndarray, folds: IntArray) -> FloatArray:
    """Out-of-fold scores (N, P) for P assignments of the pictures to sources, bool (N, P)."""
    scores = np.zeros(sources.shape)
    ridge = _RIDGE * float((columns**2).sum(axis=1).mean()) / columns.shape[1] * len(columns)
    for fold in np.unique(folds):
        rest = folds != fold
        targets = sources[rest] - sources[rest].mean(axis=0)
        gram = columns[rest].T @ columns[rest] + ridge * np.eye(columns.shape[1])
        scores[~rest] = columns[~rest] @ np.linalg.solve(gram, columns[rest].T @ targets)
    return scores


def _compute_auroc(scores: FloatArray, sources: np.ndarray, strata: IntArray) -> FloatArray:
    """The share of pairs (test, training) within a stratum in which the test picture scores higher (P,); ties half."""
    wins, pairs = np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
    for stratum in np.unique(strata):
        rows = strata == stratum
        num_test = sources[rows].sum(axis=0)
        wins += (_rank(scores[rows]) * sources[rows]).sum(axis=0) - num_test * (num_test + 1) / 2
        pairs += num_test * (rows.sum() - num_test)
    return np.asarray(wins / np.maximum(pairs, 1), np.float64)


def _rank(values: FloatArray) -> FloatArray:
    """Ranks from 1 along axis 0, equal values sharing their mean rank."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=0), np.float64)


def _auroc_interval(auroc: float, scores: FloatArray, is_test: np.ndarray, strata: IntArray) -> tuple[float, float]:
    """Wilson's interval with the effective sample size that DeLong's variance (1988) gives, strata put together."""
    variance, num_pairs = 0.0, 0
    for stratum in np.unique(strata):
        rows = strata == stratum
        test, train = scores[rows & is_test], scores[rows & ~is_test]
        if not len(test) or not len(train):
            continue
        ranks = _rank(np.concatenate([test, train]))
        above = (ranks[: len(test)] - _rank(test)) / len(train)  # the share of the other source that lies below
        below = (ranks[len(test) :] - _rank(train)) / len(test)
        pairs = len(test) * len(train)
        variance += pairs**2 * (above.var() / len(test) + below.var() / len(train))
        num_pairs += pairs
    variance /= max(num_pairs, 1) ** 2
    n = len(scores)
    return score_interval(auroc, min(n, auroc * (1 - auroc) / variance) if variance > 0 else n / 2)


def _compare_properties(train: Side, test: Side, shared: IntArray, rng: np.random.Generator) -> tuple[PropertyGap, ...]:
    rows = _match_classes(train.labels, test.labels, shared, MAX_DECODED, rng)
    labels = np.concatenate([train.labels[rows[0]], test.labels[rows[1]]])
    is_test = np.repeat([False, True], [len(rows[0]), len(rows[1])])
    columns = measure_properties([train.paths[row] for row in rows[0]] + [test.paths[row] for row in rows[1]])
    gaps, p_values = [], []
    for name, values in columns.items():
        known = np.isfinite(values)
        sides = [values[known & side] for side in (~is_test, is_test)]
        if min(map(len, sides)) < _MIN_PICTURES:
            continue
        part = values[known], is_test[known], labels[known]
        auroc = float(_compute_auroc(part[0][:, None], part[1][:, None], part[2])[0])
        figure = Figure(auroc, *_auroc_interval(auroc, *part))
        gaps.append(PropertyGap(name, float(np.median(sides[0])), float(np.median(sides[1])), figure, 1.0))
        p_values.append(_test_ranks(*part))
    corrected = correct_holm(p_values).tolist()
    gaps = [replace(gap, p_value=p_value) for gap, p_value in zip(gaps, corrected, strict=True)]
    # What tells the sources apart as well stays in the order of measure_properties: size before what follows from it.
    return tuple(sorted(gaps, key=lambda gap: -round(abs(gap.auroc.value - 0.5), 2)))


def _test_ranks(values: FloatArray, is_test: np.ndarray, strata: IntArray) -> float:
    """The two-sided p-value of the rank sums within strata (Wilcoxon, van Elteren 1960), by the normal distribution."""
    excess = variance = 0.0
    for stratum in np.unique(strata):
        rows = strata == stratum
        ranks, num_test = _rank(values[rows]), int((rows & is_test).sum())
        n = len(ranks)
        if 0 < num_test < n:
            excess += ranks[is_test[rows]].sum() - num_test * (n + 1) / 2
            variance += num_test * (n - num_test) / n * ranks.var(ddof=1)
    return 2 * NormalDist().cdf(-abs(excess) / math.sqrt(variance)) if variance > 0 else 1.0
