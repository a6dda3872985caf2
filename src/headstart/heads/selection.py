"""Choose layers, pooling and penalty by cross-validation, and fit the head.

Every block of features (a layer on a raster) is standardised and projected on its principal components once; a
candidate is some of these projections side by side, so the decompositions are shared by all penalties, folds and
combinations, and the penalties and folds of a candidate are solved together. A quick round on few pictures and
components leaves the candidates that are still in the race; those are compared on more.

The projection and the scale see the pictures of all folds but no labels. The final fit repeats the folds for the
chosen head alone, so that every training picture has a prediction from a fit that did not see it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import threadpoolctl

from headstart.calibration import apply_temperature, fit_temperature
from headstart.features import FeatureLayout, get_top_layer, list_candidates
from headstart.graph import PooledLayer
from headstart.heads.fitting import fit_logistic
from headstart.heads.linear import LinearHead
from headstart.parallel import count_cpus, map_bounded

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""Strongest first; scikit-learn's C is 1 / (penalty * pictures)."""

_SCREEN_ROWS = 1500
_SCREEN_COMPONENTS = 128
_SCREEN_PENALTIES = (1.0, 0.1)
_FINALISTS = 4
_CHOICE_ROWS = 3000
_MAX_COMPONENTS = 512
# The projected training pictures of the final fit, float32: 128 MiB. Beyond, fewer components are kept.
_MAX_FIT_NUMBERS = 2**25
_ROWS_PER_READ = 500


@dataclass(frozen=True)
class CandidateScore:
    """Cross-validated figures of one candidate at its chosen penalty, on the pictures of the last round it reached."""

    layers: tuple[PooledLayer, ...]
    num_features: int
    penalty: float
    accuracy: float
    log_loss: float
    num_images: int
    is_finalist: bool


@dataclass(frozen=True, eq=False)
class Selection:
    """The fitted head, what it was chosen from, out-of-fold probabilities float32 (N, K) of the training pictures."""

    head: LinearHead
    scores: tuple[CandidateScore, ...]
    out_of_fold_probs: np.ndarray
    top_layer: tuple[PooledLayer, ...]
    num_folds: int


RowReader = Callable[[np.ndarray], np.ndarray]
"""Indices of training pictures to their cached rows, float16 (n, D)."""

Fitter = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]
"""`fit_logistic`, or another that takes and gives the same."""


def select_head(
    read_rows: RowReader,
    layout: FeatureLayout,
    labels: np.ndarray,
    folds: np.ndarray,
    num_classes: int,
    *,
    candidates: Sequence[tuple[PooledLayer, ...]] | None = None,
    penalties: Sequence[float] = PENALTIES,
    class_weights: np.ndarray | None = None,
    fit: Fitter = fit_logistic,
    rng: np.random.Generator,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Selection:
    """Choose and fit. `labels` int64 (N,); `class_weights` (K,) multiply the pictures' weights.

    `fit` solves the comparison of the last candidates and the final fit; which these are, logistic regression finds.

    `folds` is int64 (R, N): R ways to divide the pictures, over which a candidate's errors are averaged, because with
    few pictures one way is mostly chance. The final fit uses the first.

    The choice follows two one-standard-error rules (Breiman et al. 1984, 3.4.3) towards the simpler. The top layer
    under global average pooling, which pretraining made linearly separable, stays unless its errors exceed the best
    candidate's by more than one standard error; its penalty is the strongest whose errors are within one standard
    error of its fewest. Otherwise the log loss decides, which uses more of every prediction: of the candidates and
    penalties within one standard error (of the paired difference) of the least, the one with the fewest features, then
    with the strongest penalty. Log losses are taken after the best temperature.
    """
    candidates = list(candidates or list_candidates(layout))
    importance = np.ones(len(labels)) if class_weights is None else class_weights[labels]
    problem = _Problem(read_rows, layout, labels, folds, importance, num_classes, rng, fit)
    scores: list[CandidateScore] = []
    if len(candidates) > _FINALISTS:
        step = functools.partial(on_progress, "comparing layers and poolings")
        screening = replace(problem, fit=fit_logistic)
        screened = _cross_validate(screening, candidates, _SCREEN_PENALTIES, _SCREEN_ROWS, _SCREEN_COMPONENTS, step)
        candidates = _pick_finalists(screened, layout)
        scores = [_score(result, result.best, layout, False) for result in screened if result.layers not in candidates]
    step = functools.partial(on_progress, "choosing layers and penalty")
    finalists = _cross_validate(problem, candidates, penalties, _CHOICE_ROWS, _MAX_COMPONENTS, step)
    winner, penalty = _choose(finalists, layout)
    for result in finalists:
        scores.append(_score(result, penalty if result is winner else result.best, layout, True))
    scores.sort(key=lambda score: (not score.is_finalist, -score.accuracy, score.num_features))
    on_progress("fitting the head", 0, 0)
    head, probs = _fit_final(problem, winner.layers, winner.penalties[penalty])
    return Selection(head, tuple(scores), probs, get_top_layer(layout), len(np.unique(folds[0])))


@dataclass(frozen=True, eq=False)
class _Problem:
    read_rows: RowReader
    layout: FeatureLayout
    labels: np.ndarray
    folds: np.ndarray
    importance: np.ndarray
    num_classes: int
    rng: np.random.Generator
    fit: Fitter = fit_logistic


@dataclass(frozen=True, eq=False)
class _Result:
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


@dataclass(frozen=True, eq=False)
class _Projection:
    """(x - mean) * scale @ components, for one block of features."""

    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray

    def apply(self, block: np.ndarray) -> np.ndarray:
        return np.asarray(((block - self.mean) * self.scale) @ self.components)


def _draw_part(problem: _Problem, num_rows: int) -> np.ndarray:
    """Indices of about `num_rows` pictures, each class and fold by its share but at least two pictures of a class."""
    if len(problem.labels) <= num_rows:
        return np.arange(len(problem.labels))
    share = num_rows / len(problem.labels)
    chosen = []
    for label in range(problem.num_classes):
        members = np.flatnonzero(problem.labels == label)
        members = members[np.lexsort((problem.rng.random(len(members)), problem.folds[0, members]))]
        # Every k-th of the members sorted by fold takes the same share of each fold.
        count = min(len(members), max(2, round(share * len(members))))
        chosen.append(members[np.linspace(0, len(members) - 1, count).round().astype(int)])
    return np.sort(np.concatenate(chosen))


def _cross_validate(
    problem: _Problem,
    candidates: Sequence[tuple[PooledLayer, ...]],
    penalties: Sequence[float],
    num_rows: int,
    num_components: int,
    step: Callable[[int, int], None],
) -> list[_Result]:
    part = _draw_part(problem, num_rows)
    labels = problem.labels[part]
    blocks = _read_blocks(problem, part, [pooled for layers in candidates for pooled in layers])

    def project(item: tuple[PooledLayer, np.random.Generator]) -> np.ndarray:
        return fit_projection(blocks.pop(item[0]).astype(np.float32), num_components, item[1])[1]

    def judge(layers: tuple[PooledLayer, ...]) -> _Result:
        inputs = np.concatenate([projected[pooled] for pooled in layers], axis=1)
        errors = np.zeros((len(penalties), len(part)))
        losses = np.zeros_like(errors)
        for folds in problem.folds:
            logits = _predict_out_of_fold(problem, inputs, part, folds[part], penalties)
            errors += (logits.argmax(axis=2) != labels) / len(problem.folds)
            losses += np.stack([_compute_calibrated_losses(each, labels) for each in logits]) / len(problem.folds)
        return _Result(layers, tuple(penalties), errors, losses)

    # Blocks and candidates are independent and mostly small: a thread for each keeps the cores busy, where threads
    # inside the matrix products would spend their time waiting for each other.
    with threadpoolctl.threadpool_limits(1):
        tasks = list(zip(blocks, problem.rng.spawn(len(blocks)), strict=True))
        projected = {item[0]: inputs for item, inputs in map_bounded(project, tasks, count_cpus())}
        results = []
        for _, result in map_bounded(judge, candidates, count_cpus()):
            results.append(result)
            step(len(results), len(candidates))
    return results


def _read_blocks(problem: _Problem, part: np.ndarray, pooled: Sequence[PooledLayer]) -> dict[PooledLayer, np.ndarray]:
    """float16 (n, D) of each block: only these are held, not the whole rows."""
    blocks = {
        block: np.empty((len(part), problem.layout.count_features(block)), np.float16)
        for block in dict.fromkeys(pooled)
    }
    for start in range(0, len(part), _ROWS_PER_READ):
        rows = problem.read_rows(part[start : start + _ROWS_PER_READ])
        for block, values in blocks.items():
            values[start : start + len(rows)] = problem.layout.read_block(rows, block)
    return blocks


def _predict_out_of_fold(
    problem: _Problem, inputs: np.ndarray, part: np.ndarray, folds: np.ndarray, penalties: Sequence[float]
) -> np.ndarray:
    """Logits float32 (P, n, K) of each picture from the fit that left its fold out."""
    labels = problem.labels[part]
    present = np.unique(folds)
    weights = np.stack([_normalise(problem.importance[part] * (folds != fold)) for fold in present])
    coefs = problem.fit(
        inputs, labels, np.tile(weights, (len(penalties), 1)), np.repeat(penalties, len(present)), problem.num_classes
    ).reshape(len(penalties), len(present), inputs.shape[1] + 1, problem.num_classes)
    logits = np.empty((len(penalties), len(labels), problem.num_classes), np.float32)
    for index, fold in enumerate(present):
        held_out = folds == fold
        for number in range(len(penalties)):
            fit = coefs[number, index]
            logits[number, held_out] = inputs[held_out] @ fit[:-1] + fit[-1]
    return logits


def _normalise(weights: np.ndarray) -> np.ndarray:
    return np.asarray(weights / weights.sum(), np.float32)


def _compute_calibrated_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy (n,) after the best temperature: strong penalties are not blamed for timid probabilities."""
    scaled = logits / fit_temperature(logits, labels)
    scaled -= scaled.max(axis=1, keepdims=True)
    return np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]


def fit_projection(block: np.ndarray, num_components: int, rng: np.random.Generator) -> tuple[_Projection, np.ndarray]:
    """Standardise with a floor under the variance, then the leading principal components; also the projected rows.

    `block` float32 (N, D) is overwritten.
    The floor, the mean variance, keeps features that rarely move from being blown up; it lowered the log loss on all
    collections it was tried on (0.125 to 0.115 on ants and bees, 0.711 to 0.701 on CIFAR-10, top layer).
    """
    mean = block.mean(axis=0, dtype=np.float64).astype(np.float32)
    block -= mean
    variance = np.einsum("nd,nd->d", block, block) / len(block)
    scale = 1 / np.sqrt(variance + max(float(variance.mean()), 1e-12))
    scale /= max(float(np.sqrt((variance * scale**2).mean())), 1e-6)
    block *= scale
    projection = _Projection(mean, scale, _find_components(block, num_components, rng))
    return projection, block @ projection.components


def _find_components(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """float32 (D, r): leading principal axes of centred rows (N, D), r at most `count`, N - 1 and D.

    Exact from the smaller of the two Gram matrices while that is small, otherwise by a randomised range finder with
    one power iteration (Halko, Martinsson and Tropp 2011).
    """
    num_rows, num_columns = rows.shape
    count = min(count, num_rows - 1, num_columns)
    if num_columns <= 1.5 * count:
        return np.ascontiguousarray(np.linalg.eigh(rows.T @ rows)[1][:, ::-1][:, :count])
    if num_rows <= 1.5 * count:
        values, vectors = np.linalg.eigh(rows @ rows.T)
        kept = values[::-1][:count] > 1e-6 * values[-1]
        basis = _orthonormalise(rows.T @ vectors[:, ::-1][:, :count][:, kept])
    else:
        basis = rng.standard_normal((num_columns, count + 32), dtype=np.float32)
        basis = _orthonormalise(rows.T @ (rows @ basis))
    inner = rows @ basis
    axes = np.linalg.eigh(inner.T @ inner)[1][:, ::-1][:, :count]
    return np.ascontiguousarray(basis @ axes)


def _orthonormalise(columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the columns' span, empty where all are 0.

    Through their Gram matrix, which is much faster than QR for tall matrices.
    """
    lengths = np.linalg.norm(columns, axis=0)
    columns = columns[:, lengths > 0] / lengths[lengths > 0]
    if not columns.size:
        return columns
    values, vectors = np.linalg.eigh(columns.T @ columns)
    kept = values > 1e-5 * values[-1]
    return np.asarray(columns @ (vectors[:, kept] / np.sqrt(values[kept])), np.float32)


def _pick_finalists(results: Sequence[_Result], layout: FeatureLayout) -> list[tuple[PooledLayer, ...]]:
    """The top layer, the simplest within one standard error of the best, and the least log losses."""
    by_loss = sorted(results, key=lambda result: result.losses.mean(axis=1).min())
    simplest, _ = _choose(results, layout)
    picked = dict.fromkeys([get_top_layer(layout), simplest.layers])
    for result in by_loss:
        if len(picked) == _FINALISTS:
            break
        picked[result.layers] = None
    available = {result.layers for result in results}
    return [layers for layers in picked if layers in available]


def _choose(results: Sequence[_Result], layout: FeatureLayout) -> tuple[_Result, int]:
    """The candidate and the index of its penalty; see select_head."""
    top = next((result for result in results if result.layers == get_top_layer(layout)), None)
    limit = min(_add_standard_error(result.errors[result.fewest]) for result in results)
    if top and top.errors[top.fewest].mean() <= limit:
        limit = _add_standard_error(top.errors[top.fewest])
        return top, next(index for index, errors in enumerate(top.errors) if errors.mean() <= limit)
    options = [(result, index) for result in results for index in range(len(result.penalties))]
    least, at = min(options, key=lambda option: option[0].losses[option[1]].mean())

    def is_close(option: tuple[_Result, int]) -> bool:
        excess = option[0].losses[option[1]] - least.losses[at]
        return bool(excess.mean() <= _compute_standard_error(excess))

    return min(filter(is_close, options), key=lambda option: (_count_features(option[0].layers, layout), option[1]))


def _compute_standard_error(values: np.ndarray) -> float:
    return float(values.std() / np.sqrt(len(values)))


def _add_standard_error(values: np.ndarray) -> float:
    return float(values.mean()) + _compute_standard_error(values)


def _count_features(layers: Sequence[PooledLayer], layout: FeatureLayout) -> int:
    return sum(layout.count_features(pooled) for pooled in layers)


def _score(result: _Result, penalty: int, layout: FeatureLayout, is_finalist: bool) -> CandidateScore:
    return CandidateScore(
        layers=result.layers,
        num_features=_count_features(result.layers, layout),
        penalty=result.penalties[penalty],
        accuracy=float(1 - result.errors[penalty].mean()),
        log_loss=float(result.losses[penalty].mean()),
        num_images=result.errors.shape[1],
        is_finalist=is_finalist,
    )


def _fit_final(problem: _Problem, layers: tuple[PooledLayer, ...], penalty: float) -> tuple[LinearHead, np.ndarray]:
    """The head on all training pictures, and their out-of-fold probabilities."""
    num_images = len(problem.labels)
    num_components = min(_MAX_COMPONENTS, max(64, _MAX_FIT_NUMBERS // (num_images * len(layers))))
    blocks = _read_blocks(problem, _draw_part(problem, _CHOICE_ROWS), layers)
    projections = [
        fit_projection(blocks.pop(pooled).astype(np.float32), num_components, problem.rng)[0] for pooled in layers
    ]
    widths = [projection.components.shape[1] for projection in projections]
    inputs = np.empty((num_images, sum(widths)), np.float32)
    for start in range(0, num_images, _ROWS_PER_READ):
        chunk = np.arange(start, min(start + _ROWS_PER_READ, num_images))
        rows = problem.read_rows(chunk)
        pieces = zip(layers, projections, strict=True)
        inputs[chunk] = np.concatenate(
            [p.apply(problem.layout.read_block(rows, pooled)) for pooled, p in pieces], axis=1
        )
    folds = problem.folds[0]
    present = np.unique(folds)
    weights = [_normalise(problem.importance * (folds != fold)) for fold in present]
    weights.append(_normalise(problem.importance))
    fits = problem.fit(inputs, problem.labels, np.stack(weights), np.full(len(weights), penalty), problem.num_classes)
    logits = np.empty((num_images, problem.num_classes), np.float32)
    for fold, fit in zip(present, fits, strict=False):
        held_out = folds == fold
        logits[held_out] = inputs[held_out] @ fit[:-1] + fit[-1]
    temperature = fit_temperature(logits, problem.labels)
    head = _merge(layers, projections, fits[-1], penalty, temperature)
    return head, apply_temperature(logits, temperature).astype(np.float32)


def _merge(
    layers: tuple[PooledLayer, ...],
    projections: Sequence[_Projection],
    fit: np.ndarray,
    penalty: float,
    temperature: float,
) -> LinearHead:
    """Multiply scale, projection and regression into one matrix on the raw features."""
    coefs, intercept, start = [], fit[-1].astype(np.float64), 0
    for projection in projections:
        width = projection.components.shape[1]
        coef = projection.components.astype(np.float64) @ fit[start : start + width].astype(np.float64)
        coef *= projection.scale[:, None]
        intercept = intercept - projection.mean.astype(np.float64) @ coef
        coefs.append(coef)
        start += width
    return LinearHead(
        layers, np.concatenate(coefs).astype(np.float32), intercept.astype(np.float32), penalty, temperature
    )
