"""Bias or variance: which of the two keeps the error above the desired one, and what helps against it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from headstart.errors import ConfigError
from headstart.insight.forecast import Expected, Forecast
from headstart.insight.learning_curve import LearningCurve
from headstart.plots import Line, Mark, Plot
from headstart.report.content import Section, Table
from headstart.stats import format_percent

# A part of the excess below this is not worth a suggestion, however certain it is.
_WORTH_MENTIONING = 0.2
# Beyond this many times the pictures there are, no curve says anything.
_FARTHEST = 20
_NOTICEABLE = 0.05  # of the error now: what twice the pictures must at least take away
_NUM_FORECAST_POINTS = 9
_AGAINST_BIAS = (
    "Fine-tune the network, so that its features fit these pictures: headstart finetune MODEL PICTURES.",
    "Use an earlier layer, where the pictures are unlike photographs: train with --layers auto compares them all.",
    "Use a larger network (--backbone, see headstart backbones) or, where details decide, a larger --input-size.",
)
_AUGMENT = "Augment: headstart finetune MODEL PICTURES --augment light learns from changed copies of the pictures."


@dataclass(frozen=True, slots=True)
class Needed:
    """Training pictures in all that reach the desired error: median and 95 % interval, inf where they never do."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Where the error on unseen pictures comes from (Ng 2018, Machine Learning Yearning).

    `bias` is training error minus `desired_error`, `variance` is unseen minus training error; both with intervals, as
    fractions. `verdict` names what is both certain and at least a fifth of the excess over the desired error. `needed`
    is None where no target was given. `reasons` are the sentences behind the verdict, `suggestions` what helps.
    """

    verdict: Literal["bias", "variance", "both", "neither"]
    target_accuracy: float | None
    desired_error: float
    train: Expected
    unseen: Expected
    bias: Expected
    variance: Expected
    needed: Needed | None
    reasons: tuple[str, ...]
    suggestions: tuple[str, ...]


def diagnose(curve: LearningCurve, forecast: Forecast, target_accuracy: float | None = None) -> Diagnosis:
    """Compare training error, unseen error and desired error, `1 - target_accuracy`, at the pictures there are.

    Without a target the desired error is 0, because nothing in the data says which errors nobody could avoid; then all
    of the training error counts as bias. The interval of the variance joins those of its two errors by Newcombe's
    method 10 (1998). Raises ConfigError for a target that is not above 0 and at most 1.
    """
    if target_accuracy is not None and not 0 < target_accuracy <= 1:
        raise ConfigError(f"target_accuracy is {target_accuracy}. Expected a fraction above 0 and at most 1, as 0.98.")
    desired = 0.0 if target_accuracy is None else round(1 - target_accuracy, 12)
    unseen = forecast.now
    train = Expected(float(curve.train_error[-1]), *map(float, curve.train_band[-1]))
    bias = Expected(train.error - desired, train.low - desired, train.high - desired)
    variance = _subtract(unseen, train)
    excess = unseen.error - desired
    certain = unseen.low > desired
    has_bias = certain and bias.low > 0 and bias.error >= _WORTH_MENTIONING * excess
    has_variance = certain and variance.low > 0 and variance.error >= _WORTH_MENTIONING * excess
    verdict: Literal["bias", "variance", "both", "neither"] = (
        "both" if has_bias and has_variance else "bias" if has_bias else "variance" if has_variance else "neither"
    )
    needed = None
    if target_accuracy is not None:
        counts = np.maximum(forecast.shape.count_images(desired), curve.sizes[0])
        low, median, high = np.quantile(counts, [0.025, 0.5, 0.975], method="nearest")
        needed = Needed(float(median), float(low), float(high))
    reasons = _explain(verdict, target_accuracy, desired, train, unseen, bias, variance)
    suggestions: list[str] = []
    if has_bias:
        suggestions += _AGAINST_BIAS
    if has_variance:
        suggestions += (_suggest_pictures(curve, forecast, desired, needed), _AUGMENT)
    if has_bias != has_variance:
        change = "Weaken" if has_bias else "Strengthen"
        suggestions.append(f"{change} the penalty, where it was set by hand: it is {curve.penalty:g}.")
    if verdict == "neither":
        suggestions += _suggest_nothing(curve, forecast, desired, needed)
    return Diagnosis(
        verdict, target_accuracy, desired, train, unseen, bias, variance, needed, reasons, tuple(suggestions)
    )


def describe_learning_curve(
    curve: LearningCurve, forecast: Forecast, diagnosis: Diagnosis, classes: Sequence[str]
) -> Section:
    """Diagnosis and forecast in words, the classes as a table, the curves as a plot. `classes` are the K names."""
    then, gain = forecast.then, forecast.gain
    paragraphs = [
        *diagnosis.reasons,
        f"With {_say_factor(forecast.factor)} the training pictures ({forecast.num_images:,} instead of "
        f"{curve.num_images:,}) {_say(then)} of unseen pictures are expected to be wrong, "
        f"{_say(gain, 'points')} fewer than now. All ranges are at 95 % confidence, for pictures like these.",
        _say_help(diagnosis),
        f"Every point is an average over {curve.num_draws} draws of training pictures, each tested on pictures that "
        f"the fit did not see, with the head's own layers and penalty ({curve.penalty:g}). These are not "
        "the test pictures, so the errors differ a little from theirs."
        + (
            f" {curve.num_used:,} of the {curve.num_images:,} training pictures were used, to bound the time."
            if curve.num_used < curve.num_images
            else ""
        ),
    ]
    rows = tuple(
        (name, *(text for each in (now, later) for text in (_format(each.error), _say_range(each))))
        for name, now, later in zip(classes, forecast.classes_now, forecast.classes_then, strict=True)
    )
    columns = (
        "Class",
        "Error now %",
        "95 % range",
        f"With {_say_factor(forecast.factor)} the pictures %",
        "95 % range",
    )
    return Section(
        key="learning-curve",
        title="Learning curve",
        paragraphs=tuple(paragraphs),
        tables=(Table(columns, rows, numeric=(1, 3)),),
        plots=(_plot(curve, forecast, diagnosis),),
    )


def _say_help(diagnosis: Diagnosis) -> str:
    text = " ".join(diagnosis.suggestions)
    if diagnosis.verdict == "neither":
        return text
    # Without a target nothing says that the error is too high.
    return f"Ways to lower the error{', where it is too high' * (diagnosis.target_accuracy is None)}: {text}"


def _subtract(left: Expected, right: Expected) -> Expected:
    error = left.error - right.error
    low = error - math.hypot(left.error - left.low, right.high - right.error)
    return Expected(error, low, error + math.hypot(left.high - left.error, right.error - right.low))


def _explain(
    verdict: str,
    target_accuracy: float | None,
    desired: float,
    train: Expected,
    unseen: Expected,
    bias: Expected,
    variance: Expected,
) -> tuple[str, ...]:
    errors = f"{_say(train)} of the training pictures and {_say(unseen)} of unseen ones are wrong"
    reference = (
        f"The target allows {format_percent(desired)} %."
        if target_accuracy is not None
        else "No target was given, so they are compared with no errors at all: pictures that nobody could name, and "
        "wrong labels, count as errors too. --target-accuracy sets the error that is good enough."
    )
    above = " above the target" * (target_accuracy is not None)
    parts = (
        f"Avoidable bias (training error{above}) is {_say(bias, 'points')}; variance (unseen minus training error) is "
        f"{_say(variance, 'points')}."
    )
    if verdict == "bias" and variance.low <= 0 < variance.error:
        parts += " The variance can be chance."
    conclusions = {
        "bias": "The head does not fit all the pictures that it learns from: bias, which more pictures do not lower.",
        "variance": "The head fits the pictures that it learns from better than others: variance.",
        "both": "Both matter: the head does not fit all that it learns from, and does worse on others.",
    }
    if verdict != "neither":
        conclusion = conclusions[verdict]
    elif unseen.high <= desired:
        conclusion = "The target is reached."
    elif unseen.low <= desired:
        conclusion = "The desired error lies in the range of the unseen error: chance can explain the difference."
    else:
        conclusion = "Neither bias nor variance can be told from chance with so few pictures."
    return f"{errors}. {reference}", f"{parts} {conclusion}"


def _suggest_pictures(curve: LearningCurve, forecast: Forecast, desired: float, needed: Needed | None) -> str:
    if needed is None:
        if forecast.factor <= 1 or forecast.gain.low <= 0 or forecast.gain.error < _NOTICEABLE * forecast.now.error:
            return "More pictures of the same kind are not expected to help noticeably."
        return (
            f"Add pictures: {forecast.num_images - curve.num_images:,} more are expected to lower the error by "
            f"{_say(forecast.gain, 'points')}."
        )
    target, limit = f"{format_percent(1 - desired)} %", _FARTHEST * curve.num_images
    if needed.median > limit:
        return (
            f"More pictures alone are not expected to reach {target} with this backbone, not even {_FARTHEST} times as "
            "many. Fine-tune (headstart finetune MODEL PICTURES) or use another --backbone."
        )
    most = f"{_round_count(needed.high):,}" if needed.high <= limit else "far more, or never"
    return (
        f"Add pictures: about {_round_count(needed.median):,} training pictures in all are expected to reach {target} "
        f"(95 % range: {_round_count(needed.low):,} to {most}); there are {curve.num_images:,}."
    )


def _suggest_nothing(
    curve: LearningCurve, forecast: Forecast, desired: float, needed: Needed | None
) -> tuple[str, ...]:
    if forecast.now.high <= desired:
        return ("Nothing needs to be done for this target.",)
    first = "Test on more pictures before changing anything: the range of the error is wider than what is missing."
    if forecast.now.error <= desired:
        return (first,)
    return first, _suggest_pictures(curve, forecast, desired, needed)


def _plot(curve: LearningCurve, forecast: Forecast, diagnosis: Diagnosis) -> Plot:
    sizes = tuple(map(float, curve.sizes))
    ahead = np.geomspace(curve.sizes[-1], max(forecast.num_images, curve.num_images), _NUM_FORECAST_POINTS)
    expected = [forecast.predict(float(size)) for size in ahead]
    lines = [
        Line(name, sizes, _as_floats(errors), _as_floats(band[:, 0]), _as_floats(band[:, 1]))
        for name, errors, band in (
            ("training pictures", curve.train_error, curve.train_band),
            ("unseen pictures", curve.unseen_error, curve.unseen_band),
        )
    ]
    low, high = tuple(each.low for each in expected), tuple(each.high for each in expected)
    lines.append(Line("forecast", _as_floats(ahead), tuple(each.error for each in expected), low, high, style="dashed"))
    marks: tuple[Mark, ...] = ()
    if diagnosis.target_accuracy is not None:
        marks = (Mark("horizontal", f"target: {format_percent(diagnosis.desired_error)} %", diagnosis.desired_error),)
    return Plot(
        title="Error against the number of training pictures",
        x_label="training pictures",
        y_label="error",
        lines=tuple(lines),
        marks=marks,
        x_scale="log",
        y_is_percent=True,
    )


def _as_floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(map(float, values))


def _round_count(count: float) -> int:
    """To two digits: no forecast knows more."""
    return int(round(count, 1 - math.floor(math.log10(count)))) if count >= 100 else math.ceil(count)


def _say_factor(factor: float) -> str:
    return "twice" if factor == 2 else f"{factor:g} times"


def _say(value: Expected, unit: str = "%") -> str:
    return f"{_format(value.error)} {unit} (between {_format(value.low)} and {_format(value.high)})"


def _say_range(value: Expected) -> str:
    return "-" if math.isnan(value.error) else f"{_format(value.low)} to {_format(value.high)}"


def _format(frac: float) -> str:
    """In percent, with two digits after the point below 0.1 %. Never a minus before nothing."""
    if math.isnan(frac):
        return "-"
    text = f"{100 * frac:.{2 if abs(frac) < 0.001 else 1}f}"
    return text if float(text) else "0"
