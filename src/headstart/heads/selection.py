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
from headstart.heads.comparison import MAX_COMPONENTS, MIN_COMPONENTS, Compared, Table, compare, refine, screen
from headstart.heads.components import Projection
from headstart.heads.cross_validation import Fitter, Result, Sample, draw_part
from headstart.heads.fitting import fit_logistic
from headstart.heads.linear import LinearHead
from headstart.parallel import count_cpus, map_bounded

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""Strongest first; scikit-learn's C is 1 / (penalty * pictures)."""

# The top layer stays without further comparison while its errors exceed the best by no more than this share of a
# standard error: half of what the rule allows, because the quick round is less exact.
_CLOSE = 0.5
_FINALISTS = 4
_CHOICE_ROWS = 3000
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
    part = draw_part(sample, _CHOICE_ROWS, rng)
    pieces = [read_rows(part[start : start + _ROWS_PER_READ]) for start in range(0, len(part), _ROWS_PER_READ)]
    table = Table(np.concatenate(pieces), layout, sample.take(part), fit)
    problem = _Problem(read_rows, sample, table, rng)
    # Threads inside the matrix products would wait for each other, and sums depend on their number: blocks, candidates
    # and chunks of rows get a thread each instead.
    with threadpoolctl.threadpool_limits(1):
        return _select(problem, candidates, penalties, on_progress)


@dataclass(frozen=True, eq=False)
class _Problem:
    """All training pictures in `sample`, a part of them in `table`."""

    read_rows: RowReader
    sample: Sample
    table: Table
    rng: np.random.Generator


def _select(
    problem: _Problem,
    candidates: Sequence[tuple[PooledLayer, ...]],
    penalties: Sequence[float],
    on_progress: Callable[[str, int, int], None],
) -> Selection:
    table, layout = problem.table, problem.table.layout
    top = get_top_layer(layout)
    # The top layer, or what there is no choice beside, is compared as it will be fitted.
    plain = candidates[0] if len(candidates) == 1 else top if top in candidates else None
    (plain_rng,) = problem.rng.spawn(1)

    def compare_plain() -> Compared | None:
        return compare(table, plain, penalties, plain_rng, in_full=True) if plain else None

    screened: list[Result] = []
    others = [layers for layers in candidates if layers != plain]
    if len(candidates) > _FINALISTS:
        step = functools.partial(on_progress, "comparing layers and poolings")
        screened, first = screen(table, candidates, problem.rng, step, compare_plain)
        finalists = [] if _is_decided(screened, layout) else _pick_finalists(screened, layout)
        others = [layers for layers in finalists if layers != plain]
    else:
        first = compare_plain()
    step = functools.partial(on_progress, "choosing layers and penalty")
    coarse = penalties[1::2] if len(penalties) > 3 else penalties
    compared = [first] if first else []
    if compared and not screened:
        step(1, len(others) + 1)
    tasks = list(zip(others, problem.rng.spawn(len(others)), strict=True))
    for _, each in map_bounded(lambda task: compare(table, task[0], coarse, task[1]), tasks, count_cpus()):
        compared.append(each)
        step(len(compared), len(others) + 1)
    results = [each.result for each in compared]
    winner, penalty = _choose(results, layout)
    number = next(index for index, each in enumerate(results) if each is winner)
    if len(winner.penalties) < len(penalties):
        winner = refine(table, compared[number], penalties)
        results[number] = winner
        penalty = _choose([winner], layout)[1]
    on_progress("fitting the head", 0, 0)
    chosen = compared[number]
    head, probs = _fit_final(problem, chosen if winner.layers == plain else None, winner, penalty)
    reached = {result.layers for result in results}
    scores = [_score(result, result.best, layout, False) for result in screened if result.layers not in reached]
    for result in results:
        scores.append(_score(result, penalty if result is winner else result.best, layout, True))
    scores.sort(key=lambda score: (not score.is_finalist, -score.accuracy, score.num_features))
    return Selection(head, tuple(scores), probs, get_top_layer(layout), len(np.unique(problem.sample.folds[0])))


def _is_decided(screened: Sequence[Result], layout: FeatureLayout) -> bool:
    """Whether the quick round leaves the top layer too close to the best for another to be chosen."""
    top = next((result for result in screened if result.layers == get_top_layer(layout)), None)
    best = min((result.errors[result.fewest] for result in screened), key=lambda errors: float(errors.mean()))
    limit = float(best.mean()) + _CLOSE * _compute_standard_error(best)
    return top is not None and float(top.errors[top.fewest].mean()) <= limit


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
    problem: _Problem, compared: Compared | None, winner: Result, penalty: int
) -> tuple[LinearHead, np.ndarray]:
    """The head on all training pictures, and their out-of-fold probabilities.

    Where the winner was `compared` on all of them as it is to be fitted, only the fit without folds is left to do.
    """
    sample, layers, fit = problem.sample, winner.layers, problem.table.fit
    num_images = len(sample.labels)
    count = min(MAX_COMPONENTS, max(MIN_COMPONENTS, _MAX_FIT_NUMBERS // (num_images * len(layers))))
    everything = sample.weigh(np.ones(num_images, bool))[None]
    strength = winner.penalties[penalty]
    if compared and len(compared.inputs) == num_images and compared.num_components == count:
        projections, logits = compared.projections, compared.logits[0, penalty]
        inputs = compared.inputs
        last = fit(inputs, sample.labels, everything, np.array([strength]), sample.num_classes)[0]
    else:
        projections, inputs = _project_all(problem, layers, count)
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
    problem: _Problem, layers: tuple[PooledLayer, ...], num_components: int
) -> tuple[tuple[Projection, ...], np.ndarray]:
    """Projections fitted on the table, and the projected rows float32 (N, D) of all pictures."""
    table = problem.table

    def fit_one(task: tuple[PooledLayer, np.random.Generator]) -> tuple[Projection, np.ndarray]:
        return table.project(task[0], num_components, task[1])

    tasks = zip(layers, problem.rng.spawn(len(layers)), strict=True)
    pairs = [pair for _, pair in map_bounded(fit_one, tasks, count_cpus())]
    projections = tuple(projection for projection, _ in pairs)
    num_images = len(problem.sample.labels)
    if num_images == len(table.rows):
        return projections, np.concatenate([projected for _, projected in pairs], axis=1)
    inputs = np.empty((num_images, sum(len(projection.offset) for projection in projections)), np.float32)

    def project(part: np.ndarray) -> np.ndarray:
        blocks = [table.layout.read_block(part, pooled) for pooled in layers]
        return np.concatenate([each.apply(block) for each, block in zip(projections, blocks, strict=True)], axis=1)

    for start in range(0, num_images, _ROWS_PER_READ):
        rows = problem.read_rows(np.arange(start, min(start + _ROWS_PER_READ, num_images)))
        parts = [rows[begin : begin + _ROWS_PER_TASK] for begin in range(0, len(rows), _ROWS_PER_TASK)]
        done = [projected for _, projected in map_bounded(project, parts, count_cpus())]
        inputs[start : start + len(rows)] = np.concatenate(done)
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
