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

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.transforms import Bbox

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
_MAX_TITLE_CHARS, _MAX_NAME_CHARS = 90, 40
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


def plot_history(
    rows: Sequence[EpochRow],
    path: Path,
    *,
    title: str,
    best_epoch: int | None = None,
    num_validation: int | None = None,
) -> None:
    """Write `draw_history` as a PNG of 1350 x 630 pixels. The same arguments give the same bytes."""
    _save(draw_history(rows, title=title, best_epoch=best_epoch, num_validation=num_validation), path)


def draw_history(
    rows: Sequence[EpochRow], *, title: str, best_epoch: int | None = None, num_validation: int | None = None
) -> Figure:
    """Loss and accuracy of training and validation, side by side.

    best_epoch: whose weights were kept. num_validation: how many pictures the validation accuracy is a share of, for
    its 95 % Wilson interval as a band. Raises DataError where there is no row, or none of `best_epoch`.
    """
    _check_rows(rows, at_least=1)
    if best_epoch is not None and not 0 <= best_epoch < len(rows):
        raise DataError(f"The best epoch is {best_epoch}, but the history has the epochs 0 to {len(rows) - 1}.")
    figure = _make_figure(title, height=4.2)
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        _prepare(axes, rows[-1].epoch, what)
        validation = [getattr(row, f"validation_{what}") for row in rows]
        # No number, no point: epoch 0 has no training.
        train = [math.nan if (value := getattr(row, f"train_{what}")) is None else value for row in rows]
        handles = [_plot_line(axes, train, _STYLES[1]), _plot_line(axes, validation, _STYLES[0])]
        labels = ["training", "validation"]
        if what == "accuracy" and num_validation is not None:
            handles.append(_plot_band(axes, validation, num_validation, _BLUE, alpha=0.18))
            labels.append(f"95 % interval ({num_validation:,} pictures)")
        if best_epoch is not None:
            value = validation[best_epoch]
            handles += axes.plot(best_epoch, value, "*", color=_BLACK, markersize=12, zorder=5)
            shown = f"{format_percent(value)} %" if what == "accuracy" else f"{value:.3f}"
            labels.append(f"best: epoch {best_epoch}, {shown}")
        axes.legend(handles, labels, fontsize=8.5, framealpha=0.85)
    return figure


def plot_curves(curves: Mapping[str, Sequence[EpochRow]], path: Path, *, title: str, num_validation: int) -> None:
    """Write `draw_curves` as a PNG, 1350 pixels wide. The same arguments give the same bytes."""
    _save(draw_curves(curves, title=title, num_validation=num_validation), path)


def draw_curves(curves: Mapping[str, Sequence[EpochRow]], *, title: str, num_validation: int) -> Figure:
    """The validation accuracy of several trainings on the same pictures, and `summarize_curves` as a table below.

    With 95 % Wilson bands for `num_validation` pictures. One to five curves, told apart by colour, line and marker.
    Raises DataError for another number of curves and where a curve has no row.
    """
    if not 1 <= len(curves) <= len(_STYLES):
        raise DataError(f"{len(curves)} curves cannot be drawn in one picture. Expected 1 to {len(_STYLES)}.")
    summaries = summarize_curves(curves)
    # In inches: the plot, and below it the table: two lines of header and a line for each curve.
    heights = (3.9, 0.26 * (len(curves) + 2))
    figure = _make_figure(title, sum(heights))
    axes, below = figure.subplots(2, 1, height_ratios=heights)
    _prepare(axes, max(rows[-1].epoch for rows in curves.values()), "validation accuracy")
    handles = []
    for rows, style in zip(curves.values(), _STYLES, strict=False):
        accuracy = [row.validation_accuracy for row in rows]
        _plot_band(axes, accuracy, num_validation, style[0], alpha=0.12)
        handles.append(_plot_line(axes, accuracy, style))
    legend = axes.legend(handles, [str(number) for number in range(len(curves))], fontsize=9, framealpha=0.85)
    for text, name in zip(legend.get_texts(), curves, strict=True):
        text.set_parse_math(False)  # a name may hold $, or begin with _, which a legend would leave out
        text.set_text(_shorten(name, _MAX_NAME_CHARS))
    _draw_table(below, summaries, num_validation)
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


def _make_figure(title: str, height: float) -> Figure:
    figure = Figure(figsize=(9, height), dpi=_DPI, layout="constrained")
    figure.suptitle(_shorten(title, _MAX_TITLE_CHARS), fontsize=12, parse_math=False)
    return figure


def _shorten(text: str, max_chars: int) -> str:
    shown = show_path(text)
    return shown if len(shown) <= max_chars else shown[: max_chars - 1] + "…"


def _prepare(axes: Axes, last_epoch: int, what: str) -> None:
    axes.set_xlabel("epoch (0 is the start)")
    axes.set_ylabel(what)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)))
    margin = 0.03 * last_epoch or 0.5
    axes.set_xlim(-margin, last_epoch + margin)
    if what.endswith("accuracy"):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _plot_line(axes: Axes, values: Sequence[float], style: tuple[str, str, str]) -> Any:
    """A line over the epochs 0, 1, 2 and so on."""
    color, line, marker = style
    marker = marker if len(values) <= _MAX_MARKED else ""
    [drawn] = axes.plot(values, line, marker=marker, color=color, linewidth=1.8, markersize=4.5)
    return drawn


def _plot_band(axes: Axes, accuracy: Sequence[float], num_pictures: int, color: str, alpha: float) -> Any:
    low, high = zip(*(_compute_interval(value, num_pictures) for value in accuracy), strict=True)
    if len(accuracy) == 1:  # a band of no width would not be seen
        return axes.vlines(0, low, high, color=color, alpha=0.5, linewidth=3)
    return axes.fill_between(range(len(accuracy)), low, high, color=color, alpha=alpha, linewidth=0)


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
                _shorten(each.name, _MAX_NAME_CHARS),
                f"{format_percent(each.start)} %",
                "-" if each.slope is None else f"{100 * each.slope:+.1f}",
                f"{format_percent(each.asymptote)} % ({format_percent(low)} to {format_percent(high)})",
            ]
        )
    table = axes.table(rows, cellLoc="center", colWidths=[0.34, 0.18, 0.22, 0.26], bbox=Bbox.unit())
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (row, column), cell in table.get_celld().items():
        cell.get_text().set_parse_math(False)
        cell.visible_edges = "B" if row == 0 else ""
        if row == 0:
            cell.set_height(2 * cell.get_height())  # two lines; the table is then scaled to its box
        if column == 0:
            cell.get_text().set_horizontalalignment("left")
            cell.get_text().set_color(_STYLES[row - 1][0] if row else _BLACK)


def _save(figure: Figure, path: Path) -> None:
    image = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that Matplotlib's own font lacks is drawn as boxes; nobody can act on the warning.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        figure.savefig(image, format="png", metadata={"Software": None})
    write_atomic(path, image.getvalue())
