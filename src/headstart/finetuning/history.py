"""The course of a training, epoch by epoch: as CSV and as pictures."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart._files import say_os_error, show_path, write_atomic
from headstart.errors import DataError
from headstart.plot_axes import COLORS, shorten
from headstart.plot_figure import draw_axes, make_figure, save_figure
from headstart.plots import Line, Plot
from headstart.stats import format_percent, wilson_interval
from headstart.tables import raise_bad_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_CURVES = 5
_MAX_TITLE_CHARS, _MAX_NAME_CHARS = 90, 40
_NUM_FIRST_EPOCHS = 3  # over which the slope is taken


@dataclass(frozen=True, slots=True)
class EpochRow:
    """The state after an epoch; epoch 0 is the start, before any step, and has no figures of training.

    step: optimizer steps so far. Losses are means over pictures, accuracies are 0 .. 1. learning_rate: the highest
    of the parameter groups', at the epoch's end. seconds: this epoch's own.
    """

    epoch: int
    step: int
    train_loss: float | None
    train_accuracy: float | None
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class CurveSummary:
    """A training in three numbers (Torrey and Shavlik 2009): what transfer learning is hoped to raise.

    start: validation accuracy after epoch 1; before it, a new head knows nothing, whatever network it stands on.
    slope: what an epoch gained on average up to epoch `num_first`; None where nothing was trained. asymptote:
    validation accuracy after the last epoch. All 0 .. 1, not percent.
    """

    name: str
    start: float
    slope: float | None
    asymptote: float
    num_first: int


_COLUMNS = [field.name for field in fields(EpochRow)]
_WHOLE = {"epoch", "step"}
_OPTIONAL = {"train_loss", "train_accuracy"}


def write_history(folder: Path, rows: Sequence[EpochRow]) -> Path:
    """Replace `folder`/history.csv by these rows in one step; returns its path. Numbers are written to the last digit.

    The rows kept in the checkpoint are the truth: written from them, the file has no gap, no row twice and no half
    line after any kill. Raises DataError unless the epochs are 0, 1, 2 and so on.
    """
    _check_rows(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(map(astuple, rows))
    path = folder / "history.csv"
    write_atomic(path, text.getvalue().encode())
    return path


def read_history(path: Path) -> list[EpochRow]:
    """The rows of a history.csv, exactly as written. Raises DataError that lists all malformed lines."""
    shown = show_path(str(path))
    try:
        lines = path.read_bytes().decode(errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{shown} cannot be read: {say_os_error(error)}.") from None
    if not lines or lines[0].split(",") != _COLUMNS:
        raise DataError(f"{shown} is not a training's history. Expected the header {','.join(_COLUMNS)}.")
    rows, bad = [], []
    for number, line in enumerate(lines[1:], start=2):
        try:
            rows.append(_parse_row(line.split(",")))
        except ValueError as error:
            bad.append(f"line {number}: {show_path(str(error))}")
    raise_bad_rows(shown, bad)
    _check_rows(rows, name=shown)
    return rows


def describe_history(
    rows: Sequence[EpochRow], *, best_epoch: int | None = None, num_validation: int | None = None
) -> tuple[Plot, Plot]:
    """Loss and accuracy of validation and training.

    best_epoch: whose weights were kept. num_validation: how many pictures the validation accuracy is a share of, for
    its 95 % Wilson interval as a band. Raises DataError where there is no row, or none of `best_epoch`.
    """
    _check_rows(rows, at_least=1)
    if best_epoch is not None and not 0 <= best_epoch < len(rows):
        raise DataError(f"The best epoch is {best_epoch}, but the history has the epochs 0 to {len(rows) - 1}.")
    loss, accuracy = (_describe_course(rows, what, best_epoch, num_validation) for what in ("loss", "accuracy"))
    return loss, accuracy


def _describe_course(rows: Sequence[EpochRow], what: str, best_epoch: int | None, num_validation: int | None) -> Plot:
    is_accuracy = what == "accuracy"
    values = [getattr(row, f"validation_{what}") for row in rows]
    # No number, no point: epoch 0 has no training.
    train = [math.nan if (value := getattr(row, f"train_{what}")) is None else value for row in rows]
    validation = _make_line("validation", values, num_validation if is_accuracy else None)
    if validation.low:
        validation = replace(validation, band_name=f"95 % interval ({num_validation:,} pictures)")
    lines = [validation, replace(_make_line("training", train), style="dashed")]
    if best_epoch is not None:
        value = values[best_epoch]
        shown = f"{format_percent(value)} %" if is_accuracy else f"{value:.3f}"
        lines.append(Line(f"best: epoch {best_epoch}, {shown}", (float(best_epoch),), (value,), style="points"))
    return _make_plot(f"{what.capitalize()} by epoch", what, lines)


def describe_curves(curves: Mapping[str, Sequence[EpochRow]], *, title: str, num_validation: int) -> Plot:
    """The validation accuracy of several trainings on the same pictures, with 95 % Wilson bands for `num_validation`.

    One to five curves. Raises DataError for another number of curves and where a curve has no row.
    """
    if not 1 <= len(curves) <= _MAX_CURVES:
        raise DataError(f"{len(curves)} curves cannot be drawn in one picture. Expected 1 to {_MAX_CURVES}.")
    lines = []
    for number, (name, rows) in enumerate(curves.items()):
        _check_rows(rows, at_least=1)
        line = _make_line(shorten(name, _MAX_NAME_CHARS), [row.validation_accuracy for row in rows], num_validation)
        lines.append(replace(line, style="dashed") if number % 2 else line)
    return _make_plot(shorten(title, _MAX_TITLE_CHARS), "validation accuracy", lines)


def plot_history(
    rows: Sequence[EpochRow],
    path: Path,
    *,
    title: str,
    best_epoch: int | None = None,
    num_validation: int | None = None,
) -> None:
    """Write `draw_history` as a PNG of 1350 x 630 pixels. The same arguments give the same bytes."""
    save_figure(draw_history(rows, title=title, best_epoch=best_epoch, num_validation=num_validation), path)


def draw_history(
    rows: Sequence[EpochRow], *, title: str, best_epoch: int | None = None, num_validation: int | None = None
) -> Figure:
    """`describe_history`, side by side. Raises as it does, and MissingDependencyError without matplotlib."""
    plots = describe_history(rows, best_epoch=best_epoch, num_validation=num_validation)
    figure = make_figure(9, 4.2)
    figure.suptitle(shorten(title, _MAX_TITLE_CHARS), fontsize=12, parse_math=False)
    for plot, axes in zip(plots, figure.subplots(1, 2), strict=True):
        draw_axes(plot, axes, 450, 380)
    return figure


def plot_curves(curves: Mapping[str, Sequence[EpochRow]], path: Path, *, title: str, num_validation: int) -> None:
    """Write `draw_curves` as a PNG, 1350 pixels wide. The same arguments give the same bytes."""
    save_figure(draw_curves(curves, title=title, num_validation=num_validation), path)


def draw_curves(curves: Mapping[str, Sequence[EpochRow]], *, title: str, num_validation: int) -> Figure:
    """`describe_curves`, and `summarize_curves` as a table below.

    Raises as describe_curves does, and MissingDependencyError without matplotlib.
    """
    plot = describe_curves(curves, title=title, num_validation=num_validation)
    # In inches: the plot, and below it the table: two lines of header and a line for each curve.
    heights = (3.9, 0.26 * (len(curves) + 2))
    figure = make_figure(9, sum(heights))
    axes, below = figure.subplots(2, 1, height_ratios=heights)
    draw_axes(plot, axes, 900, 390)
    _draw_table(below, summarize_curves(curves), num_validation)
    return figure


def summarize_curves(curves: Mapping[str, Sequence[EpochRow]]) -> list[CurveSummary]:
    """The three numbers of each training. The slope is taken over equally many epochs: 3, or what the shortest has.

    Raises DataError where a curve has no row.
    """
    for rows in curves.values():
        _check_rows(rows, at_least=1)
    num_first = min([_NUM_FIRST_EPOCHS, *(rows[-1].epoch for rows in curves.values() if len(rows) > 1)])
    summaries = []
    for name, rows in curves.items():
        accuracy = [row.validation_accuracy for row in rows]
        slope = (accuracy[num_first] - accuracy[0]) / num_first if len(rows) > 1 else None
        summaries.append(CurveSummary(name, accuracy[min(1, len(rows) - 1)], slope, accuracy[-1], num_first))
    return summaries


def _check_rows(rows: Sequence[EpochRow], at_least: int = 0, name: str = "The history") -> None:
    if len(rows) < at_least:
        raise DataError(f"{name} has no row yet. There is something to draw after the first evaluation.")
    epochs = [row.epoch for row in rows]
    if epochs != list(range(len(rows))):
        raise DataError(f"{name} has the epochs {', '.join(map(str, epochs))}. Expected each once, from 0 on.")


def _parse_row(cells: Sequence[str]) -> EpochRow:
    if len(cells) != len(_COLUMNS):
        raise ValueError(f"{len(cells)} fields, expected {len(_COLUMNS)}")
    values: dict[str, Any] = {}
    for name, cell in zip(_COLUMNS, cells, strict=True):
        try:
            values[name] = None if name in _OPTIONAL and not cell else int(cell) if name in _WHOLE else float(cell)
        except ValueError:
            raise ValueError(f"{name} is {cell[:40]!r}, expected a number") from None
        if name.endswith("accuracy") and values[name] is not None and not 0 <= values[name] <= 1:
            raise ValueError(f"{name} is {cell[:40]!r}, expected 0 to 1")
    return EpochRow(**values)


def _make_line(name: str, values: Sequence[float], num_pictures: int | None = None) -> Line:
    """A line over the epochs 0, 1, 2 and so on; shares of `num_pictures` get their interval."""
    epochs = tuple(float(epoch) for epoch in range(len(values)))
    if num_pictures is None:
        return Line(name, epochs, tuple(values))
    low, high = zip(*(_compute_interval(value, num_pictures) for value in values), strict=True)
    return Line(name, epochs, tuple(values), low, high)


def _make_plot(title: str, y_label: str, lines: Sequence[Line]) -> Plot:
    is_percent = y_label.endswith("accuracy")
    return Plot(title, "epoch (0 is the start)", y_label, tuple(lines), y_is_percent=is_percent, x_is_whole=True)


def _compute_interval(accuracy: float, num_pictures: int) -> tuple[float, float]:
    return wilson_interval(round(accuracy * num_pictures), num_pictures)


def _draw_table(axes: Axes, summaries: Sequence[CurveSummary], num_validation: int) -> None:
    axes.axis("off")
    slope = f"slope: points an epoch\nup to epoch {summaries[0].num_first}"
    rows = [["", "start: after\nepoch 1", slope, "asymptote: after the\nlast epoch (95 % interval)"]]
    for each in summaries:
        low, high = _compute_interval(each.asymptote, num_validation)
        rows.append(
            [
                shorten(each.name, _MAX_NAME_CHARS),
                f"{format_percent(each.start)} %",
                "-" if each.slope is None else f"{100 * each.slope:+.1f}",
                f"{format_percent(each.asymptote)} % ({format_percent(low)} to {format_percent(high)})",
            ]
        )
    table = axes.table(rows, cellLoc="center", colWidths=[0.34, 0.18, 0.22, 0.26], bbox=(0, 0, 1, 1))
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (row, column), cell in table.get_celld().items():
        cell.get_text().set_parse_math(False)
        cell.visible_edges = "B" if row == 0 else ""
        if row == 0:
            cell.set_height(2 * cell.get_height())  # two lines; the table is then scaled to its box
        if column == 0:
            cell.get_text().set_horizontalalignment("left")
            cell.get_text().set_color(COLORS[row - 1] if row else "black")
