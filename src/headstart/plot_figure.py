"""A plot as a matplotlib figure, for notebooks, and as PNG."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart._files import write_atomic
from headstart.errors import MissingDependencyError
from headstart.plot_axes import (
    COLORS,
    FONT_PX,
    MAX_MARKED,
    Axis,
    find_bar_ends,
    find_runs,
    has_whiskers,
    list_legend,
    make_axes,
    sample_mark,
    shorten,
    wrap_title,
)
from headstart.plot_labels import place_labels
from headstart.plots import Line, Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D", "v", "P")
_DPI = 150
_PX_PER_INCH = 100  # of the pixels that plot_axes reckons in
_POINT_PX = 72 / _PX_PER_INCH  # a pixel in points
_TITLE_PX, _MAX_Y_LABEL_CHARS = 15, 40


def draw_figure(plot: Plot) -> Figure:
    """The same as the vector graphic, 6.4 x 4 inches. Raises MissingDependencyError where matplotlib is absent."""
    figure = make_figure(6.4, 4)
    draw_axes(plot, figure.subplots())
    return figure


def save_png(plot: Plot, path: Path) -> None:
    """Write `draw_figure` as a PNG of 960 x 600 pixels; the same plot gives the same bytes."""
    save_figure(draw_figure(plot), path)


def make_figure(width_inch: float, height_inch: float) -> Figure:
    """An empty figure that pyplot does not know. Raises MissingDependencyError where matplotlib is absent."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "Drawing PNG files and figures needs matplotlib, which is not installed. "
            "Run: pip install 'headstart[plots]'"
        ) from error
    return Figure(figsize=(width_inch, height_inch), dpi=_DPI, layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Replace `path` by the figure as PNG, without a date or a version in it."""
    image = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that Matplotlib's own font lacks is drawn as boxes; nobody can act on the warning.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        figure.savefig(image, format="png", metadata={"Software": None})
    write_atomic(path, image.getvalue())


def draw_axes(plot: Plot, axes: Axes, width_px: float = 640, height_px: float = 400) -> None:
    """Draw `plot` on empty axes. The size, in hundredths of an inch, sets the number of ticks and where labels go.

    What shows line n has the gid "line n", and what shows its interval "band n".
    """
    x_axis, y_axis = make_axes(plot, width_px - 90, height_px - 90)
    _prepare(plot, axes, x_axis, y_axis, width_px)
    handles: dict[tuple[int, bool], Any] = {}
    for number, line in enumerate(plot.lines):
        handles[number, False] = _draw_line(axes, number, line, x_axis, y_axis)
        if line.low and line.high:
            handles[number, True] = _draw_interval(axes, number, line, x_axis)
    for mark in plot.marks:
        ends = sample_mark(mark, x_axis, y_axis)
        if ends:
            axes.plot(*zip(*ends, strict=True), linestyle=(0, (2, 3)), color="0.35", linewidth=0.9, zorder=1.9)
    for label in place_labels(plot, x_axis, y_axis, width_px - 90, height_px - 90):
        axes.annotate(
            label.text,
            (label.x, label.y),
            (label.dx_px * _POINT_PX, -label.dy_px * _POINT_PX),
            xycoords="axes fraction",
            textcoords="offset points",
            ha={"start": "left", "middle": "center", "end": "right"}[label.anchor],
            va="baseline",
            fontsize=(FONT_PX - 1) * _POINT_PX,
            parse_math=False,
        )
    entries = [entry for entry in list_legend(plot) if entry[:2] in handles]
    if entries:
        legend = axes.legend(
            [handles[number, is_band] for number, is_band, _ in entries],
            ["x"] * len(entries),
            fontsize=(FONT_PX - 1) * _POINT_PX,
            framealpha=0.85,
        )
        for text, (_, _, name) in zip(legend.get_texts(), entries, strict=True):
            text.set_parse_math(False)  # a name may hold $, or begin with _, which a legend would leave out
            text.set_text(name)


def _prepare(plot: Plot, axes: Axes, x_axis: Axis, y_axis: Axis, width_px: float) -> None:
    size = FONT_PX * _POINT_PX
    axes.set_title(
        "\n".join(wrap_title(plot, width_px, _TITLE_PX)), loc="left", fontsize=_TITLE_PX * _POINT_PX, parse_math=False
    )
    axes.set_xlabel(shorten(plot.x_label), fontsize=size, parse_math=False)
    axes.set_ylabel(shorten(plot.y_label, _MAX_Y_LABEL_CHARS), fontsize=size, parse_math=False)
    axes.set_xscale(plot.x_scale)
    axes.set_xticks(x_axis.ticks, x_axis.labels, fontsize=size)
    axes.set_yticks(y_axis.ticks, y_axis.labels, fontsize=size)
    axes.minorticks_off()
    axes.set_xlim(x_axis.low, x_axis.high)
    axes.set_ylim(y_axis.low, y_axis.high)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)


def _draw_line(axes: Axes, number: int, line: Line, x_axis: Axis, y_axis: Axis) -> Any:
    color = COLORS[number % len(COLORS)]
    drawn = {i for run in find_runs(line, x_axis, [line.y]) for i in run}
    ys = [y if i in drawn else math.nan for i, y in enumerate(line.y)]
    if line.style == "bars":
        ends = find_bar_ends(line, x_axis.is_log)
        lefts, widths = [left for left, _ in ends], [right - left for left, right in ends]
        bars = axes.bar(lefts, ys, widths, align="edge", color=color, alpha=0.45, zorder=1)
        for bar in bars:
            bar.set_gid(f"line {number}")
        return bars
    inside = all(0 <= part <= 1 for i in drawn for part in (x_axis.locate(line.x[i]), y_axis.locate(line.y[i])))
    has_markers = line.style == "points" or len(line.x) <= MAX_MARKED
    [handle] = axes.plot(
        line.x,
        ys,
        linestyle={"solid": "-", "dashed": (0, (5, 3)), "points": ""}[line.style],
        marker=_MARKERS[number % len(_MARKERS)] if has_markers else "",
        color=color,
        linewidth=1.6,
        markersize=8 if line.style == "points" else 4.5,
        markeredgewidth=0,
        zorder=3 if line.style == "points" else 2,
        gid=f"line {number}",
        clip_on=not inside,  # a point on the edge is drawn whole
    )
    return handle


def _draw_interval(axes: Axes, number: int, line: Line, x_axis: Axis) -> Any:
    color = COLORS[number % len(COLORS)]
    drawn = {i for run in find_runs(line, x_axis, [line.low, line.high]) for i in run}
    low, high = ([y if i in drawn else math.nan for i, y in enumerate(ys)] for ys in (line.low, line.high))
    if has_whiskers(line):
        # One line with gaps, so that matplotlib's search for a place for the legend sees it.
        xs = [part for x in line.x for part in (x, x, math.nan)]
        ys = [part for ends in zip(low, high, strict=True) for part in (*ends, math.nan)]
        return axes.plot(xs, ys, color=color, linewidth=1.4, zorder=2.5, gid=f"band {number}")[0]
    return axes.fill_between(line.x, low, high, color=color, alpha=0.18, linewidth=0, gid=f"band {number}")
