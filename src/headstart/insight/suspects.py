"""Labels that look wrong, from out-of-fold probabilities: how many there are, and which.

A label is taken as drawn from a mixture: from the classifier's probabilities, sharpened by one exponent, or at random,
at a rate that is estimated (Copas 1988, contaminated binary regression, here for K classes). Doubtful pictures are
explained by the probabilities and wrong labels only by the contamination, so a classifier that is often mistaken does
not make labels look wrong. The count of confident learning (Northcutt, Jiang and Chuang 2021) does not make this
difference: on 5,000 pictures of CIFAR-10 with the labels as published it names 298, and 426 after its calibration.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from headstart._files import say_os_error, show_path
from headstart.csv_text import escape_text, quote_field, unescape_text
from headstart.errors import DataError
from headstart.evaluation import Evaluation
from headstart.metrics import FloatArray, IntArray
from headstart.report.content import Gallery, GalleryItem
from headstart.stats import format_percent
from headstart.tables import raise_bad_rows

# The mixture is fitted to at most so many pictures, an even share of every class; the time does not grow beyond.
_MAX_FIT_ROWS = 10_000
_ROWS_AT_ONCE = 10_000
_MAX_EM_STEPS = 200
# An interval's end may miss the quantile by so much of 3.841.
_MAX_ROOT_STEPS, _ROOT_VALUE = 60, 0.02
# The logarithm of the exponent goes in steps of 0.02, from -1 to 3: heads fitted to wrong labels are too timid.
_STEP = 0.02
_STEPS = range(-50, 151, 20)
_MAX_RATE = 0.9
_NO_RATE = 1e-6
OwnAt = Callable[[int], FloatArray]  # step of sharpness to the probability (N,) of each label
_HEADER = "rank,path,sha256,label,suggested,probability_label,probability_suggested,score"
_CHI2_95 = 3.841  # quantile of chi-squared with one degree of freedom


@dataclass(frozen=True, slots=True)
class Suspect:
    """A picture whose label looks wrong; `label` and `suggested` number the classes.

    The probabilities are the out-of-fold ones; `score`, 0 .. 1, is the probability that the label is wrong.
    """

    path: str
    sha256: str
    label: int
    suggested: int
    probability_label: float
    probability_suggested: float
    score: float


@dataclass(frozen=True, slots=True)
class Suspects:
    """The listed suspects, the worst first, of `num_images` pictures.

    `num_wrong` estimates how many labels are wrong in all, within `low` .. `high` at 95 % (profile likelihood), beside
    the `num_settled` ones that count as right.
    """

    classes: tuple[str, ...]
    items: tuple[Suspect, ...]
    num_images: int
    num_wrong: float
    low: float
    high: float
    num_settled: int = 0


@dataclass(frozen=True, slots=True)
class _Mixture:
    """p(label = k | picture) = (1 - sum(rates)) * softmax(sharpness * log probs)_k + rates_k; `loss` is the mean."""

    loss: float
    sharpness: float
    rates: FloatArray


def find_suspects(
    evaluation_out_of_fold: Evaluation,
    *,
    num_listed: int | None = None,
    settled: Collection[tuple[str, str]] = (),
) -> Suspects:
    """Estimate how many labels are wrong and list so many (or `num_listed`), the surest first.

    The probabilities must come from fits that did not see the picture. `settled` are pairs of SHA-256 and class name
    that a person has confirmed: they take no part.

    One rate for all classes is used unless a rate for each fits better by Akaike's criterion, so that mistakes in one
    direction (cats among the dogs, not dogs among the cats) are found where they are many. Labels that are wrong in one
    direction for a large share of a class (a third of the cats) are learnt as true, and not seen.
    """
    rows = evaluation_out_of_fold
    labels, probs = rows.labels, rows.probs
    num_images, num_classes = probs.shape
    named = zip(rows.sha256, (rows.classes[label] for label in labels), strict=True)
    is_open = np.array([pair not in settled for pair in named], bool)
    by_class = np.argsort(labels, kind="stable")
    by_class = by_class[is_open[by_class]]
    if not (num_open := len(by_class)):
        return Suspects(rows.classes, (), num_images, 0.0, 0.0, 0.0, num_images)
    chosen = by_class[np.linspace(0, num_open - 1, min(num_open, _MAX_FIT_ROWS)).round().astype(np.int64)]
    logs, fitted = _take_log(probs[chosen]), labels[chosen]
    own_at = cache(lambda step: _compute_own(logs, fitted, float(np.exp(step * _STEP))))
    mixture = _fit_mixture(own_at, fitted, num_classes, shared=True, total=None)
    of_each = _fit_mixture(own_at, fitted, num_classes, shared=False, total=None)
    if len(chosen) * (mixture.loss - of_each.loss) > num_classes - 1:  # Akaike: one unit for each further rate
        mixture = of_each
    own, wrong = _score_labels(probs, labels, mixture)
    num_wrong, rate = float(wrong[is_open].sum()), float(mixture.rates.sum())
    num_per_rate = num_wrong / rate if rate > _NO_RATE else num_open * (1 - 1 / num_classes)
    low, high = _find_interval(own_at, fitted, mixture)
    # Scores that are equal, as where they all vanish, leave the order to the probability of the label.
    order = np.lexsort((own, -wrong))
    order = order[is_open[order]][: round(num_wrong) if num_listed is None else num_listed]
    others = probs[order].copy()
    others[np.arange(len(order)), labels[order]] = -1
    return Suspects(
        classes=rows.classes,
        items=tuple(
            Suspect(
                path=rows.paths[row],
                sha256=rows.sha256[row],
                label=int(labels[row]),
                suggested=int(guess),
                probability_label=float(probs[row, labels[row]]),
                probability_suggested=float(probs[row, guess]),
                score=float(wrong[row]),
            )
            for row, guess in zip(order.tolist(), others.argmax(axis=1).tolist(), strict=True)
        ),
        num_images=num_images,
        num_wrong=num_wrong,
        low=low * num_per_rate,
        high=min(high * num_per_rate, float(num_open)),
        num_settled=num_images - num_open,
    )


def _take_log(probs: np.ndarray) -> FloatArray:
    return np.log(np.maximum(probs, np.finfo(np.float32).tiny), dtype=np.float64)


def _compute_own(logs: FloatArray, labels: IntArray, sharpness: float) -> FloatArray:
    """Probability (N,) of each label after sharpening."""
    scaled = logs * sharpness
    scaled -= scaled.max(axis=1, keepdims=True)
    np.exp(scaled, out=scaled)
    return np.asarray(scaled[np.arange(len(labels)), labels] / scaled.sum(axis=1), np.float64)


def _score_labels(probs: np.ndarray, labels: IntArray, mixture: _Mixture) -> tuple[FloatArray, FloatArray]:
    """(N,) each: the probability of the label, and that it is wrong: drawn at random and not right by chance."""
    own = np.empty(len(labels))
    for start in range(0, len(labels), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        own[part] = _compute_own(_take_log(probs[part]), labels[part], mixture.sharpness)
    rates = mixture.rates[labels]
    return own, rates / (rates + (1 - mixture.rates.sum()) * own + np.finfo(float).tiny) * (1 - own)


def _fit_mixture(own_at: OwnAt, labels: IntArray, num_classes: int, shared: bool, total: float | None) -> _Mixture:
    """Maximum likelihood over the sharpness and the rates, which are equal where `shared` and sum to `total` if any."""

    @cache
    def fit(step: int) -> _Mixture:
        loss, rates = _fit_rates(own_at(step), labels, num_classes, shared, total)
        return _Mixture(loss, float(np.exp(step * _STEP)), rates)

    middle = min(_STEPS, key=lambda step: fit(step).loss)  # there may be several minima
    low, high = middle - _STEPS.step, middle + _STEPS.step
    while low < high:  # beside it there is one
        left = (low + high) // 2
        if fit(left).loss <= fit(left + 1).loss:
            high = left
        else:
            low = left + 1
    return fit(low)


def _fit_rates(
    own: FloatArray, labels: IntArray, num_classes: int, shared: bool, total: float | None
) -> tuple[float, FloatArray]:
    """Mean loss and rates (K,) by expectation maximisation; the loss is convex in the rates."""
    rates = np.full(num_classes, (0.05 if total is None else total) / num_classes)
    before = np.inf
    for step in range(_MAX_EM_STEPS):
        density = (1 - rates.sum()) * own + rates[labels] + np.finfo(float).tiny
        if step % 10 == 0:
            loss = -float(np.log(density).mean())
            if before - loss < 1e-8:
                break
            before = loss
        counts = np.bincount(labels, rates[labels] / density, num_classes) / len(labels)
        if shared:
            counts[:] = counts.mean()
        rates = counts * (min(1.0, _MAX_RATE / counts.sum()) if total is None else total / max(counts.sum(), 1e-300))
    return loss, rates


def _find_interval(own_at: OwnAt, labels: IntArray, mixture: _Mixture) -> tuple[float, float]:
    """Sums of rates at which twice the log likelihood falls by the chi-squared quantile."""
    shared = bool(np.ptp(mixture.rates) == 0)
    best = float(mixture.rates.sum())

    def excess(total: float) -> float:
        loss = _fit_mixture(own_at, labels, len(mixture.rates), shared, total).loss
        return 2 * len(labels) * (loss - mixture.loss) - _CHI2_95

    low = 0.0 if excess(0.0) <= 0 else _find_root(excess, 0.0, best)
    above = max(2 * best, 0.001)
    while above < _MAX_RATE and excess(above) <= 0:
        above *= 2
    high = _MAX_RATE if above >= _MAX_RATE else _find_root(excess, best, above)
    return float(low), float(high)


def _find_root(compute: Callable[[float], float], low: float, high: float) -> float:
    """Where `compute`, of different signs at `low` and `high`, is 0 to within _ROOT_VALUE: false position with the
    Illinois rule (Dowell and Jarratt 1971)."""
    at_low, at_high, kept = compute(low), compute(high), 0
    for _ in range(_MAX_ROOT_STEPS):
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        value = compute(middle)
        if abs(value) <= _ROOT_VALUE:
            break
        if (value > 0) == (at_high > 0):
            high, at_high = middle, value
            at_low, kept = (at_low / 2 if kept < 0 else at_low), -1
        else:
            low, at_low = middle, value
            at_high, kept = (at_high / 2 if kept > 0 else at_high), 1
    return middle


def describe_suspects(suspects: Suspects) -> Gallery:
    """The listed suspects with buttons to decide, and in words how many labels look wrong."""
    items = tuple(
        GalleryItem(
            path=item.path,
            sha256=item.sha256,
            label=item.label,
            predicted=item.suggested,
            probability=item.probability_suggested,
            note=f"The label is wrong with a probability of {format_percent(item.score)} %.",
        )
        for item in suspects.items
    )
    return Gallery("suspects", "Labels that look wrong", _describe_count(suspects), items, decides=True)


def _describe_count(suspects: Suspects) -> str:
    count, low, high = (round(value) for value in (suspects.num_wrong, suspects.low, suspects.high))
    head = f"About {count:,} {'label looks' if count == 1 else 'labels look'}" if count else "No label looks"
    text = f"{head} wrong, of {suspects.num_images:,} (95 % interval {low:,} to {high:,})."
    if suspects.items:
        text += " Classifiers that did not see the picture disagree with its label: look at each and decide."
    if suspects.num_settled:
        text += f" {suspects.num_settled:,} that you have decided on are not listed again."
    return text


def suspects_to_csv(suspects: Suspects) -> bytes:
    """UTF-8 CSV, one line each: rank,path,sha256,label,suggested,probability_label,probability_suggested,score.

    Texts are quoted and escaped as in rows.csv of an evaluation.
    """
    lines = [_HEADER]
    for rank, item in enumerate(suspects.items, start=1):
        texts = (item.path, item.sha256, suspects.classes[item.label], suspects.classes[item.suggested])
        numbers = (np.float32(item.probability_label), np.float32(item.probability_suggested), np.float32(item.score))
        quoted = (quote_field(escape_text(text)) for text in texts)
        lines.append(",".join((str(rank), *quoted, *map(str, numbers))))
    return "\n".join([*lines, ""]).encode()


def read_suspects(path: str | os.PathLike[str], classes: Sequence[str]) -> tuple[Suspect, ...]:
    """What `suspects_to_csv` wrote. `classes` are the classifier's. Raises DataError that lists what does not fit."""
    shown = show_path(os.fspath(path))
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        reason = say_os_error(error) if isinstance(error, (OSError, ValueError)) else str(error)
        raise DataError(f"{shown} cannot be read: {reason}.") from None
    if header != _HEADER.split(","):
        raise DataError(f"{shown} is not a list of suspects. Expected the columns {_HEADER}. Train again to write it.")
    numbers = {name: number for number, name in enumerate(classes)}
    suspects, bad = [], []
    for number, row in enumerate(rows, start=1):
        try:
            _, picture, sha256, label, suggested, *figures = row
            names = [unescape_text(name) for name in (label, suggested)]
            suspect = Suspect(unescape_text(picture), sha256, *(numbers[name] for name in names), *map(float, figures))
        except KeyError as error:
            bad.append(f"row {number}: {error.args[0]!r} is no class of this classifier")
        except (ValueError, TypeError):
            bad.append(f"row {number}: expected {len(header)} fields, the last three of them numbers")
        else:
            suspects.append(suspect)
    raise_bad_rows(shown, bad)
    return tuple(suspects)
