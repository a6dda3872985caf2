"""One row per picture: every figure, list and file about a classifier's quality is a view of these rows.

A saved evaluation is a folder: rows.csv (all), mistakes.csv (a view), rows.parquet (on request) and evaluation.json
(the figures). evaluation.json is written last and holds the SHA-256 of the others: a folder where it matches is whole.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart import metrics
from headstart._files import compute_sha256, show_path, write_atomic
from headstart.calibration import compute_chance_ece
from headstart.errors import DataError, MissingDependencyError, raise_all
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

FORMAT = "headstart evaluation"
FORMAT_VERSION = 1


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
        in the last bit give the same.
        """
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
        ready: dict[str, Any] = _make_json_ready(figures, digits=12)
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
        lines = [",".join(map(quote_field, _format_header(self.classes)))]
        quoted = [quote_field(escape_text(name)) for name in self.classes]
        answers = zip(self.paths, self.sha256, self.labels, self.predicted, self.probs, strict=True)
        for path, digest, true, guess, row in answers:
            start = (quote_field(escape_text(path)), quote_field(escape_text(digest)), quoted[true], quoted[guess])
            lines.append(",".join((*start, *row.astype(str).tolist(), "true" if true == guess else "false")))
        return "\n".join([*lines, ""]).encode()

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


def save_evaluation(
    evaluation: Evaluation,
    folder: str | os.PathLike[str],
    *,
    extra: Mapping[str, Any] | None = None,
    parquet: bool = False,
    seed: int = 0,
) -> None:
    """Write evaluation.json, rows.csv, mistakes.csv and, with `parquet`, rows.parquet into `folder`.

    The folder is made, or an evaluation saved earlier is replaced. Any other folder that is not empty is refused
    (DataError) and left as it is. `extra` is kept in evaluation.json; nan and infinity in it become null. Raises
    MissingDependencyError when pyarrow is needed and absent. The same arguments give the same bytes.
    """
    place = Path(folder)
    replaced = find_own_files(place)
    files = {"rows.csv": evaluation.to_csv(), "mistakes.csv": evaluation.mistakes_to_csv()}
    if parquet:
        files["rows.parquet"] = _format_parquet(evaluation)
    summary = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "figures": evaluation.compute_figures(seed),
        "files": {name: {"bytes": len(data), "sha256": compute_sha256(data)} for name, data in files.items()},
        "extra": _make_json_ready(extra or {}),
    }
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"Cannot make the folder {place}: {error.strerror}. Choose another place.") from error
    for name, data in files.items():
        write_atomic(place / name, data)
    for name in {"rows.parquet"} & replaced - files.keys():
        (place / name).unlink(missing_ok=True)  # it would show rows of the evaluation that is replaced
    write_atomic(place / "evaluation.json", _format_json(summary))


def load_evaluation(folder: str | os.PathLike[str]) -> Evaluation:
    """The evaluation that was saved in `folder`. Raises DataError when it is absent, incomplete or edited."""
    place = Path(folder)
    try:
        data = (place / "rows.csv").read_bytes()
        summary = _read_summary(place)
        expected = summary["files"]["rows.csv"]["sha256"]
        classes = tuple(map(str, summary["figures"]["classes"]))
    except OSError as error:
        raise DataError(
            f"Cannot read {error.filename}: {error.strerror}. Expected a folder that headstart evaluate has saved."
        ) from error
    except (KeyError, TypeError) as error:
        raise DataError(f"{place / 'evaluation.json'} is incomplete: {error}. Evaluate again.") from error
    if compute_sha256(data) != expected:
        raise DataError(
            f"{place / 'rows.csv'} does not belong to evaluation.json beside it: it was edited, damaged or only partly "
            "replaced. Evaluate again."
        )
    header, *lines = csv.reader(io.StringIO(data.decode(), newline=""))
    if header != _format_header(classes):
        raise DataError(f"The columns of {place / 'rows.csv'} are not the classes of evaluation.json. Evaluate again.")
    numbers = {escape_text(name): k for k, name in enumerate(classes)}
    probs = np.fromiter(map(float, chain.from_iterable(line[4:-1] for line in lines)), np.float32)
    return Evaluation(
        classes=classes,
        paths=tuple(unescape_text(line[0]) for line in lines),
        sha256=tuple(unescape_text(line[1]) for line in lines),
        labels=np.array([numbers[line[2]] for line in lines], np.int64),
        probs=probs.reshape(len(lines), len(classes)),
    )


def _format_header(classes: tuple[str, ...]) -> list[str]:
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


def _make_json_ready(value: Any, digits: int = 17) -> Any:
    """Plain lists, dicts and numbers; floats to so many significant digits (17: all); nan and infinity as None."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _make_json_ready(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_make_json_ready(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if np.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    raise DataError(f"{value!r} of type {type(value).__name__} cannot be written as JSON. Pass numbers and texts.")


def _format_json(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    # A list of numbers on one line, so that a row of the matrix is a row. No JSON text holds a raw line break, so "[\n"
    # is never inside one.
    text = re.sub(
        r"\[\n[-+.0-9e,nul\s]+\]", lambda match: f"[{', '.join(match[0][1:-1].replace(',', ' ').split())}]", text
    )
    return (text + "\n").encode("utf-8", "backslashreplace")  # a lone surrogate becomes its JSON escape


def _format_parquet(evaluation: Evaluation) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(
            "rows.parquet needs pyarrow, which is not installed. Run: pip install 'headstart[parquet]'"
        ) from error
    names = np.array([escape_text(name) for name in evaluation.classes], object)
    columns = {
        "path": [escape_text(path) for path in evaluation.paths],
        "sha256": list(evaluation.sha256),
        "true": names[evaluation.labels],
        "predicted": names[evaluation.predicted],
        **{f"probability_{name}": evaluation.probs[:, k] for k, name in enumerate(names)},
        "correct": evaluation.correct,
    }
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def find_own_files(place: Path) -> set[str]:
    """The names of an evaluation saved in `place`; DataError unless it is one, or an empty folder, or absent."""
    try:
        if not place.exists() or not any(place.iterdir()):
            return set()
        return set(_read_summary(place).get("files", ()))
    except FileNotFoundError as error:
        raise DataError(
            f"The folder {place} holds files but no evaluation.json: it is not a saved evaluation, or saving one was "
            "interrupted. Nothing was changed. Choose another folder, or empty this one yourself."
        ) from error
    except OSError as error:
        raise DataError(f"Cannot use {place} as a folder: {error.strerror}. Choose another one.") from error


def _read_summary(place: Path) -> dict[str, Any]:
    path = place / "evaluation.json"
    try:
        summary = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}), so this folder is not a saved evaluation.") from error
    if not isinstance(summary, dict) or summary.get("format") != FORMAT:
        raise DataError(f"{path} was not written by headstart. Nothing was changed. Choose another folder.")
    if summary.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {summary.get('format_version')!r}; this headstart knows {FORMAT_VERSION}. "
            "Use the headstart that wrote it, or evaluate again."
        )
    return summary


def escape_text(text: str) -> str:
    """Lone surrogates, which stand for bytes that are not UTF-8, as \\xNN (or \\udNNN for others, on Windows only)."""
    text = re.sub(r"\\(?=x[0-9a-f]{2}|ud[89a-f][0-9a-f]{2})", r"\\x5c", text)
    text = re.sub("[\udc80-\udcff]", lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", text)
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def unescape_text(text: str) -> str:
    def restore(match: re.Match[str]) -> str:
        if match[2]:
            return chr(int(match[2], 16))
        return "\\" if match[1] == "5c" else chr(0xDC00 + int(match[1], 16))

    return re.sub(r"\\x(5c|[89a-f][0-9a-f])|\\u(d[89a-f][0-9a-f]{2})", restore, text)


def quote_field(field: str) -> str:
    """As RFC 4180 asks. The csv module of Python 3.11 leaves a lone carriage return bare, and cannot read it back."""
    return '"' + field.replace('"', '""') + '"' if re.search('[,"\r\n]', field) else field
