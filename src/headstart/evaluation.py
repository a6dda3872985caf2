"""One row per picture: every figure, list and file about a classifier's quality is a view of these rows."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart import metrics
from headstart._files import show_path
from headstart.calibration import compute_chance_ece
from headstart.csv_text import escape_text, quote_field
from headstart.errors import DataError, raise_all
from headstart.metrics import FloatArray, IntArray
from headstart.stats import (
    CONFIDENCE,
    NUM_RESAMPLES,
    bootstrap_interval,
    log_loss_interval,
    macro_f1_interval,
    weighted_rate_interval,
    wilson_interval,
)


@dataclass(frozen=True, slots=True)
class Confusion:
    """`count` pictures of class number `true` were taken for class number `predicted`."""

    true: int
    predicted: int
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What a classifier answered for each of N pictures, in the order given.

    `classes` are K >= 2 different names; `paths` and `sha256` (of the file's bytes, may be "") have N entries;
    `labels` is int64 (N,), the class number each picture is labelled with; `probs` is float32 (N, K). The arrays are
    copied and read-only. Raises DataError that says what does not fit.
    """

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    sha256: tuple[str, ...]
    labels: IntArray
    probs: npt.NDArray[np.float32]
    _figures: dict[int, dict[str, Any]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("classes", "paths", "sha256"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "probs", _freeze(np.array(metrics.check_probs(self.probs), np.float32)))
        object.__setattr__(self, "labels", _freeze(metrics.check_labels(self.labels, self.probs.shape[1]).copy()))
        raise_all(DataError, self._find_problems())

    def _find_problems(self) -> Iterable[str]:
        num_images, num_classes = self.probs.shape
        if len(self.classes) != num_classes:
            yield f"There are {len(self.classes)} class names and probs has {num_classes} columns. Expected as many."
        if num_classes < 2:
            yield "There is 1 class. Expected at least 2."
        if doubles := sorted({name for name in self.classes if self.classes.count(name) > 1}):
            yield f"Class names occur twice: {', '.join(map(show_path, doubles))}. Expected different names."
        for name in ("paths", "sha256", "labels"):
            if (length := len(getattr(self, name))) != num_images:
                yield f"{name} has {length} entries and probs has {num_images} rows. Expected the same pictures."

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Evaluation):
            return NotImplemented
        return (
            (self.classes, self.paths, self.sha256) == (other.classes, other.paths, other.sha256)
            and np.array_equal(self.labels, other.labels)
            and np.array_equal(self.probs, other.probs)
        )

    @property
    def predicted(self) -> IntArray:
        """The most probable class (N,); in a tie the one with the lower number."""
        predicted: IntArray = self.probs.argmax(axis=1).astype(np.int64, copy=False)
        return predicted

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether the most probable class is the labelled one (N,)."""
        correct: npt.NDArray[np.bool_] = self.predicted == self.labels
        return correct

    def mistakes(self) -> IntArray:
        """Row numbers of the wrong predictions, the surest first: those most likely to be wrong labels."""
        rows = np.flatnonzero(~self.correct)
        return rows[np.argsort(-self.probs[rows].max(axis=1), kind="stable")].astype(np.int64, copy=False)

    def most_confused(self, limit: int | None = None) -> list[Confusion]:
        """Pairs of classes, the most frequent first, then in class order."""
        rows = np.flatnonzero(~self.correct)
        pairs, counts = np.unique(
            np.stack([self.labels[rows], self.predicted[rows]], axis=1), axis=0, return_counts=True
        )
        order = np.argsort(-counts, kind="stable")[:limit]
        return [Confusion(int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i])) for i in order]

    def compute_figures(self, seed: int = 0) -> dict[str, Any]:
        """All figures, ready for JSON; the same rows and seed give the same dict. What is not defined is None.

        Accuracy and recall carry Wilson intervals, balanced accuracy and log loss score intervals, because resampling
        shows no mistake that the rows do not hold. Macro F1 and ECE carry basic bootstrap intervals from `seed`, whose
        percentiles would lie too low and too high, widened in the same way. The interval of `ece` starts at 0 when it
        lies within `ece_if_calibrated`, the range that chance alone gives a perfectly calibrated classifier.
        benchmarks/coverage.py simulates how often they hold the truth.

        `log_loss` is in nats, the rest are fractions. Numbers are rounded to 12 digits, so that processors which differ
        in the last bit give the same. They are computed once for a seed; what is nested in the dict is shared by all
        who ask, and not to be changed.
        """
        if seed not in self._figures:
            self._figures[seed] = self._compute_figures(seed)
        return dict(self._figures[seed])

    def _compute_figures(self, seed: int) -> dict[str, Any]:
        num_images, num_classes = self.probs.shape
        predicted = self.predicted
        scores = metrics.compute_precision_recall_f1(self.labels, predicted, num_classes)
        confusion = metrics.compute_confusion_matrix(self.labels, predicted, num_classes)
        num_right = confusion.diagonal()
        rng = np.random.default_rng(seed)
        ece = metrics.compute_ece(self.labels, self.probs)
        log_loss = metrics.compute_log_loss(self.labels, self.probs)
        resampled = bootstrap_interval(
            _make_statistics(self), num_images, rng, NUM_RESAMPLES, CONFIDENCE, [scores.macro_f1, ece]
        )
        chance = compute_chance_ece(self.probs, rng)
        mean_confidence = float(self.probs.max(axis=1).mean(dtype=np.float64))
        known = scores.num_images > 0
        weights = np.full(known.sum(), 1 / known.sum())
        figures = {
            "n": num_images,
            "num_correct": int(num_right.sum()),
            "confidence_level": CONFIDENCE,
            "num_resamples": NUM_RESAMPLES,
            "seed": seed,
            "accuracy": _with_wilson(int(num_right.sum()), num_images),
            "balanced_accuracy": _with_interval(
                scores.macro_recall, weighted_rate_interval(num_right[known], scores.num_images[known], weights)
            ),
            "macro_f1": _with_interval(scores.macro_f1, _join(resampled[0], macro_f1_interval(confusion))),
            "log_loss": _with_interval(
                log_loss, log_loss_interval(metrics.compute_losses(self.labels, self.probs), self.probs)
            ),
            "ece": _with_interval(
                ece,
                _widen_ece(
                    ece, resampled[1], chance, mean_confidence, wilson_interval(int(num_right.sum()), num_images)
                ),
            ),
            "ece_if_calibrated": dict(zip(("low", "high"), chance, strict=True)),
            "mean_confidence": mean_confidence,
            "classes": list(self.classes),
            "per_class": [
                {
                    "class": name,
                    "n": int(scores.num_images[k]),
                    "num_predicted": int(confusion[:, k].sum()),
                    "precision": float(scores.precision[k]),
                    "recall": _with_wilson(int(num_right[k]), int(scores.num_images[k])),
                    "f1": float(scores.f1[k]),
                }
                for k, name in enumerate(self.classes)
            ],
        }
        ready: dict[str, Any] = make_json_ready(figures, digits=12)
        return ready | {"confusion_matrix": confusion.tolist()}

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        from headstart.evaluation_plots import render_evaluation

        return render_evaluation(self)

    def plot_reliability(self) -> Any:
        """A matplotlib Figure of accuracy against stated probability. Raises MissingDependencyError without it."""
        from headstart.evaluation_plots import describe_reliability
        from headstart.plot_figure import draw_figure

        return draw_figure(describe_reliability(self, self.compute_figures()))

    def plot_confidence(self) -> Any:
        """The same for the accuracy on the pictures that are kept when the least sure go to a person."""
        from headstart.evaluation_plots import describe_confidence
        from headstart.plot_figure import draw_figure

        return draw_figure(describe_confidence(self))

    def to_csv(self) -> bytes:
        """UTF-8 CSV, one line per picture: path,sha256,true,predicted,probability_<class>...,correct.

        Probabilities are the shortest text that gives the same float32. Names and paths are quoted where CSV needs it;
        a byte that is not UTF-8 is written \\xNN, and so is a backslash that already stands before xNN (\\x5c).
        """
        # Written piece by piece: with many classes the text is much larger than the probabilities.
        text = io.BytesIO()
        text.write((",".join(map(quote_field, format_header(self.classes))) + "\n").encode())
        quoted = [quote_field(escape_text(name)) for name in self.classes]
        answers = zip(self.paths, self.sha256, self.labels, self.predicted, self.probs, strict=True)
        for path, digest, true, guess, row in answers:
            start = (quote_field(escape_text(path)), quote_field(escape_text(digest)), quoted[true], quoted[guess])
            cells = (*start, *row.astype(str).tolist(), "true" if true == guess else "false")
            text.write((",".join(cells) + "\n").encode())
        return text.getvalue()

    def mistakes_to_csv(self) -> bytes:
        """UTF-8 CSV of `mistakes()`: path,sha256,true,predicted,probability,probability_true."""
        lines = ["path,sha256,true,predicted,probability,probability_true"]
        predicted = self.predicted
        for i in self.mistakes().tolist():
            true, guess = self.labels[i], predicted[i]
            texts = (self.paths[i], self.sha256[i], self.classes[true], self.classes[guess])
            chosen = (str(self.probs[i, guess]), str(self.probs[i, true]))
            lines.append(",".join((*(quote_field(escape_text(text)) for text in texts), *chosen)))
        return "\n".join([*lines, ""]).encode()


def format_header(classes: tuple[str, ...]) -> list[str]:
    """The columns of rows.csv."""
    return ["path", "sha256", "true", "predicted", *(f"probability_{escape_text(name)}" for name in classes), "correct"]


def _freeze(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array


def _make_statistics(evaluation: Evaluation) -> Callable[[IntArray], FloatArray]:
    """Row numbers (B, N) to (B, 2): macro F1 and ECE of every resample.

    Macro F1 depends only on how often each cell of the confusion matrix is drawn, so the cells that occur, C of them,
    are counted once per resample and summed by class from the (B, C) counts.
    """
    labels, predicted, probs = evaluation.labels, evaluation.predicted, evaluation.probs
    confidence = probs.max(axis=1).astype(np.float64)
    bins = metrics.assign_bins(confidence)
    gaps = evaluation.correct - confidence
    cells, cell_of_row = np.unique(labels * probs.shape[1] + predicted, return_inverse=True)
    true, guess = np.divmod(cells, probs.shape[1])
    # Each class that is labelled or predicted is one group; a leading zero column stands for "no such cell".
    known = np.unique(np.concatenate([true, guess]))

    def sum_by_class(counts: IntArray, classes: IntArray) -> IntArray:
        order = np.argsort(classes, kind="stable")
        running = np.concatenate([np.zeros((len(counts), 1), np.int64), counts[:, order].cumsum(axis=1)], axis=1)
        edges = np.searchsorted(classes[order], known), np.searchsorted(classes[order], known, side="right")
        sums: IntArray = running[:, edges[1]] - running[:, edges[0]]
        return sums

    def compute(rows: IntArray) -> FloatArray:
        num_resamples, num_rows = rows.shape
        offsets = np.arange(num_resamples)[:, None]
        counts = _count(cell_of_row[rows] + offsets * len(cells), num_resamples, len(cells))
        num_true, num_predicted = sum_by_class(counts, true), sum_by_class(counts, guess)
        num_right = sum_by_class(counts * (true == guess), true)
        binned = _count(bins[rows] + offsets * metrics.NUM_BINS, num_resamples, metrics.NUM_BINS, gaps[rows])
        return np.stack(
            [
                _mean_of_quotients(2 * num_right, num_true + num_predicted),
                np.abs(binned).sum(axis=1) / num_rows,
            ],
            axis=1,
        )

    return compute


def _count(places: IntArray, num_resamples: int, num_places: int, weights: FloatArray | None = None) -> Any:
    flat = None if weights is None else weights.ravel()
    return np.bincount(places.ravel(), flat, num_resamples * num_places).reshape(num_resamples, num_places)


def _mean_of_quotients(part: IntArray, whole: IntArray) -> FloatArray:
    """The mean over classes (axis 1) of part / whole, without those where whole is 0."""
    quotients = part / np.maximum(whole, 1)
    return np.asarray(quotients.sum(axis=1) / (whole > 0).sum(axis=1), np.float64)


def _join(*intervals: Sequence[float] | FloatArray) -> tuple[float, float]:
    """From the least to the greatest of limits in 0 .. 1."""
    lows, highs = zip(*intervals, strict=True)
    return max(0.0, float(min(lows))), min(1.0, float(max(highs)))


def _widen_ece(
    ece: float,
    resampled: FloatArray,
    chance: tuple[float, float],
    mean_confidence: float,
    accuracy: tuple[float, float],
) -> tuple[float, float]:
    """By what chance alone gives, and by the doubt about the accuracy: the calibration error is no less than the gap
    between mean confidence and accuracy, which may be at either limit of its interval."""
    gap = max(abs(mean_confidence - limit) for limit in accuracy)
    low = 0.0 if ece <= chance[1] else resampled[0]
    return _join((low, max(resampled[1], gap, chance[1] if ece <= chance[1] else 0.0)))


def _with_interval(value: float, interval: Sequence[float]) -> dict[str, float]:
    return {"value": value, "low": float(interval[0]), "high": float(interval[1])}


def _with_wilson(successes: int, n: int) -> dict[str, float | None]:
    if n == 0:
        return {"value": None, "low": None, "high": None}
    low, high = wilson_interval(successes, n)
    return {"value": successes / n, "low": low, "high": high}


def make_json_ready(value: Any, digits: int = 17) -> Any:
    """Plain lists, dicts and numbers; floats to so many significant digits (17: all); nan and infinity as None."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): make_json_ready(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [make_json_ready(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if np.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    raise DataError(f"{value!r} of type {type(value).__name__} cannot be written as JSON. Pass numbers and texts.")
