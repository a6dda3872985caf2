"""The course of a training, epoch by epoch: as CSV and as pictures."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from headstart._files import say_os_error, show_path, write_atomic
from headstart.errors import DataError
from headstart.stats import format_percent, wilson_interval
from headstart.tables import raise_bad_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind can tell apart; line style and marker differ as well.
_BLUE, _ORANGE, _GREEN, _PURPLE, _BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"
_STYLES = ((_BLUE, "-", "o"), (_ORANGE, "--", "s"), (_GREEN, "-.", "^"), (_PURPLE, ":", "D"), (_BLACK, "-", "v"))
_DPI = 150
_MAX_TITLE_CHARS = 90
_NUM_FIRST_EPOCHS = 3  # over which the slope is taken
_MAX_MARKED = 40  # points of a line that are drawn one by one


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

    start: validation accuracy after the first epoch. slope: accuracy gained per epoch, from the first row to the
    end of the `num_first` epoch. asymptote: validation accuracy of the last row. All of 1, not percent.
    """

    name: str
    start: float
    slope: float
    asymptote: float
    num_first: int


_COLUMNS = [field.name for field in fields(EpochRow)]
_WHOLE = {"epoch", "step"}
_OPTIONAL = {"train_loss", "train_accuracy"}


def write_history(folder: Path, rows: Sequence[EpochRow]) -> Path:
    """Replace `folder`/history.csv by these rows in one step; returns its path. Numbers are written to the last digit.

    The rows kept in the checkpoint are the truth. Written from them, the file after any kill has no gap, no row twice
    and no half line, and a line once written stays as it is. Raises DataError unless the epochs are consecutive.
    """
    _check_rows(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(["" if value is None else repr(value) for value in astuple(row)] for row in rows)
    path = folder / "history.csv"
    write_atomic(path, text.getvalue().encode())
    return path


def read_history(path: Path) -> list[EpochRow]:
    """The rows of a history.csv, exactly as written. Raises DataError that lists all malformed lines."""
    shown = show_path(str(path))
    try:
        lines = path.read_bytes().decode().splitlines()
    except OSError as error:
        raise DataError(f"{shown} cannot be read: {say_os_error(error)}.") from None
    except UnicodeDecodeError:
        raise DataError(f"{shown} is not text. Expected a history.csv of a training.") from None
    if not lines or lines[0].split(",") != _COLUMNS:
        raise DataError(f"{shown} is not a training's history. Expected the header {','.join(_COLUMNS)}.")
    rows, bad = [], []
    for number, line in enumerate(lines[1:], start=2):
        try:
            rows.append(_parse_row(line.split(",")))
        except ValueError as error:
            bad.append(f"line {number}: {show_path(str(error))}")
    raise_bad_rows(shown, bad)
    _check_rows(rows)
    return rows


def plot_history(
    rows: Sequence[EpochRow],
    path: Path,
    *,
    title: str,
    early_stop: int | None = None,
    best_epoch: int | None = None,
    num_validation: int | None = None,
) -> None:
    """Draw loss and accuracy of training and validation, side by side, as a PNG of 1350 x 630 pixels.

    early_stop: the epoch after which early stopping ended the training; best_epoch: whose weights were kept; both
    are marked. num_validation: how many pictures the validation accuracy is a share of; with it, its 95 % Wilson
    interval is drawn as a band. The same arguments give the same bytes. Raises DataError where there is no row.
    """
    _check_rows(rows, at_least=1)
    figure = Figure(figsize=(9, 4.2), dpi=_DPI, layout="constrained")
    _set_title(figure, title)
    epochs = [row.epoch for row in rows]
    handles: list[Any] = []
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        _prepare(axes, epochs, what)
        validation = [getattr(row, f"validation_{what}") for row in rows]
        train = [value if (value := getattr(row, f"train_{what}")) is not None else math.nan for row in rows]
        handles = [*_plot_line(axes, epochs, train, _STYLES[1]), *_plot_line(axes, epochs, validation, _STYLES[0])]
        labels = ["training", "validation"]
        if what == "accuracy" and num_validation:
            handles.append(_plot_band(axes, epochs, validation, num_validation, _BLUE))
            labels.append(f"95 % interval ({num_validation:,} pictures)")
        if best_epoch is not None and best_epoch in epochs:
            value = validation[epochs.index(best_epoch)]
            handles += axes.plot(best_epoch, value, "*", color=_BLACK, markersize=13, zorder=5)
            labels.append(f"best: epoch {best_epoch}" + (f", {format_percent(value)} %" if what == "accuracy" else ""))
        if early_stop is not None:
            handles.append(axes.axvline(early_stop, color="0.4", linestyle=":", linewidth=1.2))
            labels.append(f"stopped after epoch {early_stop}")
        axes.legend(handles, labels, fontsize=8.5, framealpha=0.85)
    _save(figure, path)


def plot_curves(curves: Mapping[str, Sequence[EpochRow]], path: Path, *, title: str, num_validation: int) -> None:
    """Draw the validation accuracy of several trainings on the same pictures, and `summarize_curves` as a table below.

    A PNG 1350 pixels wide, with 95 % Wilson bands for `num_validation` pictures. Up to five curves, told apart by
    colour, line and marker. The same arguments give the same bytes. Raises DataError where a curve has no row.
    """
    summaries = summarize_curves(curves)
    if len(curves) > len(_STYLES):
        raise DataError(f"{len(curves)} curves are too many for one picture. Draw at most {len(_STYLES)}.")
    # In inches: the plot, and below it a line of the table for each curve and its header.
    height, line = 3.9, 0.27
    table_height = line * (len(curves) + 1)
    figure = Figure(figsize=(9, height + table_height), dpi=_DPI, layout="constrained")
    _set_title(figure, title)
    axes, below = figure.subplots(2, 1, height_ratios=(height, table_height))
    _prepare(axes, [row.epoch for rows in curves.values() for row in rows], "validation accuracy")
    handles = []
    for rows, style in zip(curves.values(), _STYLES, strict=False):
        epochs, values = [row.epoch for row in rows], [row.validation_accuracy for row in rows]
        _plot_band(axes, epochs, values, num_validation, style[0], alpha=0.12)
        handles += _plot_line(axes, epochs, values, style)
    legend = axes.legend(handles, [str(number) for number in range(len(curves))], fontsize=9, framealpha=0.85)
    for text, name in zip(legend.get_texts(), curves, strict=True):
        text.set_parse_math(False)  # a name may hold $, or begin with _, which a legend would leave out
        text.set_text(show_path(name))
    _draw_table(below, summaries, num_validation)
    _save(figure, path)


def summarize_curves(curves: Mapping[str, Sequence[EpochRow]]) -> list[CurveSummary]:
    """The three numbers of each training, with the slope over as many epochs in all: 3, or what the shortest has."""
    for rows in curves.values():
        _check_rows(rows, at_least=1)
    num_first = min([_NUM_FIRST_EPOCHS, *(rows[-1].epoch for rows in curves.values())])
    summaries = []
    for name, rows in curves.items():
        accuracy = {row.epoch: row.validation_accuracy for row in rows}
        first, last = rows[0].epoch, rows[-1].epoch
        span = num_first - first
        slope = (accuracy[num_first] - accuracy[first]) / span if span > 0 else 0.0
        summaries.append(CurveSummary(name, accuracy[min(1, last)], slope, accuracy[last], num_first))
    return summaries


def _check_rows(rows: Sequence[EpochRow], at_least: int = 0) -> None:
    if len(rows) < at_least:
        raise DataError("The history has no row yet. There is something to draw after the first evaluation.")
    epochs = [row.epoch for row in rows]
    if epochs and (epochs[0] not in (0, 1) or epochs != list(range(epochs[0], epochs[0] + len(epochs)))):
        raise DataError(f"The history's epochs are {epochs}. Expected every epoch once, from 0 or 1 on.")


def _parse_row(cells: Sequence[str]) -> EpochRow:
    if len(cells) != len(_COLUMNS):
        raise ValueError(f"{len(cells)} fields, expected {len(_COLUMNS)}")
    values: dict[str, Any] = {}
    for name, cell in zip(_COLUMNS, cells, strict=True):
        try:
            values[name] = None if name in _OPTIONAL and not cell else int(cell) if name in _WHOLE else float(cell)
        except ValueError:
            raise ValueError(f"{name} is {cell[:40]!r}, expected a number") from None
    return EpochRow(**values)


def _set_title(figure: Figure, title: str) -> None:
    shown = show_path(title)
    if len(shown) > _MAX_TITLE_CHARS:
        shown = shown[: _MAX_TITLE_CHARS - 1] + "…"
    figure.suptitle(shown, fontsize=12, parse_math=False)


def _prepare(axes: Axes, epochs: Sequence[int], what: str) -> None:
    axes.set_xlabel("epoch", fontsize=10)
    axes.set_ylabel(what, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    margin = max(0.5, 0.03 * (max(epochs) - min(epochs))) if min(epochs) == max(epochs) else 0.03 * max(epochs)
    axes.set_xlim(min(epochs) - margin, max(epochs) + margin)
    if what.endswith("accuracy"):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _plot_line(axes: Axes, epochs: Sequence[int], values: Sequence[float], style: tuple[str, str, str]) -> list[Any]:
    color, line, marker = style
    shown_marker = marker if len(epochs) <= _MAX_MARKED else ""
    return list(axes.plot(epochs, values, line, marker=shown_marker, color=color, linewidth=1.8, markersize=4.5))


def _plot_band(
    axes: Axes, epochs: Sequence[int], accuracy: Sequence[float], num_pictures: int, color: str, alpha: float = 0.18
) -> Any:
    intervals = [wilson_interval(round(value * num_pictures), num_pictures) for value in accuracy]
    low, high = zip(*intervals, strict=True)
    if len(epochs) == 1:  # a band of no width would not be seen
        return axes.vlines(epochs, low, high, color=color, alpha=0.5, linewidth=3)
    return axes.fill_between(epochs, low, high, color=color, alpha=alpha, linewidth=0)


def _draw_table(axes: Axes, summaries: Sequence[CurveSummary], num_validation: int) -> None:
    axes.axis("off")
    num_first = summaries[0].num_first
    header = [
        "",
        "start: after\nepoch 1",
        f"slope: points an epoch\nup to epoch {num_first}",
        "asymptote: after\nthe last epoch",
    ]
    cells = []
    for each in summaries:
        low, high = wilson_interval(round(each.asymptote * num_validation), num_validation)
        interval = f"{format_percent(each.asymptote)} %  ({format_percent(low)} to {format_percent(high)})"
        cells.append([show_path(each.name), f"{format_percent(each.start)} %", f"{100 * each.slope:+.1f}", interval])
    table = axes.table([header, *cells], cellLoc="center", colWidths=[0.34, 0.18, 0.22, 0.26], bbox=[0, 0, 1, 1])
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (row, column), cell in table.get_celld().items():
        cell.get_text().set_parse_math(False)
        cell.visible_edges = "B" if row == 0 else ""
        if column == 0:
            cell.get_text().set_horizontalalignment("left")
            cell.get_text().set_color(_STYLES[row - 1][0] if row else _BLACK)


def _save(figure: Figure, path: Path) -> None:
    image = io.BytesIO()
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A name in a script that Matplotlib's own font lacks is drawn as boxes; nobody can act on the warning.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        canvas.print_png(image, metadata={"Software": None})
    write_atomic(path, image.getvalue())
