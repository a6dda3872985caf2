"""Multinomial logistic regression, many problems at once.

For problem b, with weights w summing to 1 over its rows, the minimised objective is

    sum_i w_bi * cross_entropy(x_i W_b + c_b, y_i)  +  penalty_b / 2 * ||W_b||^2        (the intercept is free)

which is scikit-learn's with C = 1 / (penalty * number of rows), twice that for two classes, where scikit-learn fits one
vector instead of two. Folds and penalties of a cross-validation share the
rows x, so all of them are solved together: one pass over the rows serves every problem, and what would be bound by
memory becomes a few large matrix products. The method is L-BFGS (Liu and Nocedal 1989) with one history a problem, in
coordinates scaled by the curvature at the start; on principal components that takes 10 to 30 iterations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from headstart.parallel import count_cpus, map_bounded

logger = logging.getLogger(__name__)

_HISTORY = 8
_MAX_ITERATIONS = 200
_MAX_HALVINGS = 20
_SUFFICIENT_DECREASE = 1e-4
# float32 sums over the rows repeat to about this share; a smaller decrease cannot be told from none.
_OBJECTIVE_NOISE = 2e-7
# Below it the tolerance shrinks with the root of the penalty.
_WEAK_PENALTY = 0.1
# Logits at a time, float32: 1 MiB stays in a core's own cache between the passes over it.
_MAX_LOGITS = 2**18
_MIN_ROWS_AT_ONCE = 128
# What may be held of histories over all problems, in float32 numbers: 256 MiB.
_MAX_HISTORY = 2**26
# Numbers to multiply for each iteration, from which on halves of the problems go to threads of their own.
_WORTH_THREADS = 10**8

Objective = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass
class _Batch:
    """The problems that are still moving: parameters, objective and gradient, and the history of each."""

    problems: np.ndarray
    params: np.ndarray
    objective: np.ndarray
    gradient: np.ndarray
    steps: list[np.ndarray]
    changes: list[np.ndarray]
    curvatures: list[np.ndarray]

    def keep(self, moving: np.ndarray) -> None:
        for name in ("problems", "params", "objective", "gradient"):
            setattr(self, name, getattr(self, name)[moving])
        for history in (self.steps, self.changes, self.curvatures):
            history[:] = [entry[moving] for entry in history]


def fit_logistic(
    rows: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    penalties: np.ndarray,
    num_classes: int,
    tolerance: float = 1e-3,
    *,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Solve B problems on the same rows: float32 (B, R + 1, K), the last row of each the intercepts.

    `rows` float32 (N, R) with columns of mean about 0; `labels` int64 (N,) below K; `weights` float32 (B, N), each row
    summing to 1, 0 for a row that the problem leaves out; `penalties` (B,) above 0. A problem is solved when no entry
    of its scaled gradient exceeds `tolerance` times the largest at the start, or less under a weak penalty: by strong
    convexity what remains of the objective is at most the squared gradient over twice the penalty. `start` are near
    solutions in the form of the result; without it all begin at 0.
    """
    numbers_per_problem = 2 * (_HISTORY + 2) * (rows.shape[1] + 1) * num_classes
    count = max(1, _MAX_HISTORY // numbers_per_problem)
    if rows.size * len(penalties) * num_classes > _WORTH_THREADS:
        count = min(count, -(-len(penalties) // 2))  # not by processors: sums would depend on them
    parts = [slice(start, start + count) for start in range(0, len(penalties), count)]

    def fit_part(part: slice) -> np.ndarray:
        near = None if start is None else start[part]
        return _fit_together(rows, labels, weights[part], penalties[part], num_classes, tolerance, near)

    return np.concatenate([fitted for _, fitted in map_bounded(fit_part, parts, min(2, count_cpus()))])


def _fit_together(
    rows: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    penalties: np.ndarray,
    num_classes: int,
    tolerance: float,
    start: np.ndarray | None,
) -> np.ndarray:
    # Of two classes one vector is fitted, the difference of theirs: half the work, and the same solution.
    num_vectors = 1 if num_classes == 2 else num_classes
    weights = np.ascontiguousarray(weights.T, dtype=np.float32)
    scale = _compute_scale(rows, penalties, num_classes)
    ridge = np.zeros((len(penalties), rows.shape[1] + 1, 1), np.float32)
    ridge[:, :-1] = penalties[:, None, None] / (2 if num_vectors == 1 else 1)

    def evaluate(params: np.ndarray, problems: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _evaluate(rows, labels, weights[:, problems], ridge[problems], params, scale[problems])

    solution = np.zeros((len(penalties), rows.shape[1] + 1, num_vectors), np.float32)
    everything = np.arange(len(penalties))
    batch = _Batch(everything, solution.copy(), *evaluate(solution, everything), [], [], [])
    goal = tolerance * np.sqrt(np.minimum(1, penalties / _WEAK_PENALTY)) * np.abs(batch.gradient).max(axis=(1, 2))
    if start is not None:
        solution = scale * (start[:, :, 1:] - start[:, :, :1] if num_vectors == 1 else start)
        batch = _Batch(everything, solution.copy(), *evaluate(solution, everything), [], [], [])
    for _ in range(_MAX_ITERATIONS):
        stuck = _step(batch, evaluate)
        solution[batch.problems] = batch.params
        solved = np.abs(batch.gradient).max(axis=(1, 2)) <= goal[batch.problems]
        batch.keep(~(solved | stuck))
        if not len(batch.problems):
            break
    else:
        logger.info("%d of %d fits stopped after %d iterations", len(batch.problems), len(penalties), _MAX_ITERATIONS)
    solution /= scale
    return np.concatenate([-solution / 2, solution / 2], axis=2) if num_vectors == 1 else solution


def _compute_scale(rows: np.ndarray, penalties: np.ndarray, num_classes: int) -> np.ndarray:
    """float32 (B, R + 1, 1): square root of the curvature along a coordinate where all classes are equally likely."""
    spread = (1 - 1 / num_classes) / num_classes
    curvature = np.ones((len(penalties), rows.shape[1] + 1, 1), np.float32) * spread
    own = penalties / 2 if num_classes == 2 else penalties
    curvature[:, :-1, 0] = spread * np.einsum("nr,nr->r", rows, rows) / len(rows) + own[:, None]
    return np.sqrt(curvature)


def _evaluate(
    rows: np.ndarray, labels: np.ndarray, weights: np.ndarray, ridge: np.ndarray, params: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Objective (B,) and gradient (B, R + 1, V) in scaled coordinates, of V = K vectors, or the one of two classes."""
    num_rows, num_columns = rows.shape
    num_problems, _, num_vectors = params.shape
    coefs = params / scale
    # Problems last: sums over classes then run along memory for all problems at once.
    flat = np.ascontiguousarray(coefs.transpose(1, 2, 0)).reshape(num_columns + 1, num_vectors * num_problems)
    objective = 0.5 * np.einsum("brk,brk->b", ridge * coefs, coefs, dtype=np.float64)
    gradient = np.zeros_like(flat)
    count = max(_MIN_ROWS_AT_ONCE, _MAX_LOGITS // (num_problems * num_vectors))
    for start in range(0, num_rows, count):
        part = slice(start, start + count)
        logits = (rows[part] @ flat[:-1] + flat[-1]).reshape(-1, num_vectors, num_problems)
        weigh = _weigh_binary if num_vectors == 1 else _weigh_classes
        objective += weigh(logits, labels[part], weights[part])
        pull = logits.reshape(len(logits), -1)
        gradient[:-1] += rows[part].T @ pull
        gradient[-1] += pull.sum(axis=0)
    derivative = gradient.reshape(num_columns + 1, num_vectors, num_problems).transpose(2, 0, 1) + ridge * coefs
    return objective, derivative / scale


def _weigh_classes(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Losses (B,), weighted and summed, of logits (n, K, B), which their derivative takes the place of."""
    each = np.arange(len(labels))
    logits -= logits.max(axis=1, keepdims=True)
    of_truth = logits[each, labels]
    np.exp(logits, out=logits)
    total = logits.sum(axis=1)
    logits *= (weights / total)[:, None]
    logits[each, labels] -= weights
    return np.asarray(np.einsum("nb,nb->b", weights, np.log(total) - of_truth, dtype=np.float64))


def _weigh_binary(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same of logits (n, 1, B) of the second class over the first."""
    wrong = logits[:, 0]
    wrong *= np.where(labels == 1, np.float32(-1), np.float32(1))[:, None]
    small = np.exp(-np.abs(wrong))
    losses = np.maximum(wrong, 0) + np.log1p(small)
    share = np.where(wrong > 0, np.float32(1), small) / (1 + small)
    share *= weights
    np.multiply(share, np.where(labels == 1, np.float32(-1), np.float32(1))[:, None], out=wrong)
    return np.asarray(np.einsum("nb,nb->b", weights, losses, dtype=np.float64))


def _dot(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.einsum("brk,brk->b", left, right)[:, None, None]


def _step(batch: _Batch, evaluate: Objective) -> np.ndarray:
    """Move every problem by one L-BFGS step with backtracking; bool (B,): where no step lowers the objective."""
    direction = -_apply_inverse_hessian(batch)
    slope = _dot(batch.gradient, direction)
    step = np.ones((len(batch.problems), 1, 1), np.float32)
    for _ in range(_MAX_HALVINGS):
        params = batch.params + step * direction
        objective, gradient = evaluate(params, batch.problems)
        bound = batch.objective + (_SUFFICIENT_DECREASE * step * slope)[:, 0, 0] + _OBJECTIVE_NOISE * batch.objective
        failed = ~(objective <= bound)
        if not failed.any():
            break
        step[failed] *= 0.5
    params[failed], objective[failed], gradient[failed] = (
        batch.params[failed],
        batch.objective[failed],
        batch.gradient[failed],
    )
    moved, change = params - batch.params, gradient - batch.gradient
    product = _dot(moved, change)
    usable = product > 1e-12
    batch.steps.append(moved)
    batch.changes.append(change)
    batch.curvatures.append(np.where(usable, 1 / np.where(usable, product, 1), 0).astype(np.float32))
    for history in (batch.steps, batch.changes, batch.curvatures):
        del history[:-_HISTORY]
    batch.params, batch.objective, batch.gradient = params, objective, gradient
    return failed


def _apply_inverse_hessian(batch: _Batch) -> np.ndarray:
    """The two-loop recursion (Nocedal and Wright 2006, algorithm 7.4) for all problems."""
    result = batch.gradient.copy()
    history = list(zip(batch.steps, batch.changes, batch.curvatures, strict=True))
    shares = []
    for step, change, curvature in reversed(history):
        share = curvature * _dot(step, result)
        result -= share * change
        shares.append(share)
    if history:
        _, change, curvature = history[-1]
        length = curvature * _dot(change, change)
        result /= np.where(length > 0, length, 1)
    for (step, change, curvature), share in zip(history, reversed(shares), strict=True):
        result += step * (share - curvature * _dot(change, result))
    return result
