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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import threadpoolctl

from headstart.calibration import apply_temperature, fit_temperature_to_part
from headstart.features import FeatureLayout, get_top_layer, list_candidates
from headstart.graph import PooledLayer
from headstart.heads.comparison import (
    MAX_COMPONENTS,
    MIN_COMPONENTS,
    Block,
    Compared,
    Table,
    choose,
    compare,
    count_features,
    is_decided,
    pick_finalists,
    refine,
    screen,
)
from headstart.heads.components import Projection
from headstart.heads.cross_validation import Fitter, Result, Sample, draw_part
from headstart.heads.fitting import fit_logistic
from headstart.heads.linear import LinearHead
from headstart.parallel import count_cpus, map_bounded

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""Strongest first; scikit-learn's C is 1 / (penalty * pictures)."""

_FINALISTS = 5
# Where a comparison could afford fewer components a layer, as with 100 classes, there are only two.
_ENOUGH_COMPONENTS = 16
_CHOICE_ROWS = 3000
# Of fits where there are more pictures than are compared on: a quarter less time, no visible loss on CIFAR-10.
_MANY_TOLERANCE = 3e-3
# The projected training pictures of the final fit, float32: 128 MiB. Beyond, fewer components are kept.
_MAX_FIT_NUMBERS = 2**25
# Numbers to multiply once for each iteration of the final fit. Fewer components are kept from 500 classes or so on.
_MAX_FIT_WORK = 2**34
_MAX_TEMPERATURE_NUMBERS = 2**20
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
    rows = np.empty((len(part), layout.num_features), np.float16)
    for start in range(0, len(part), _ROWS_PER_READ):
        rows[start : start + _ROWS_PER_READ] = read_rows(part[start : start + _ROWS_PER_READ])
    if len(part) < len(labels):
        fit = functools.partial(fit, tolerance=_MANY_TOLERANCE)
    table = Table(rows, layout, sample.take(part), fit)
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
    plain_rng, rest_rng = problem.rng.spawn(2)
    blocks: dict[PooledLayer, Block] = {}

    def compare_plain() -> Compared | None:
        if plain is None:
            return None
        blocks.update(table.project_all(plain, plain_rng))
        return compare(table, plain, blocks, table.count_components(len(penalties), is_alone=True), penalties)

    coarse = penalties[1::2] if len(penalties) > 3 else penalties
    count = table.count_components(len(coarse), is_alone=False)
    screened: list[Result] = []
    others = [layers for layers in candidates if layers != plain]
    if len(candidates) > _FINALISTS:
        step = functools.partial(on_progress, "comparing layers and poolings")
        screened, first = screen(table, candidates, problem.rng, step, compare_plain)
        limit = 1 if is_decided(screened, layout) else _FINALISTS if count >= _ENOUGH_COMPONENTS else 2
        others = [layers for layers in pick_finalists(screened, layout, limit) if layers != plain]
    else:
        first = compare_plain()
    step = functools.partial(on_progress, "choosing layers and penalty")
    missing = dict.fromkeys(pooled for layers in others for pooled in layers if pooled not in blocks)
    blocks.update(table.project_all(list(missing), rest_rng))
    compared = [first] if first else []
    if compared and not screened:
        step(1, len(others) + 1)
    others.sort(key=len, reverse=True)  # what takes longest first, so that no thread is left with it at the end
    for _, each in map_bounded(lambda layers: compare(table, layers, blocks, count, coarse), others, count_cpus()):
        compared.append(each)
        step(len(compared), len(others) + 1)
    winner, penalty = choose([each.result for each in compared], layout)
    number = next(index for index, each in enumerate(compared) if each.result is winner)
    if len(winner.penalties) < len(penalties):
        compared[number] = refine(table, compared[number], penalties)
        winner, penalty = choose([compared[number].result], layout)
    on_progress("fitting the head", 0, 0)
    head, probs = _fit_final(problem, compared[number], blocks, penalty)
    results = [each.result for each in compared]
    reached = {result.layers for result in results}
    scores = [_score(result, result.best, layout, False) for result in screened if result.layers not in reached]
    for result in results:
        scores.append(_score(result, penalty if result is winner else result.best, layout, True))
    scores.sort(key=lambda score: (not score.is_finalist, -score.accuracy, score.num_features))
    return Selection(head, tuple(scores), probs, get_top_layer(layout), len(np.unique(problem.sample.folds[0])))


def _score(result: Result, penalty: int, layout: FeatureLayout, is_finalist: bool) -> CandidateScore:
    return CandidateScore(
        layers=result.layers,
        num_features=count_features(result.layers, layout),
        penalty=result.penalties[penalty],
        accuracy=float(1 - result.errors[penalty].mean()),
        log_loss=float(result.losses[penalty].mean()),
        num_images=result.errors.shape[1],
        is_finalist=is_finalist,
    )


def _fit_final(
    problem: _Problem, compared: Compared, blocks: Mapping[PooledLayer, Block], penalty: int
) -> tuple[LinearHead, np.ndarray]:
    """The head on all training pictures, and their out-of-fold probabilities.

    Where the winner was `compared` on all of them as it is to be fitted, only the fit without folds is left to do.
    """
    sample, fit, layers = problem.sample, problem.table.fit, compared.result.layers
    num_images = len(sample.labels)
    held_out = [sample.folds[0] == fold for fold in np.unique(sample.folds[0])]
    work = num_images * (len(held_out) + 1) * sample.num_classes
    most = min(_MAX_FIT_NUMBERS // num_images, _MAX_FIT_WORK // work) // len(layers)
    count = min(MAX_COMPONENTS, max(MIN_COMPONENTS, most))
    projections = [blocks[pooled][0].keep(count) for pooled in layers]
    everything = sample.weigh(np.ones(num_images, bool))[None]
    strength = compared.result.penalties[penalty]
    if len(compared.inputs) == num_images and compared.num_components == count and compared.logits is not None:
        last = fit(compared.inputs, sample.labels, everything, np.array([strength]), sample.num_classes)[0]
        logits = compared.logits[penalty]
    else:
        inputs = _project(problem, layers, projections)
        weights = np.concatenate([*(sample.weigh(~held)[None] for held in held_out), everything])
        near = _start_from(compared, penalty, [blocks[pooled][1].shape[1] for pooled in layers], count)
        fits = fit(inputs, sample.labels, weights, np.full(len(weights), strength), sample.num_classes, start=near)
        logits = np.empty((num_images, sample.num_classes), np.float32)
        for held, each in zip(held_out, fits, strict=False):
            logits[held] = inputs[held] @ each[:-1] + each[-1]
        last = fits[-1]
    temperature = fit_temperature_to_part(logits, sample.labels, _MAX_TEMPERATURE_NUMBERS)
    for start in range(0, num_images, _ROWS_PER_READ):
        part = slice(start, start + _ROWS_PER_READ)
        logits[part] = apply_temperature(logits[part], temperature)
    return _merge(layers, projections, last, strength, temperature), logits


def _start_from(compared: Compared, penalty: int, most: Sequence[int], count: int) -> np.ndarray:
    """The fits of the comparison as near solutions (F + 1, D + 1, K) on at most `count` components a layer.

    The comparison had the leading ones of the same components, of which there are `most`. The last, for all pictures,
    is the mean of the folds'.
    """
    fits = compared.fits[penalty]
    widths = [min(count, width) for width in most]
    starts = np.zeros((len(fits) + 1, sum(widths) + 1, fits.shape[2]), np.float32)
    source = target = 0
    for width, available in zip(widths, most, strict=True):
        tried = min(compared.num_components, available)
        shared = min(tried, width)
        starts[:-1, target : target + shared] = fits[:, source : source + shared]
        source, target = source + tried, target + width
    starts[:-1, -1] = fits[:, -1]
    starts[-1] = starts[:-1].mean(axis=0)
    return starts


def _project(problem: _Problem, layers: tuple[PooledLayer, ...], projections: Sequence[Projection]) -> np.ndarray:
    """The projected rows float32 (N, D) of all pictures."""
    num_images, layout = len(problem.sample.labels), problem.table.layout
    inputs = np.empty((num_images, sum(len(projection.offset) for projection in projections)), np.float32)

    def project(part: np.ndarray) -> np.ndarray:
        pieces = [layout.read_block(part, pooled) for pooled in layers]
        return np.concatenate([each.apply(piece) for each, piece in zip(projections, pieces, strict=True)], axis=1)

    for start in range(0, num_images, _ROWS_PER_READ):
        rows = problem.read_rows(np.arange(start, min(start + _ROWS_PER_READ, num_images)))
        parts = [rows[begin : begin + _ROWS_PER_TASK] for begin in range(0, len(rows), _ROWS_PER_TASK)]
        done = [projected for _, projected in map_bounded(project, parts, count_cpus())]
        inputs[start : start + len(rows)] = np.concatenate(done)
    return inputs


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
