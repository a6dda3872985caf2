"""A linear support vector machine on cached features, in the place of the logistic regression of `heads.selection`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from sklearn.svm import LinearSVC

from headstart.features import FeatureLayout, get_top_layer
from headstart.graph import PooledLayer
from headstart.heads.selection import RowReader, Selection, select_head
from headstart.parallel import count_cpus, map_bounded

SVM_PENALTIES = (30.0, 10.0, 3.0, 1.0, 0.3)
"""Strongest first; scikit-learn's C is 1 / (penalty * pictures)."""

# liblinear punishes the intercept too; as the coefficient of a large column it costs next to nothing.
_INTERCEPT_COLUMN = 10.0
# Newton steps: 3 to 30 are taken, so that scikit-learn never has to warn of too few.
_MAX_ITERATIONS = 10_000


def select_svm(
    read_rows: RowReader,
    layout: FeatureLayout,
    labels: np.ndarray,
    folds: np.ndarray,
    num_classes: int,
    *,
    candidates: Sequence[tuple[PooledLayer, ...]] | None = None,
    penalties: Sequence[float] = SVM_PENALTIES,
    class_weights: np.ndarray | None = None,
    rng: np.random.Generator,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Selection:
    """Choose among `candidates` and `penalties` and fit, by the rules of `select_head`, whose arguments these are.

    Without `candidates` it is the top layer alone. The head's logits are the decision values, its temperature makes
    probabilities of them.
    """
    selection = select_head(
        read_rows,
        layout,
        labels,
        folds,
        num_classes,
        candidates=candidates or [get_top_layer(layout)],
        penalties=penalties,
        class_weights=class_weights,
        fit=fit_svm,
        rng=rng,
        on_progress=on_progress,
    )
    return replace(selection, head=replace(selection.head, kind="svm"))


def fit_svm(
    rows: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    penalties: np.ndarray,
    num_classes: int,
    tolerance: float = 1e-3,
    *,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """One class against the rest with squared hinge loss; arguments and result as of `fit_logistic`.

    `start` changes nothing: liblinear begins where it does.

    A class k of problem b minimises, over the rows with s_i = 1 where the label is k and -1 elsewhere,

        sum_i w_bi * max(0, 1 - s_i (x_i v + c))^2  +  penalty_b / 2 * ||v||^2

    Of two classes the second is fitted, and the result halved between them: -d/2 and d/2.
    """
    columns = np.full((len(rows), rows.shape[1] + 1), _INTERCEPT_COLUMN)
    columns[:, :-1] = rows

    def fit_one(problem: int) -> np.ndarray:
        used = weights[problem] > 0
        part, part_labels, part_weights = columns[used], labels[used], weights[problem, used]
        fit = np.zeros((columns.shape[1], num_classes))
        # LinearSVC takes all classes at once too, but then needs two to three times as long.
        for label in range(num_classes) if num_classes > 2 else (1,):
            is_label = part_labels == label
            if is_label.all() or not is_label.any():
                fit[-1, label] = (1 if is_label.all() else -1) / _INTERCEPT_COLUMN
                continue
            # The primal: its Newton method draws nothing at random and is not slow where the penalty is weak.
            model = LinearSVC(
                dual=False, C=1 / penalties[problem], fit_intercept=False, tol=tolerance, max_iter=_MAX_ITERATIONS
            )
            fit[:, label] = model.fit(part, is_label, sample_weight=part_weights).coef_[0]
        if num_classes == 2:
            fit = np.stack([-fit[:, 1] / 2, fit[:, 1] / 2], axis=1)
        fit[-1] *= _INTERCEPT_COLUMN
        return fit.astype(np.float32)

    return np.stack([fit for _, fit in map_bounded(fit_one, range(len(penalties)), count_cpus())])
