"""Two or more classifiers on the same pictures: which is better, and which are tied."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from headstart._files import show_path
from headstart.errors import DataError, raise_all
from headstart.evaluation import Evaluation
from headstart.metrics import FloatArray, compute_losses
from headstart.stats import (
    CONFIDENCE,
    compute_mcnemar_size,
    correct_holm,
    log_loss_interval,
    mcnemar_exact,
    paired_difference_interval,
    paired_log_loss_interval,
    wilson_interval,
)

MAX_P_VALUE = 1 - CONFIDENCE


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One classifier on the N shared pictures: accuracy, a fraction, and log loss in nats, each with its interval."""

    name: str
    num_correct: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    log_loss: float
    log_loss_interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class PairScore:
    """Two classifiers on the same pictures. Differences are `a` minus `b`, each with its interval.

    `p_value` is of McNemar's exact test, `p_corrected` after Holm's correction for all pairs. `better` is "a" or "b"
    where `p_corrected` < 0.05, else None: a tie. `num_needed` is how many pictures in all would tell a tie apart with a
    power of 80 % at the rates seen; None where none would, because these are equal, and where it is no tie.
    """

    a: str
    b: str
    num_only_a: int
    num_only_b: int
    p_value: float
    p_corrected: float
    accuracy_difference: float
    accuracy_difference_interval: tuple[float, float]
    log_loss_difference: float
    log_loss_difference_interval: tuple[float, float]
    better: Literal["a", "b"] | None
    num_needed: int | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`num_left_out` counts, by name, the pictures of a classifier that not all the others have."""

    num_images: int
    num_left_out: dict[str, int]
    models: tuple[ModelScore, ...]
    pairs: tuple[PairScore, ...]


def compare_evaluations(evaluations: Mapping[str, Evaluation]) -> Comparison:
    """Compare two or more classifiers, by name, on the pictures that all of them have rows for.

    Rows belong together where SHA-256 and path are the same. Classes are matched by name, in whatever order. Raises
    DataError where there are fewer than two, where classes differ, where a picture has two labels, or where none is
    shared.
    """
    if len(evaluations) < 2:
        raise DataError(f"There is {len(evaluations)} evaluation to compare. Give at least two.")
    names = list(evaluations)
    classes = evaluations[names[0]].classes
    raise_all(DataError, [text for name in names[1:] if (text := _say_other_classes(evaluations, names[0], name))])
    keys = {name: _make_keys(each) for name, each in evaluations.items()}
    shared = [key for key in keys[names[0]] if all(key in keys[name] for name in names[1:])]
    if not shared:
        raise DataError("No picture was evaluated by all. Evaluate the classifiers on the same pictures.")
    rows = {name: np.array([keys[name][key] for key in shared]) for name in names}
    labels = _match_labels(evaluations, rows, classes)
    answers = []
    for name, evaluation in evaluations.items():
        order = [evaluation.classes.index(label) for label in classes]
        probs = evaluation.probs[rows[name]][:, order]
        answers.append(_Answers(name, evaluation.correct[rows[name]], compute_losses(labels, probs), probs))
    pairs = list(itertools.combinations(answers, 2))
    p_values = [mcnemar_exact(a.correct, b.correct) for a, b in pairs]
    corrected = correct_holm(p_values).tolist()
    return Comparison(
        num_images=len(shared),
        num_left_out={name: len(keys[name]) - len(shared) for name in names},
        models=tuple(map(_score, answers)),
        pairs=tuple(
            _compare_pair(a, b, p_value, p_corrected, len(pairs))
            for (a, b), p_value, p_corrected in zip(pairs, p_values, corrected, strict=True)
        ),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """One classifier on the shared pictures: correct bool (N,), losses (N,), probs (N, K) in the common class order."""

    name: str
    correct: np.ndarray
    losses: FloatArray
    probs: np.ndarray


def _say_other_classes(evaluations: Mapping[str, Evaluation], first: str, other: str) -> str:
    left, right = (set(evaluations[name].classes) for name in (first, other))
    only = [
        f"{', '.join(map(show_path, sorted(classes)))} only in {show_path(name)}"
        for classes, name in ((left - right, first), (right - left, other))
        if classes
    ]
    return f"{show_path(first)} and {show_path(other)} have other classes: {'; '.join(only)}." if only else ""


def _make_keys(evaluation: Evaluation) -> dict[tuple[str, str, int], int]:
    """What a row is known by, to its number. A file that was evaluated twice has two rows, told apart by a count."""
    seen: Counter[tuple[str, str]] = Counter()
    keys = {}
    for row, key in enumerate(zip(evaluation.sha256, evaluation.paths, strict=True)):
        keys[*key, seen[key]] = row
        seen[key] += 1
    return keys


def _match_labels(
    evaluations: Mapping[str, Evaluation], rows: Mapping[str, np.ndarray], classes: tuple[str, ...]
) -> np.ndarray:
    """The labels (N,) as numbers of `classes`, the same for all or DataError."""
    found = []
    for name, evaluation in evaluations.items():
        numbers = np.array([classes.index(label) for label in evaluation.classes])
        found.append(numbers[evaluation.labels[rows[name]]])
    differing = np.flatnonzero(np.ptp(found, axis=0))
    if differing.size:
        first = next(iter(evaluations))
        path = evaluations[first].paths[rows[first][differing[0]]]
        raise DataError(
            f"{differing.size} pictures are labelled differently in the evaluations; the first is {show_path(path)}. "
            "Evaluate all classifiers on the pictures as they are labelled now."
        )
    return np.asarray(found[0])


def _score(answers: _Answers) -> ModelScore:
    num_correct, n = int(answers.correct.sum()), len(answers.correct)
    return ModelScore(
        name=answers.name,
        num_correct=num_correct,
        accuracy=num_correct / n,
        accuracy_interval=wilson_interval(num_correct, n),
        log_loss=float(answers.losses.mean()),
        log_loss_interval=log_loss_interval(answers.losses, answers.probs),
    )


def _compare_pair(a: _Answers, b: _Answers, p_value: float, p_corrected: float, num_pairs: int) -> PairScore:
    n = len(a.correct)
    only_a, only_b = int((a.correct & ~b.correct).sum()), int((b.correct & ~a.correct).sum())
    better: Literal["a", "b"] | None = None
    num_needed = None
    if p_corrected < MAX_P_VALUE:
        better = "a" if only_a > only_b else "b"
    else:
        # The strictest of Holm's levels: what is enough for it is enough whatever the other pairs show.
        num_needed = compute_mcnemar_size(only_a / n, only_b / n, max_p_value=MAX_P_VALUE / num_pairs)
    return PairScore(
        a=a.name,
        b=b.name,
        num_only_a=only_a,
        num_only_b=only_b,
        p_value=p_value,
        p_corrected=p_corrected,
        accuracy_difference=(only_a - only_b) / n,
        accuracy_difference_interval=paired_difference_interval(only_a, only_b, n),
        log_loss_difference=float((a.losses - b.losses).mean()),
        log_loss_difference_interval=paired_log_loss_interval(a.losses, b.losses, a.probs, b.probs),
        better=better,
        num_needed=num_needed,
    )
