"""Predictions of pictures by fits that left their fold out: by logistic regression, and by least squares at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from headstart.calibration import fit_temperature_to_part
from headstart.graph import PooledLayer


class Fitter(Protocol):
    """`fit_logistic`, or another that takes and gives the same."""

    def __call__(
        self,
        rows: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        penalties: np.ndarray,
        num_classes: int,
        tolerance: float = ...,
        *,
        start: np.ndarray | None = None,
    ) -> np.ndarray: ...


# Logits that set a temperature, so that the time does not grow with many classes.
_MAX_TEMPERATURE_NUMBERS = 2**18
# Least squares give scores of about 0 and 1; the temperature, which has bounds, starts from these.
_SCORE_FACTOR = 10.0


@dataclass(frozen=True, eq=False)
class Sample:
    """Pictures to cross-validate on: `labels` int64 (n,) below K, `importance` (n,), R ways `folds` int64 (R, n)."""

    labels: np.ndarray
    importance: np.ndarray
    folds: np.ndarray
    num_classes: int

    def take(self, part: np.ndarray) -> Sample:
        return Sample(self.labels[part], self.importance[part], self.folds[:, part], self.num_classes)

    def weigh(self, kept: np.ndarray) -> np.ndarray:
        """float32 (n,), summing to 1 over the pictures `kept`, bool (n,)."""
        weights = self.importance * kept
        return np.asarray(weights / weights.sum(), np.float32)


@dataclass(frozen=True, eq=False)
class Result:
    """One candidate: out-of-fold errors (P, n), from 0 to 1, and losses (P, n) for each of its penalties."""

    layers: tuple[PooledLayer, ...]
    penalties: tuple[float, ...]
    errors: np.ndarray
    losses: np.ndarray

    @property
    def best(self) -> int:
        """Index of the penalty with the least log loss."""
        return int(self.losses.mean(axis=1).argmin())

    @property
    def fewest(self) -> int:
        """Index of the penalty with the fewest errors, the stronger one on a tie."""
        return int(self.errors.mean(axis=1).argmin())


def draw_part(sample: Sample, num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of about `num_rows` pictures, each class and fold by its share but at least two pictures of a class."""
    count = len(sample.labels)
    if count <= num_rows:
        return np.arange(count)
    # Every k-th of the pictures sorted by class and fold takes the same share of each.
    order = np.lexsort((rng.random(count), sample.folds[0], sample.labels))
    chosen = []
    for members in np.split(order, np.cumsum(np.bincount(sample.labels, minlength=sample.num_classes))[:-1]):
        wanted = min(len(members), max(2, round(num_rows / count * len(members))))
        chosen.append(members[np.linspace(0, len(members) - 1, wanted).round().astype(int)])
    return np.sort(np.concatenate(chosen))


def judge(
    layers: tuple[PooledLayer, ...], penalties: Sequence[float], logits: np.ndarray, labels: np.ndarray
) -> Result:
    """Errors and calibrated losses, averaged over R ways, of out-of-fold `logits` (R, P, n, K)."""
    num_ways, num_penalties, count, num_classes = logits.shape
    errors = (logits.argmax(axis=3) != labels).mean(axis=0)
    together = logits.swapaxes(0, 1).reshape(num_penalties, num_ways * count, num_classes)
    # One temperature for all ways: they are the same pictures.
    losses = [compute_calibrated_losses(each, np.tile(labels, num_ways)) for each in together]
    means = np.stack([each.reshape(num_ways, count).mean(axis=0) for each in losses])
    return Result(layers, tuple(penalties), errors, means)


def predict_out_of_fold(
    inputs: np.ndarray, sample: Sample, penalties: Sequence[float], fit: Fitter
) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 (R, P, n, K) of each picture from the fit that left its fold out; `inputs` float32 (n, D).

    Also the fits (P, F, D + 1, K) of the F folds of all ways, which are solved together.
    """
    held_out = [[folds == fold for fold in np.unique(folds)] for folds in sample.folds]
    weights = np.stack([sample.weigh(~held) for each in held_out for held in each])
    count = len(penalties)
    fits = fit(
        inputs, sample.labels, np.tile(weights, (count, 1)), np.repeat(penalties, len(weights)), sample.num_classes
    ).reshape(count, len(weights), inputs.shape[1] + 1, sample.num_classes)
    logits = np.empty((len(held_out), count, len(inputs), sample.num_classes), np.float32)
    number = 0
    for way, each in enumerate(held_out):
        for held in each:
            for penalty in range(count):
                coef = fits[penalty, number]
                logits[way, penalty, held] = inputs[held] @ coef[:-1] + coef[-1]
            number += 1
    return logits, fits


def predict_by_least_squares(inputs: np.ndarray, sample: Sample, penalties: Sequence[float]) -> np.ndarray:
    """As `predict_out_of_fold`, by ridge regression on the classes as 0 and 1: logits float32 (R, P, n, K).

    The matrix of the normal equations is a sum over folds, so that leaving one out costs a subtraction. It ranks layers
    much as logistic regression does, at a small share of the time; its own log loss is larger.
    """
    count = len(inputs)
    targets = np.zeros((count, sample.num_classes), np.float32)
    targets[np.arange(count), sample.labels] = _SCORE_FACTOR
    columns = np.ones((count, inputs.shape[1] + 1), np.float32)
    columns[:, :-1] = inputs
    weights = sample.weigh(np.ones(count, bool))
    held_out = [[np.flatnonzero(folds == fold) for fold in np.unique(folds)] for folds in sample.folds]
    largest = max(len(held) for each in held_out for held in each)
    leave_out = _leave_out_pictures if 2 * largest < columns.shape[1] else _leave_out_sums
    return leave_out(columns, targets, weights, held_out, penalties)


def _leave_out_sums(
    columns: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    held_out: Sequence[Sequence[np.ndarray]],
    penalties: Sequence[float],
) -> np.ndarray:
    weighted = columns * weights[:, None]
    ridge = np.diag(np.append(np.ones(columns.shape[1] - 1), 0)).astype(np.float32)
    logits = np.empty((len(held_out), len(penalties), *targets.shape), np.float32)
    for way, each in enumerate(held_out):
        grams = [columns[held].T @ weighted[held] for held in each]
        answers = [weighted[held].T @ targets[held] for held in each]
        gram, answer = sum(grams), sum(answers)
        for held, own, wanted in zip(each, grams, answers, strict=True):
            share = 1 - weights[held].sum()
            rest, asked = (gram - own) / share, (answer - wanted) / share
            for number, penalty in enumerate(penalties):
                logits[way, number, held] = columns[held] @ np.linalg.solve(rest + np.float32(penalty) * ridge, asked)
    return logits


def _leave_out_pictures(
    columns: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    held_out: Sequence[Sequence[np.ndarray]],
    penalties: Sequence[float],
) -> np.ndarray:
    """The same from one solution on all pictures, cheaper where folds are smaller than the number of columns.

    With H the matrix that takes the answers to their predictions, what a fold's pictures miss by without the fold is
    what they miss by with it, times the inverse of (I - H) of the fold (Cook and Weisberg 1982, 2.2; Allen's PRESS for
    folds of one). The penalty takes the average fold for each.
    """
    roots = np.sqrt(weights.astype(np.float64))[:, None]
    rows, answers = columns * roots, targets * roots
    ridge = np.diag(np.append(np.ones(columns.shape[1] - 1), 0))
    gram = rows.T @ rows
    logits = np.empty((len(held_out), len(penalties), *targets.shape), np.float32)
    for number, penalty in enumerate(penalties):
        for way, each in enumerate(held_out):
            if way == 0 or len(each) != len(held_out[way - 1]):
                hat = rows @ np.linalg.solve(gram + penalty * (1 - 1 / len(each)) * ridge, rows.T)
                missed = answers - hat @ answers
            for held in each:
                inside = np.eye(len(held)) - hat[np.ix_(held, held)]
                logits[way, number, held] = targets[held] - np.linalg.solve(inside, missed[held]) / roots[held]
    return logits


def compute_calibrated_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy (n,) after the best temperature: strong penalties are not blamed for timid probabilities."""
    scaled = logits / np.float32(fit_temperature_to_part(logits, labels, _MAX_TEMPERATURE_NUMBERS))
    scaled -= scaled.max(axis=1, keepdims=True)
    of_truth = scaled[np.arange(len(labels)), labels]
    return np.asarray(np.log(np.exp(scaled, out=scaled).sum(axis=1)) - of_truth, np.float64)
