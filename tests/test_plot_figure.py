"""matplotlib's figures read back: the same numbers as the vector graphic, which test_plot_svg reads."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from PIL import Image
from test_plot_svg import BARS, COUNTS, COURSE, HOSTILE, LOSS, ODD, list_known

from headstart.plot_axes import make_axes
from headstart.plot_figure import draw_figure, save_png
from headstart.plots import Line, Mark, Plot


def find_all(figure: Any, gid: str) -> list[Any]:
    return [artist for artist in figure.axes[0].get_children() if artist.get_gid() == gid]


def drop_gaps(points: Any) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points.tolist() if not math.isnan(x + y)]


@pytest.mark.parametrize("plot", [COURSE, COUNTS, BARS, LOSS], ids=lambda plot: plot.title)
def test_figure_shows_the_numbers(plot: Plot) -> None:
    figure = draw_figure(plot)
    [axes] = figure.axes
    for number, line in enumerate(plot.lines):
        shown = find_all(figure, f"line {number}")
        if line.style == "bars":
            bars = [(b.get_x() + b.get_width() / 2, b.get_y() + b.get_height(), b.get_y()) for b in shown]
            known = [bar for bar in bars if not math.isnan(bar[1])]
            assert known == [(pytest.approx(x), y, 0) for x, y in list_known(line)]
        else:
            assert drop_gaps(shown[0].get_xydata()) == list_known(line)
            assert (shown[0].get_linestyle() == "None") == (line.style == "points")
        bands = find_all(figure, f"band {number}")
        assert len(bands) == bool(line.low)
        if line.style == "points" and line.low:
            ends = [(x, y) for x, *pair in zip(line.x, line.low, line.high, strict=True) for y in pair]
            assert drop_gaps(bands[0].get_xydata()) == ends
        elif line.low:
            outline = {tuple(place) for place in bands[0].get_paths()[0].vertices.tolist()}
            assert outline == {*zip(line.x, line.low, strict=True), *zip(line.x, line.high, strict=True)}
    x_axis, y_axis = make_axes(plot, 550, 310)
    assert axes.get_xlim() == (x_axis.low, x_axis.high)
    assert axes.get_ylim() == (y_axis.low, y_axis.high)
    assert [text.get_text() for text in axes.get_xticklabels()] == list(x_axis.labels)
    assert axes.get_xticks().tolist() == list(x_axis.ticks)
    assert [text.get_text() for text in axes.get_yticklabels()] == list(y_axis.labels)
    assert (axes.get_title("left"), axes.get_xlabel(), axes.get_ylabel()) == (plot.title, plot.x_label, plot.y_label)
    assert axes.get_xscale() == plot.x_scale
    texts = [text.get_text() for text in axes.texts]
    assert sorted(texts) == sorted(
        [mark.name for mark in plot.marks] + [text for line in plot.lines for text in line.texts]
    )


def test_legend_names_lines_and_bands() -> None:
    line = Line("_a $x$", (0.0, 1.0), (0.0, 1.0), (-1.0, 0.5), (1.0, 1.5), band_name="95 % interval")
    axes = draw_figure(Plot("t", "x", "y", (line, Line("b", (0.0,), (1.0,), style="points")))).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["_a $x$", "95 % interval", "b"]
    assert draw_figure(LOSS).axes[0].get_legend() is None  # the axis says it


def test_a_point_on_the_edge_is_drawn_whole_and_one_outside_not_at_all() -> None:
    full = Plot("t", "x", "y", (Line("a", (0.0, 1.0), (0.4, 1.0)),), y_is_percent=True)
    assert not find_all(draw_figure(full), "line 0")[0].get_clip_on()
    outside = Plot("t", "x", "y", (Line("a", (0.0, 1.0), (0.4, 3.0)),), y_range=(0.0, 1.0))
    assert find_all(draw_figure(outside), "line 0")[0].get_clip_on()


@pytest.mark.parametrize("name", ODD)
def test_odd_data_do_not_break_it(tmp_path: Path, name: str) -> None:
    save_png(ODD[name], tmp_path / "odd.png")
    with Image.open(tmp_path / "odd.png") as image:
        assert image.size == (960, 600)


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_can_be_drawn(tmp_path: Path, text: str) -> None:
    line = Line(text, (1.0, 2.0), (1.0, 2.0), style="points", texts=(text, text), band_name=text)
    save_png(Plot(text, text, text, (line,), (Mark("horizontal", text, 1.5),)), tmp_path / "text.png")


def test_png_is_the_same_for_the_same_plot(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_png(COURSE, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    save_png(LOSS, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() != (tmp_path / "two").read_bytes()
    assert "matplotlib.pyplot" not in sys.modules
