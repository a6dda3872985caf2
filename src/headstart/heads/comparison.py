"""Candidates for a head, layers side by side: compared by cross-validation on a part of the pictures, and chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headstart.features import FeatureLayout, get_top_layer
from headstart.graph import PooledLayer
from headstart.heads.components import Projection, fit_projection
from headstart.heads.cross_validation import (
    Fitter,
    Result,
    Sample,
    draw_part,
    judge,
    predict_by_least_squares,
    predict_out_of_fold,
)
from headstart.parallel import count_cpus, map_bounded

_SCREEN_ROWS = 1500
_SCREEN_COMPONENTS = 128
_SCREEN_COLUMNS = 320
_SCREEN_PENALTIES = (10.0, 1.0, 0.1, 0.01)
MIN_COMPONENTS, MAX_COMPONENTS = 64, 512
# Numbers to multiply once for each iteration of the fits of a cross-validation, so that many classes do not take longer
# and longer: fewer components are kept for it. The last round counts with as many layers as its widest candidates have,
# so that all have the same number a layer: 119 for 3000 pictures of 10 classes, 357 for 500.
_MAX_WORK, _MAX_WORK_OF_CANDIDATE = 2**31, 2**28
_MOST_LAYERS = 5
# Logits that are kept for the final fit, float32: 16 MiB.
_MAX_KEPT_LOGITS = 2**22
# The top layer stays without further comparison while its errors exceed the best by no more than this share of a
# standard error: half of what the rule allows, because the quick round is less exact.
_CLOSE = 0.5

Block = tuple[Projection, np.ndarray]
"""The projection of a pooled layer, and the projected rows float32 (n, r)."""


@dataclass(frozen=True, eq=False)
class Table:
    """The rows float16 (n, D) of the pictures that candidates are compared on, and what fits a head to them."""

    rows: np.ndarray
    layout: FeatureLayout
    sample: Sample
    fit: Fitter

    def take(self, part: np.ndarray) -> Table:
        return (
            self
            if len(part) == len(self.rows)
            else Table(self.rows[part], self.layout, self.sample.take(part), self.fit)
        )

    def project(self, pooled: PooledLayer, count: int, rng: np.random.Generator) -> Block:
        return fit_projection(self.layout.read_block(self.rows, pooled), count, rng)

    def project_all(self, blocks: Sequence[PooledLayer], rng: np.random.Generator) -> dict[PooledLayer, Block]:
        """Each on as many components as a final fit may take."""
        tasks = zip(blocks, rng.spawn(len(blocks)), strict=True)
        done = map_bounded(lambda task: self.project(task[0], MAX_COMPONENTS, task[1]), tasks, count_cpus())
        return {task[0]: block for task, block in done}

    def count_components(self, num_penalties: int, *, is_alone: bool) -> int:
        """How many a layer the comparison of a candidate can afford, unless it `is_alone`; may be next to none."""
        num_fits = num_penalties * sum(len(np.unique(folds)) for folds in self.sample.folds)
        work = len(self.sample.labels) * num_fits * self.sample.num_classes
        return _MAX_WORK // work if is_alone else _MAX_WORK_OF_CANDIDATE // (work * _MOST_LAYERS)


@dataclass(frozen=True, eq=False)
class Compared:
    """A candidate of the last round on `num_components` a layer.

    `fits` (P, F, D + 1, K) are those of the first way's folds, `logits` (P, n, K) what they give; the latter are kept
    only while they are few.
    """

    result: Result
    inputs: np.ndarray
    num_components: int
    fits: np.ndarray
    logits: np.ndarray | None


def screen(
    table: Table,
    candidates: Sequence[tuple[PooledLayer, ...]],
    rng: np.random.Generator,
    step: Callable[[int, int], None],
    beside: Callable[[], Compared | None],
) -> tuple[list[Result], Compared | None]:
    """Every candidate by least squares on few pictures and components; and what `beside` gives, in a thread."""
    part = table.take(draw_part(table.sample, _SCREEN_ROWS, rng))
    blocks = list(dict.fromkeys(pooled for layers in candidates for pooled in layers))
    projected: dict[PooledLayer, np.ndarray] = {}
    found: list[Compared | None] = []

    def project(task: tuple[PooledLayer, np.random.Generator] | None) -> None:
        if task is None:
            found.append(beside())
        else:
            projected[task[0]] = part.project(task[0], _SCREEN_COMPONENTS, task[1])[1]

    def judge_candidate(layers: tuple[PooledLayer, ...]) -> Result:
        inputs = _join([projected[pooled] for pooled in layers], _SCREEN_COLUMNS)
        logits = predict_by_least_squares(inputs, part.sample, _SCREEN_PENALTIES)
        return judge(layers, _SCREEN_PENALTIES, logits, part.sample.labels)

    for _ in map_bounded(project, [None, *zip(blocks, rng.spawn(len(blocks)), strict=True)], count_cpus()):
        pass
    results = []
    for _, result in map_bounded(judge_candidate, candidates, count_cpus()):
        results.append(result)
        step(len(results), len(candidates))
    return results, found[0]


def _join(blocks: Sequence[np.ndarray], limit: int) -> np.ndarray:
    """Projected blocks side by side; where they have more columns, the `limit` of the largest variance."""
    inputs = np.concatenate(blocks, axis=1)
    if inputs.shape[1] <= limit:
        return inputs
    order = np.argsort(-np.einsum("nd,nd->d", inputs, inputs), kind="stable")[:limit]
    return np.ascontiguousarray(inputs[:, np.sort(order)])


def compare(
    table: Table,
    layers: tuple[PooledLayer, ...],
    blocks: Mapping[PooledLayer, Block],
    count: int,
    penalties: Sequence[float],
) -> Compared:
    """A candidate by the fits that count, on `count` components a layer, within bounds."""
    count = min(MAX_COMPONENTS, max(MIN_COMPONENTS, count))
    inputs = np.concatenate([blocks[pooled][1][:, :count] for pooled in layers], axis=1)
    logits, fits = predict_out_of_fold(inputs, table.sample, penalties, table.fit)
    kept = logits[0].copy() if logits[0].size <= _MAX_KEPT_LOGITS else None
    first = fits[:, : len(np.unique(table.sample.folds[0]))].copy()
    return Compared(judge(layers, penalties, logits, table.sample.labels), inputs, count, first, kept)


def refine(table: Table, compared: Compared, penalties: Sequence[float]) -> Compared:
    """The same candidate with more penalties: the neighbours of the best in `penalties`, where those are missing."""
    known = compared.result
    at = penalties.index(known.penalties[known.best])
    tried = tuple(each for n, each in enumerate(penalties) if abs(n - at) == 1 or each in known.penalties)
    missing = tuple(penalty for penalty in tried if penalty not in known.penalties)
    if not missing:
        return compared
    logits, fits = predict_out_of_fold(compared.inputs, table.sample, missing, table.fit)
    more = judge(known.layers, missing, logits, table.sample.labels)
    order = [(known.penalties + missing).index(penalty) for penalty in tried]
    errors, losses = np.concatenate([known.errors, more.errors]), np.concatenate([known.losses, more.losses])
    result = Result(known.layers, tried, errors[order], losses[order])
    kept = None if compared.logits is None else np.concatenate([compared.logits, logits[0]])[order]
    together = np.concatenate([compared.fits, fits[:, : compared.fits.shape[1]]])[order]
    return Compared(result, compared.inputs, compared.num_components, together, kept)


def is_decided(screened: Sequence[Result], layout: FeatureLayout) -> bool:
    """Whether the quick round leaves the top layer too close to the best for another to be chosen."""
    top = next((result for result in screened if result.layers == get_top_layer(layout)), None)
    best = min((result.errors[result.fewest] for result in screened), key=lambda errors: float(errors.mean()))
    limit = float(best.mean()) + _CLOSE * _compute_error_of_share(best)
    return top is not None and float(top.errors[top.fewest].mean()) <= limit


def pick_finalists(results: Sequence[Result], layout: FeatureLayout, limit: int) -> list[tuple[PooledLayer, ...]]:
    """At most `limit`: the top layer, the simplest within one standard error of the best, and the least log losses."""
    by_loss = sorted(results, key=lambda result: result.losses.mean(axis=1).min())
    simplest, _ = choose(results, layout)
    ranked = dict.fromkeys([get_top_layer(layout), simplest.layers, *(result.layers for result in by_loss)])
    available = {result.layers for result in results}
    return [layers for layers in ranked if layers in available][:limit]


def choose(results: Sequence[Result], layout: FeatureLayout) -> tuple[Result, int]:
    """The candidate and the index of its penalty; see selection.select_head."""
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

    return min(filter(is_close, options), key=lambda option: (count_features(option[0].layers, layout), option[1]))


def _compute_standard_error(values: np.ndarray) -> float:
    return float(values.std() / np.sqrt(len(values)))


def _compute_error_of_share(errors: np.ndarray) -> float:
    """Standard error of a share of errors; without any, as if there were one: chance may have spared it."""
    return max(_compute_standard_error(errors), 1 / len(errors))


def _add_standard_error(errors: np.ndarray) -> float:
    return float(errors.mean()) + _compute_error_of_share(errors)


def count_features(layers: Sequence[PooledLayer], layout: FeatureLayout) -> int:
    return sum(layout.count_features(pooled) for pooled in layers)
