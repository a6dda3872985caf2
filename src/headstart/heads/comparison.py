"""Candidates for a head, layers side by side, compared by cross-validation on a part of the training pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from headstart.features import FeatureLayout
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
_COMPONENTS = 256
MIN_COMPONENTS, MAX_COMPONENTS = 64, 512
# Numbers of a cross-validation to multiply at a time, so that many classes do not take longer and longer: from 80 on
# fewer components are kept for it.
_MAX_WORK = 2**32


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

    def project(self, pooled: PooledLayer, count: int, rng: np.random.Generator) -> tuple[Projection, np.ndarray]:
        return fit_projection(self.layout.read_block(self.rows, pooled), count, rng)


@dataclass(frozen=True, eq=False)
class Compared:
    """A candidate of the last round: its inputs (n, D), what made them, and out-of-fold logits (R, P, n, K).

    Each layer has `num_components` at most; of several layers `inputs` may leave columns out.
    """

    result: Result
    projections: tuple[Projection, ...]
    inputs: np.ndarray
    logits: np.ndarray
    num_components: int


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
    penalties: Sequence[float],
    rng: np.random.Generator,
    *,
    in_full: bool = False,
) -> Compared:
    """A candidate by the fits that count, on few components unless `in_full`, which takes as many as a final fit."""
    sample = table.sample
    num_fits = len(penalties) * sum(len(np.unique(folds)) for folds in sample.folds)
    limit = max(MIN_COMPONENTS, _MAX_WORK // (len(sample.labels) * num_fits * sample.num_classes))
    count = min(MAX_COMPONENTS, max(MIN_COMPONENTS, limit // len(layers))) if in_full else min(_COMPONENTS, limit)
    pairs = [table.project(pooled, count, each) for pooled, each in zip(layers, rng.spawn(len(layers)), strict=True)]
    width = len(layers) * count if in_full else min(limit, MAX_COMPONENTS)
    inputs = _join([projected for _, projected in pairs], width)
    logits = predict_out_of_fold(inputs, sample, penalties, table.fit)
    result = judge(layers, penalties, logits, sample.labels)
    return Compared(result, tuple(projection for projection, _ in pairs), inputs, logits, count)


def refine(table: Table, compared: Compared, penalties: Sequence[float]) -> Result:
    """The same candidate with all penalties: those that it was compared by and the others."""
    known = compared.result
    missing = tuple(penalty for penalty in penalties if penalty not in known.penalties)
    logits = predict_out_of_fold(compared.inputs, table.sample, missing, table.fit)
    more = judge(known.layers, missing, logits, table.sample.labels)
    order = [(known.penalties + missing).index(penalty) for penalty in penalties]
    errors, losses = np.concatenate([known.errors, more.errors]), np.concatenate([known.losses, more.losses])
    return Result(known.layers, tuple(penalties), errors[order], losses[order])
