"""Choose layers, pooling and penalty by cross-validation, and fit the head.

Every block of features (a layer on a raster) is standardised and projected on its principal components once; a
candidate is some of these projections side by side, so the decompositions are shared by all penalties, folds and
combinations, and the penalties and folds of a candidate are solved together. A quick round by least squares on few
pictures and components tells whether anything can beat the top layer, and what; those are compared on more.

The projection and the scale see the pictures of all folds but no labels. The final fit repeats the folds for the
chosen head alone, so that every training picture has a prediction from a fit that did not see it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import threadpoolctl

from headstart.calibration import apply_temperature, fit_temperature
from headstart.features import FeatureLayout, get_top_layer, list_candidates
from headstart.graph import PooledLayer
from headstart.heads.components import Projection
from headstart.heads.components import fit_projection as fit_projection
from headstart.heads.cross_validation import (
    Fitter,
    Result,
    Sample,
    draw_part,
    judge,
    predict_by_least_squares,
    predict_out_of_fold,
)
from headstart.heads.fitting import fit_logistic
from headstart.heads.linear import LinearHead
from headstart.parallel import count_cpus, map_bounded

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""Strongest first; scikit-learn's C is 1 / (penalty * pictures)."""

_SCREEN_ROWS = 1500
_SCREEN_COMPONENTS = 64
_SCREEN_COLUMNS = 320
_SCREEN_PENALTIES = (10.0, 1.0, 0.1)
# The top layer stays without further comparison while its errors exceed the best by no more than this share of a
# standard error: half of what the rule allows, because the quick round is less exact.
_CLOSE = 0.5
_FINALISTS = 4
_CHOICE_ROWS = 3000
_CHOICE_COMPONENTS = 256
_MAX_COMPONENTS = 512
# Numbers of a cross-validation to multiply at a time, so that many classes do not take longer and longer: from 80 on
# fewer components are kept for it.
_MAX_CHOICE_WORK = 2**32
_MIN_COMPONENTS = 64
# The projected training pictures of the final fit, float32: 128 MiB. Beyond, fewer components are kept.
_MAX_FIT_NUMBERS = 2**25
_ROWS_PER_READ = 500
_ROWS_PER_TASK = 100


@dataclass(frozen=True)
class CandidateScore:
    """Cross-validated figures of one candidate at its chosen penalty, on the pictures of the last round it reached.

    Those of the last round are logistic regressions (or what `fit` is), the others least squares on few components,
    whose log losses are larger and whose `penalty` is not comparable.
    """

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

    `fit` solves the comparison of the last candidates and the final fit; which these are, least squares find.

    `folds` is int64 (R, N): R ways to divide the pictures, over which a candidate's errors are averaged, because with
    few pictures one way is mostly chance. The final fit uses the first.

    The choice follows two one-standard-error rules (Breiman et al. 1984, 3.4.3) towards the simpler. The top layer
    under global average pooling, which pretraining made linearly separable, stays unless its errors exceed the best
    candidate's by more than one standard error; its penalty is the strongest whose errors are within one standard
    error of its fewest. Otherwise the log loss decides, which uses more of every prediction: of the candidates and
    penalties within one standard error (of the paired difference) of the least, the one with the fewest features, then
    with the strongest penalty. Log losses are taken after the best temperature.

    Where the quick round already finds the top layer's errors within half a standard error of the best, the others are
    not compared any further.
    """
    candidates = list(candidates or list_candidates(layout))
    importance = np.ones(len(labels)) if class_weights is None else class_weights[labels]
    sample = Sample(labels, importance, folds, num_classes)
    problem = _Problem(read_rows, layout, sample, fit, rng)
    part = draw_part(sample, _CHOICE_ROWS, rng)
    table = _Table(_read(read_rows, part), layout, sample.take(part))
    # Threads inside the matrix products would wait for each other, and sums depend on their number: blocks, candidates
    # and chunks of rows get a thread each instead.
    with threadpoolctl.threadpool_limits(1):
        return _select(problem, table, candidates, penalties, on_progress)


@dataclass(frozen=True, eq=False)
class _Problem:
    read_rows: RowReader
    layout: FeatureLayout
    sample: Sample
    fit: Fitter
    rng: np.random.Generator


@dataclass(frozen=True, eq=False)
class _Table:
    """The rows float16 (n, D) of the pictures that candidates are compared on."""

    rows: np.ndarray
    layout: FeatureLayout
    sample: Sample

    def take(self, part: np.ndarray) -> _Table:
        everything = len(part) == len(self.rows)
        return self if everything else _Table(self.rows[part], self.layout, self.sample.take(part))

    def project(self, pooled: PooledLayer, count: int, rng: np.random.Generator) -> tuple[Projection, np.ndarray]:
        return fit_projection(self.layout.read_block(self.rows, pooled), count, rng)


@dataclass(frozen=True, eq=False)
class _Compared:
    """A candidate of the last round: its inputs (n, D), what made them, and out-of-fold logits (R, P, n, K)."""

    result: Result
    projections: tuple[Projection, ...]
    inputs: np.ndarray
    logits: np.ndarray
    num_components: int


def _read(read_rows: RowReader, part: np.ndarray) -> np.ndarray:
    pieces = [read_rows(part[start : start + _ROWS_PER_READ]) for start in range(0, len(part), _ROWS_PER_READ)]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _select(
    problem: _Problem,
    table: _Table,
    candidates: Sequence[tuple[PooledLayer, ...]],
    penalties: Sequence[float],
    on_progress: Callable[[str, int, int], None],
) -> Selection:
    top = get_top_layer(problem.layout)
    # The top layer, or what there is no choice beside, is compared as it will be fitted.
    plain = candidates[0] if len(candidates) == 1 else top if top in candidates else None
    (plain_rng,) = problem.rng.spawn(1)

    def compare_plain() -> _Compared | None:
        return plain and _compare(problem, table, plain, penalties, _MAX_COMPONENTS, plain_rng)

    screened: list[Result] = []
    others = [layers for layers in candidates if layers != plain]
    if len(candidates) > _FINALISTS:
        step = functools.partial(on_progress, "comparing layers and poolings")
        first, screened = _screen(problem, table, candidates, compare_plain, step)
        finalists = [] if _is_decided(screened, problem.layout) else _pick_finalists(screened, problem.layout)
        others = [layers for layers in finalists if layers != plain]
    else:
        first = compare_plain()
    step = functools.partial(on_progress, "choosing layers and penalty")
    coarse = penalties[1::2] if len(penalties) > 3 else penalties
    compared = [first] if first else []
    tasks = list(zip(others, problem.rng.spawn(len(others)), strict=True))
    for _, each in map_bounded(
        lambda task: _compare(problem, table, task[0], coarse, _CHOICE_COMPONENTS, task[1]), tasks, count_cpus()
    ):
        compared.append(each)
        step(len(compared), len(others) + 1)
    results = [each.result for each in compared]
    winner, penalty = _choose(results, problem.layout)
    number = next(index for index, each in enumerate(results) if each is winner)
    if len(winner.penalties) < len(penalties):
        winner = _refine(problem, table, compared[number], penalties)
        results[number] = winner
        penalty = _choose([winner], problem.layout)[1]
    on_progress("fitting the head", 0, 0)
    chosen = compared[number]
    head, probs = _fit_final(problem, table, chosen if winner.layers == plain else None, winner, penalty)
    reached = {result.layers for result in results}
    scores = [_score(result, result.best, problem.layout, False) for result in screened if result.layers not in reached]
    for result in results:
        scores.append(_score(result, penalty if result is winner else result.best, problem.layout, True))
    scores.sort(key=lambda score: (not score.is_finalist, -score.accuracy, score.num_features))
    return Selection(
        head, tuple(scores), probs, get_top_layer(problem.layout), len(np.unique(problem.sample.folds[0]))
    )


def _screen(
    problem: _Problem,
    table: _Table,
    candidates: Sequence[tuple[PooledLayer, ...]],
    compare_plain: Callable[[], _Compared | None],
    step: Callable[[int, int], None],
) -> tuple[_Compared | None, list[Result]]:
    """Every candidate by least squares on few pictures and components; beside it, in a thread, the plain one in full."""
    part = table.take(draw_part(table.sample, _SCREEN_ROWS, problem.rng))
    blocks = list(dict.fromkeys(pooled for layers in candidates for pooled in layers))
    rngs = dict(zip(blocks, problem.rng.spawn(len(blocks)), strict=True))

    def run(pooled: PooledLayer | None) -> _Compared | np.ndarray | None:
        return part.project(pooled, _SCREEN_COMPONENTS, rngs[pooled])[1] if pooled else compare_plain()

    def judge_candidate(layers: tuple[PooledLayer, ...]) -> Result:
        inputs = _join([projected[pooled] for pooled in layers], _SCREEN_COLUMNS)
        logits = predict_by_least_squares(inputs, part.sample, _SCREEN_PENALTIES)
        return judge(layers, _SCREEN_PENALTIES, logits, part.sample.labels)

    projected = dict(map_bounded(run, [None, *blocks], count_cpus()))
    plain = projected.pop(None)
    results = []
    for _, result in map_bounded(judge_candidate, candidates, count_cpus()):
        results.append(result)
        step(len(results), len(candidates))
    return plain, results


def _join(blocks: Sequence[np.ndarray], limit: int) -> np.ndarray:
    """Projected blocks side by side; where they have more columns, the `limit` of the largest variance."""
    inputs = np.concatenate(blocks, axis=1)
    if inputs.shape[1] <= limit:
        return inputs
    order = np.argsort(-np.einsum("nd,nd->d", inputs, inputs), kind="stable")[:limit]
    return np.ascontiguousarray(inputs[:, np.sort(order)])


def _compare(
    problem: _Problem,
    table: _Table,
    layers: tuple[PooledLayer, ...],
    penalties: Sequence[float],
    num_components: int,
    rng: np.random.Generator,
) -> _Compared:
    sample = table.sample
    num_fits = len(penalties) * sum(len(np.unique(folds)) for folds in sample.folds)
    work = len(sample.labels) * num_fits * sample.num_classes
    limit = max(_MIN_COMPONENTS, min(_MAX_COMPONENTS, _MAX_CHOICE_WORK // work))
    count = min(num_components, limit)
    pairs = [table.project(pooled, count, rng) for pooled in layers]
    inputs = _join([projected for _, projected in pairs], limit)
    logits = predict_out_of_fold(inputs, sample, penalties, problem.fit)
    result = judge(layers, penalties, logits, sample.labels)
    return _Compared(result, tuple(projection for projection, _ in pairs), inputs, logits, count)


def _refine(problem: _Problem, table: _Table, compared: _Compared, penalties: Sequence[float]) -> Result:
    """The same candidate with all penalties: those that it was compared by and the others."""
    known = compared.result
    missing = tuple(penalty for penalty in penalties if penalty not in known.penalties)
    logits = predict_out_of_fold(compared.inputs, table.sample, missing, problem.fit)
    more = judge(known.layers, missing, logits, table.sample.labels)
    order = [(known.penalties + missing).index(penalty) for penalty in penalties]
    errors, losses = np.concatenate([known.errors, more.errors]), np.concatenate([known.losses, more.losses])
    return Result(known.layers, tuple(penalties), errors[order], losses[order])


def _is_decided(screened: Sequence[Result], layout: FeatureLayout) -> bool:
    """Whether the quick round leaves the top layer too close to the best for another to be chosen."""
    top = next((result for result in screened if result.layers == get_top_layer(layout)), None)
    best = min((result.errors[result.fewest] for result in screened), key=lambda errors: float(errors.mean()))
    return top is not None and top.errors[top.fewest].mean() <= best.mean() + _CLOSE * _compute_standard_error(best)


def _pick_finalists(results: Sequence[Result], layout: FeatureLayout) -> list[tuple[PooledLayer, ...]]:
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


def _choose(results: Sequence[Result], layout: FeatureLayout) -> tuple[Result, int]:
    """The candidate and the index of its penalty; see select_head."""
    top = next((result for result in results if result.layers == get_top_layer(layout)), None)
    limit = min(_add_standard_error(result.errors[result.fewest]) for result in results)
    if top and top.errors[top.fewest].mean() <= limit:
        limit = _add_standard_error(top.errors[top.fewest])
        return top, next(index for index, errors in enumerate(top.errors) if errors.mean() <= limit)
    options = [(result, index) for result in results for index in range(len(result.penalties))]
    least, at = min(options, key=lambda option: option[0].losses[option[1]].mean())

    def is_close(option: tuple[Result, int]) -> bool:
        excess = option[0].losses[option[1]] - least.losses[at]
        return bool(excess.mean() <= _compute_standard_error(excess))

    return min(filter(is_close, options), key=lambda option: (_count_features(option[0].layers, layout), option[1]))


def _compute_standard_error(values: np.ndarray) -> float:
    return float(values.std() / np.sqrt(len(values)))


def _add_standard_error(values: np.ndarray) -> float:
    return float(values.mean()) + _compute_standard_error(values)


def _count_features(layers: Sequence[PooledLayer], layout: FeatureLayout) -> int:
    return sum(layout.count_features(pooled) for pooled in layers)


def _score(result: Result, penalty: int, layout: FeatureLayout, is_finalist: bool) -> CandidateScore:
    return CandidateScore(
        layers=result.layers,
        num_features=_count_features(result.layers, layout),
        penalty=result.penalties[penalty],
        accuracy=float(1 - result.errors[penalty].mean()),
        log_loss=float(result.losses[penalty].mean()),
        num_images=result.errors.shape[1],
        is_finalist=is_finalist,
    )


def _fit_final(
    problem: _Problem, table: _Table, compared: _Compared | None, winner: Result, penalty: int
) -> tuple[LinearHead, np.ndarray]:
    """The head on all training pictures, and their out-of-fold probabilities.

    Where the winner was `compared` on all of them as it is to be fitted, only the fit without folds is left to do.
    """
    sample, layers, fit = problem.sample, winner.layers, problem.fit
    num_images = len(sample.labels)
    count = min(_MAX_COMPONENTS, max(_MIN_COMPONENTS, _MAX_FIT_NUMBERS // (num_images * len(layers))))
    everything = sample.weigh(np.ones(num_images, bool))[None]
    strength = winner.penalties[penalty]
    if compared and len(table.rows) == num_images and compared.num_components == count:
        projections, logits = compared.projections, compared.logits[0, penalty]
        inputs = compared.inputs
        last = fit(inputs, sample.labels, everything, np.array([strength]), sample.num_classes)[0]
    else:
        projections, inputs = _project_all(problem, table, layers, count)
        held_out = [sample.folds[0] == fold for fold in np.unique(sample.folds[0])]
        weights = np.concatenate([*(sample.weigh(~held)[None] for held in held_out), everything])
        fits = fit(inputs, sample.labels, weights, np.full(len(weights), strength), sample.num_classes)
        logits = np.empty((num_images, sample.num_classes), np.float32)
        for held, each in zip(held_out, fits, strict=False):
            logits[held] = inputs[held] @ each[:-1] + each[-1]
        last = fits[-1]
    temperature = fit_temperature(logits, sample.labels)
    head = _merge(layers, projections, last, strength, temperature)
    return head, apply_temperature(logits, temperature).astype(np.float32)


def _project_all(
    problem: _Problem, table: _Table, layers: tuple[PooledLayer, ...], num_components: int
) -> tuple[list[Projection], np.ndarray]:
    """Projections fitted on the table, and the projected rows float32 (N, D) of all pictures."""
    tasks = list(zip(layers, problem.rng.spawn(len(layers)), strict=True))
    pairs = [
        pair for _, pair in map_bounded(lambda task: table.project(task[0], num_components, task[1]), tasks, count_cpus())
    ]
    projections = [projection for projection, _ in pairs]
    num_images = len(problem.sample.labels)
    if num_images == len(table.rows):
        return projections, np.concatenate([projected for _, projected in pairs], axis=1)
    inputs = np.empty((num_images, sum(len(projection.offset) for projection in projections)), np.float32)

    def project(part: slice) -> None:
        blocks = [problem.layout.read_block(rows[part], pooled) for pooled in layers]
        pieces = [each.apply(block) for each, block in zip(projections, blocks, strict=True)]
        inputs[start:][part] = np.concatenate(pieces, axis=1)

    for start in range(0, num_images, _ROWS_PER_READ):
        rows = problem.read_rows(np.arange(start, min(start + _ROWS_PER_READ, num_images)))
        parts = [slice(begin, begin + _ROWS_PER_TASK) for begin in range(0, len(rows), _ROWS_PER_TASK)]
        for _ in map_bounded(project, parts, count_cpus()):
            pass
    return projections, inputs


def _merge(
    layers: tuple[PooledLayer, ...],
    projections: Sequence[Projection],
    fit: np.ndarray,
    penalty: float,
    temperature: float,
) -> LinearHead:
    """Multiply scale, projection and regression into one matrix on the raw features."""
    coefs, intercept, start = [], fit[-1].astype(np.float64), 0
    for projection in projections:
        part = fit[start : start + len(projection.offset)].astype(np.float64)
        coefs.append(projection.coef.astype(np.float64) @ part)
        intercept = intercept + projection.offset.astype(np.float64) @ part
        start += len(part)
    return LinearHead(
        layers, np.concatenate(coefs).astype(np.float32), intercept.astype(np.float32), penalty, temperature
    )
