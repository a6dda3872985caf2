"""What transfer learning bought: a network from scratch, frozen, and fine-tuned, on the same validation pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import headstart
from headstart.backbones.catalog import DEFAULT_BACKBONE, RANDOM_WEIGHTS
from headstart.finetuning.history import EpochRow, plot_curves, summarize_curves
from headstart.recipes.runner import make_output, take_first
from headstart.stats import format_percent, wilson_interval

if TYPE_CHECKING:
    from rich.console import RenderableType

    from headstart.finetuning.dense_training import FitRecord
    from headstart.finetuning.outcome import TuningRecord
    from headstart.parallel import Progress
    from headstart.training import TrainingRecord

SCRATCH, FROZEN, TUNED = "from scratch", "frozen, new head", "fine-tuned"

# All pictures without a part of their own are trained or validated on: nothing is chosen here that a test had to judge.
_HEAD = {"layers": "top", "head": "dense", "pooling": "average", "test_frac": 0.0}
_VALIDATION_FRAC = 1 / 3
_FROM_SCRATCH_RATE = 1e-3
# At this rate no weight moves by as much as a bit that matters: the head from scratch stays as it was drawn.
_NO_RATE = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A figure (accuracy 0 .. 1, or accuracy per epoch) with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """One training: accuracy after epoch 1, gain per epoch over the first epochs, and accuracy after the last."""

    name: str
    history: tuple[EpochRow, ...]
    start: Estimate
    slope: Estimate
    last: Estimate


@dataclass(frozen=True)
class TransferGain:
    """The three trainings, from scratch first, measured on the same `num_validation` pictures.

    `num_first` epochs make the slope. `figure` is the picture of the curves.
    """

    backbone: str
    curves: tuple[Curve, ...]
    num_train: int
    num_validation: int
    epochs: int
    num_first: int
    from_layer: str
    figure: Path


def run_transfer_gain(
    source: Any,
    *,
    output: Path,
    backbone: str = DEFAULT_BACKBONE,
    weights: str | None = None,
    epochs: int = 10,
    input_size_px: int | None = None,
    max_per_class: int | None = None,
    on_progress: Progress | None = None,
) -> TransferGain:
    """Train `backbone` on the pictures of `source` in three ways, each for `epochs` epochs, and draw the curves.

    From scratch all of the network is trained from random weights under a head that was only drawn; frozen, a new head
    is trained on the published weights (or the file `weights`); fine-tuned goes on from that head, from the layer that
    suits the number of pictures. None stops early. `output` gets transfer_gain.png and a folder of checkpoints for
    each; a run that was stopped goes on. Raises ConfigError and DataError as `train` and `finetune` do.
    """
    make_output(output)
    pictures = {"source": source} if max_per_class is None else take_first(source, max_per_class)
    settings: dict[str, Any] = {**_HEAD, "backbone": backbone, "input_size_px": input_size_px}
    every: dict[str, Any] = {
        "augment": "light",
        "patience": None,
        "epochs": epochs,
        "validation_frac": _VALIDATION_FRAC,
    }
    fine = {**every, "from_layer": "auto", "weights": weights}
    scratch = {**every, "from_layer": "input", "learning_rate": _FROM_SCRATCH_RATE, "layer_decay": 1.0}

    drawn = headstart.train(
        **pictures,
        **settings,
        weights=RANDOM_WEIGHTS,
        fit=headstart.FitSettings(learning_rate=_NO_RATE, epochs=1, validation_frac=_VALIDATION_FRAC),
        folder=output / "drawn-head.training",
        on_progress=on_progress,
    )
    from_scratch = _finetune(drawn, pictures, output / "from-scratch.training", on_progress, scratch)
    classifier = headstart.train(
        **pictures,
        **settings,
        weights=weights,
        fit=headstart.FitSettings(**every),
        folder=output / "frozen.training",
        on_progress=on_progress,
    )
    frozen = cast("FitRecord", cast("TrainingRecord", classifier.training).fit)
    tuned = _finetune(classifier, pictures, output / "fine-tuned.training", on_progress, fine)

    histories = {SCRATCH: from_scratch.history, FROZEN: frozen.history, TUNED: tuned.history}
    num_validation = len(frozen.validation)
    figure = output / "transfer_gain.png"
    title = f"{backbone}: what transfer learning buys"
    plot_curves(histories, figure, title=title, num_validation=num_validation)
    summaries = summarize_curves(histories)
    num_train = sum(record.split == "train" for record in tuned.report.dataset.records) - num_validation
    num_first = summaries[0].num_first
    curves = tuple(measure_curve(name, rows, num_validation, num_first) for name, rows in histories.items())
    return TransferGain(backbone, curves, num_train, num_validation, epochs, num_first, tuned.from_layer, figure)


def _finetune(
    start: headstart.Classifier,
    pictures: dict[str, Any],
    folder: Path,
    on_progress: Progress | None,
    settings: dict[str, Any],
) -> TuningRecord:
    """Only its course counts here, not which classifier the paired test keeps."""
    classifier = headstart.finetune(start, **pictures, folder=folder, on_progress=on_progress, **settings)
    return cast("TuningRecord", classifier.training)


def measure_curve(name: str, history: tuple[EpochRow, ...], num_validation: int, num_first: int) -> Curve:
    """The three figures with their intervals; `history` has a row for epoch 0 and every epoch up to `num_first`."""
    rows = [_estimate(row.validation_accuracy, num_validation) for row in history]
    gained = subtract(rows[num_first], rows[0])
    slope = Estimate(gained.value / num_first, gained.low / num_first, gained.high / num_first)
    return Curve(name, history, rows[1], slope, rows[-1])


def _estimate(accuracy: float, n: int) -> Estimate:
    return Estimate(accuracy, *wilson_interval(round(accuracy * n), n))


def subtract(one: Estimate, other: Estimate) -> Estimate:
    """The difference with an interval from theirs (Newcombe 1998, method 10).

    It holds for different pictures. On the same pictures, where both are right about many together, it is too wide, so
    what it shows to differ does.
    """
    value = one.value - other.value
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    high = value + math.hypot(one.high - one.value, other.value - other.low)
    return Estimate(value, low, high)


def render_gain(gain: TransferGain) -> Iterator[RenderableType]:
    """What rich prints: the three figures of each training, then what the others have over the one from scratch."""
    from rich.table import Table
    from rich.text import Text

    yield Text(f"What transfer learning bought: {gain.backbone}, {gain.epochs} epochs each", style="bold")
    yield ""
    table = Table(box=None, pad_edge=False)
    headings = ("start: after epoch 1, %", f"slope: points an epoch, to epoch {gain.num_first}", "after the last, %")
    for name in ("", *headings, "n"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for curve in gain.curves:
        accuracies = [_say_accuracy(curve.start), _say_points(curve.slope), _say_accuracy(curve.last)]
        table.add_row(curve.name, *accuracies, f"{gain.num_validation:,}")
    scratch, *others = gain.curves
    for curve in others:
        pairs = ((curve.start, scratch.start), (curve.slope, scratch.slope), (curve.last, scratch.last))
        differences = [_say_points(subtract(*pair)) for pair in pairs]
        table.add_row(f"{curve.name}: gain, points", *differences, f"{gain.num_validation:,}", style="bold")
    yield table
    yield ""
    yield Text(_say_result(subtract(others[-1].last, scratch.last), gain))
    yield Text(
        f"Every figure is of the same {gain.num_validation:,} validation pictures, with a 95 % interval; "
        f"{gain.num_train:,} pictures were trained on. Intervals of gains are too wide rather than too narrow, because "
        "they are computed as if the pictures were different ones.",
        style="dim",
    )
    yield Text(
        f"From scratch begins with a drawn head on random weights. Fine-tuned trains from {gain.from_layer} on and "
        f"begins with the head that {FROZEN} ended with, so that it had those epochs besides its own.",
        style="dim",
    )


def _say_accuracy(figure: Estimate) -> str:
    low, value, high = (format_percent(frac) for frac in (figure.low, figure.value, figure.high))
    return f"{value} ({low} to {high})"


def _say_points(figure: Estimate) -> str:
    return f"{100 * figure.value:+.1f} ({100 * figure.low:+.1f} to {100 * figure.high:+.1f})"


def _say_result(gained: Estimate, gain: TransferGain) -> str:
    points = f"After {gain.epochs} epochs fine-tuning stands {100 * gained.value:+.1f} points from the one from scratch"
    if gained.low > 0:
        return f"{points}: transfer learning pays here."
    if gained.high < 0:
        return f"{points}: transfer learning does not pay here."
    return f"{points}, which may be chance with {gain.num_validation:,} pictures."
