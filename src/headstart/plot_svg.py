"""A plot as vector graphics for a page, with nothing but the standard library; its colours follow the page's."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from headstart._files import show_path
from headstart.plot_axes import (
    COLORS,
    FONT_PX,
    MAX_MARKED,
    Axis,
    estimate_width,
    find_bar_ends,
    find_runs,
    format_value,
    has_whiskers,
    list_legend,
    make_axes,
    sample_mark,
    shorten,
    wrap_title,
)
from headstart.plot_labels import place_labels
from headstart.plots import Line, Plot

_TITLE_PX, _LINE_HEIGHT_PX, _SWATCH_PX = 16, 20, 24
_BAND_OPACITY, _BAR_OPACITY = 0.25, 0.45
_MAX_TITLE_CHARS, _MAX_DESCRIBED, _MAX_LISTED = 200, 12, 6
_GRID = "var(--plot-grid, #8884)"
# One for each colour, of radius 1 round 0, 0: circle, square, triangle, diamond, triangle on its tip, plus.
_SHAPES = (
    "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0z",
    "M-.9-.9h1.8v1.8h-1.8z",
    "M0-1.2l1.15 2h-2.3z",
    "M0-1.25l1.1 1.25l-1.1 1.25l-1.1-1.25z",
    "M0 1.2l1.15-2h-2.3z",
    "M-.4-1.1h.8v.7h.7v.8h-.7v.7h-.8v-.7h-.7v-.8h.7z",
)


def render_svg(plot: Plot, width_px: float = 640, height_px: float = 400) -> str:
    """One <svg> element, to stand in an HTML page or, with an XML declaration before it, in a file.

    It is as wide as the place it stands in and keeps its shape; `width_px` and `height_px` say how much room there is
    for text of 13 px. Text and axes take the page's colour of text, the rest --plot-1 to --plot-6 and --plot-grid
    where the page sets them. A screen reader is told the title and the main figures. Every text is escaped.
    """
    root = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {_say(width_px)} {_say(height_px)}",
            "width": "100%",
            "role": "img",
            "font-family": "system-ui, sans-serif",
            "font-size": str(FONT_PX),
            "fill": "currentColor",
        },
    )
    _add(root, "title", shorten(plot.title, _MAX_TITLE_CHARS))
    _add(root, "desc", describe_plot(plot))
    y = 0.0
    for text in wrap_title(plot, width_px, _TITLE_PX):
        y += _LINE_HEIGHT_PX
        _add(root, "text", text, x=0, y=y - 4, font_size=_TITLE_PX, font_weight=600)
    y = _draw_legend(root, plot, width_px, y + 4) + _LINE_HEIGHT_PX
    _add(root, "text", shorten(plot.y_label), x=0, y=y - 2)
    top, height = y + 12, max(20.0, height_px - y - 12 - 2.2 * _LINE_HEIGHT_PX)
    labels = make_axes(plot, width_px, height)[1].labels
    left = 10 + max((estimate_width(text) for text in labels), default=0.0)
    width = max(20.0, width_px - left - 22)
    area = _Area(left, top, width, height, *make_axes(plot, width, height))
    _draw_axes(root, area, shorten(plot.x_label))
    _draw_data(root, plot, area)
    for label in place_labels(plot, area.x_axis, area.y_axis, width, height):
        x, y = left + label.x * width + label.dx_px, top + (1 - label.y) * height + label.dy_px
        _add(root, "text", label.text, x=x, y=y, font_size=FONT_PX - 1, text_anchor=label.anchor)
    return ElementTree.tostring(root, encoding="unicode")


def describe_plot(plot: Plot) -> str:
    """The axes and the main figures of every line, in words."""

    def say(i: int) -> str:
        at = format_value(line.x[i], plot.x_is_percent)
        text = f" ({shorten(line.texts[i])})" if i < len(line.texts) and line.texts[i] else ""
        return f"{format_value(line.y[i], plot.y_is_percent)} at {at}{text}"

    sentences = [f"{plot.y_label} against {plot.x_label}."]
    for line in plot.lines[:_MAX_DESCRIBED]:
        known = [
            i for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)) if math.isfinite(x) and math.isfinite(y)
        ]
        if len(known) <= _MAX_LISTED:
            figures = ", ".join(map(say, known)) or "no figures"
        else:
            lowest, highest = min(known, key=lambda i: line.y[i]), max(known, key=lambda i: line.y[i])
            figures = (
                f"{len(known)} figures, from {say(known[0])} to {say(known[-1])}; "
                f"lowest {say(lowest)}, highest {say(highest)}"
            )
        sentences.append(f"{line.name or plot.y_label}: {figures}.")
    if len(plot.lines) > _MAX_DESCRIBED:
        sentences.append(f"And {len(plot.lines) - _MAX_DESCRIBED} more.")
    for mark in plot.marks:
        is_percent = plot.x_is_percent if mark.kind == "vertical" else plot.y_is_percent
        value = "" if mark.kind == "diagonal" else f" at {format_value(mark.value, is_percent)}"
        sentences.append(f"{mark.kind.capitalize()} line{value}: {mark.name}.")
    return show_path(" ".join(sentences))


@dataclass(frozen=True, slots=True)
class _Area:
    """Where the data stand, in pixels, and the axes that place them."""

    left: float
    top: float
    width: float
    height: float
    x_axis: Axis
    y_axis: Axis

    def place(self, x: float, y: float) -> tuple[float, float]:
        return self.left + self.x_axis.locate(x) * self.width, self.top + (1 - self.y_axis.locate(y)) * self.height

    def holds(self, x: float, y: float) -> bool:
        return all(-1e-6 <= part <= 1 + 1e-6 for part in (self.x_axis.locate(x), self.y_axis.locate(y)))


def _draw_legend(root: Element, plot: Plot, width_px: float, top: float) -> float:
    """Swatches and names from left to right in as many rows as it takes; returns the lower edge."""
    entries = list_legend(plot)
    x, y = 0.0, top
    for number, is_band, name in entries:
        width = _SWATCH_PX + 6 + estimate_width(name) + 14
        if x > 0 and x + width - 14 > width_px:
            x, y = 0.0, y + _LINE_HEIGHT_PX
        line, color = plot.lines[number], _color(number)
        middle = y + _LINE_HEIGHT_PX / 2
        if is_band and has_whiskers(line):
            _add(root, "path", d=f"M{_say(x + 12)} {_say(middle - 7)}v14", stroke=color, stroke_width=1.5)
        elif is_band or line.style == "bars":
            opacity = _BAND_OPACITY if is_band else _BAR_OPACITY
            _add(root, "rect", x=x, y=middle - 5, width=_SWATCH_PX, height=10, fill=color, fill_opacity=opacity)
        else:
            if line.style != "points":
                _draw_path(root, [(x, middle), (x + _SWATCH_PX, middle)], line, color)
            if line.style == "points" or len(line.x) <= MAX_MARKED:
                _draw_shape(root, x + _SWATCH_PX / 2, middle, number, line)
        _add(root, "text", name, x=x + _SWATCH_PX + 6, y=middle + 4)
        x += width
    return y + (_LINE_HEIGHT_PX if entries else 0)


def _draw_axes(root: Element, area: _Area, x_label: str) -> None:
    bottom, right = area.top + area.height, area.left + area.width
    for tick, text in zip(area.y_axis.ticks, area.y_axis.labels, strict=True):
        y = area.place(area.x_axis.high, tick)[1]
        _add(root, "path", d=f"M{_say(area.left)} {_say(y)}H{_say(right)}", stroke=_GRID)
        _add(root, "text", text, x=area.left - 8, y=y + 4, text_anchor="end", fill_opacity=0.8)
    for tick, text in zip(area.x_axis.ticks, area.x_axis.labels, strict=True):
        x = area.place(tick, area.y_axis.high)[0]
        _add(root, "path", d=f"M{_say(x)} {_say(area.top)}V{_say(bottom)}", stroke=_GRID)
        _add(root, "text", text, x=x, y=bottom + 17, text_anchor="middle", fill_opacity=0.8)
    _add(root, "path", d=f"M{_say(area.left)} {_say(bottom)}H{_say(right)}", stroke="currentColor", stroke_opacity=0.6)
    _add(root, "text", x_label, x=right, y=bottom + 17 + _LINE_HEIGHT_PX, text_anchor="end")


def _draw_data(root: Element, plot: Plot, area: _Area) -> None:
    group = ElementTree.SubElement(root, "g")
    points = [(x, y) for line in plot.lines for ys in (line.y, line.low, line.high) for x, y in zip(line.x, ys)]  # noqa: B905
    if not all(area.holds(x, y) or math.isnan(sum(area.place(x, y))) for x, y in points):
        _clip(group, area, plot)
    # Bars and bands lie below marks, marks below lines, and all below the points.
    for bars_first in (True, False):
        for number, line in enumerate(plot.lines):
            if (line.style == "bars") == bars_first:
                _draw_extent(group, number, line, area)
    for mark in plot.marks:
        path = _join(area.place(x, y) for x, y in sample_mark(mark, area.x_axis, area.y_axis))
        _add(group, "path", d=path, stroke="currentColor", stroke_opacity=0.7, stroke_dasharray="2 4", fill="none")
    for number, line in enumerate(plot.lines):
        if line.style in ("solid", "dashed"):
            for run in find_runs(line, area.x_axis, [line.y]):
                places = [area.place(line.x[i], line.y[i]) for i in run]
                _draw_path(group, places, line, _color(number)).set("data-line", str(number))
    for number, line in sorted(enumerate(plot.lines), key=lambda pair: pair[1].style == "points"):
        if line.style == "points" or (line.style != "bars" and len(line.x) <= MAX_MARKED):
            for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
                if area.holds(x, y):
                    shape = _draw_shape(root, *area.place(x, y), number, line)
                    _add(shape, "title", _say_point(plot, line, i))


def _draw_extent(group: Element, number: int, line: Line, area: _Area) -> None:
    """Bars, and the interval as whiskers or as a band."""
    color = _color(number)
    if line.style == "bars":
        ends = find_bar_ends(line, area.x_axis.is_log)
        for run in find_runs(line, area.x_axis, [line.y]):
            for i in (i for i in run if not math.isnan(ends[i][0])):
                (left, top), (right, bottom) = area.place(ends[i][0], line.y[i]), area.place(ends[i][1], 0)
                top, bottom = min(top, bottom), max(top, bottom)
                _add(
                    group,
                    "rect",
                    x=left,
                    y=top,
                    width=right - left,
                    height=bottom - top,
                    fill=color,
                    fill_opacity=_BAR_OPACITY,
                    data_line=number,
                )
    for run in find_runs(line, area.x_axis, [line.low, line.high]) if line.low and line.high else []:
        low = [area.place(line.x[i], line.low[i]) for i in run]
        high = [area.place(line.x[i], line.high[i]) for i in run]
        if has_whiskers(line) or len(run) == 1:
            for pair in zip(low, high, strict=True):
                _add(group, "path", d=_join(pair), stroke=color, stroke_width=1.5, data_band=number)
        else:
            path = _join([*low, *reversed(high)]) + "z"
            _add(group, "path", d=path, fill=color, fill_opacity=_BAND_OPACITY, data_band=number)


def _draw_path(parent: Element, places: Sequence[tuple[float, float]], line: Line, color: str) -> Element:
    path = _add(parent, "path", d=_join(places), stroke=color, stroke_width=2, stroke_linejoin="round", fill="none")
    if line.style == "dashed":
        path.set("stroke-dasharray", "7 4")
    return path


def _draw_shape(parent: Element, x: float, y: float, number: int, line: Line) -> Element:
    radius = 5.5 if line.style == "points" else 3.2
    transform = f"translate({_say(x)} {_say(y)}) scale({radius})"
    shape = _SHAPES[number % len(_SHAPES)]
    return _add(parent, "path", d=shape, transform=transform, fill=_color(number), data_line=number)


def _clip(group: Element, area: _Area, plot: Plot) -> None:
    """Nothing of `group` shows outside the axes. The name is the content's, as a page holds many plots."""
    name = f"plot-clip-{hashlib.sha256(repr((plot, area)).encode('utf-8', 'backslashreplace')).hexdigest()[:16]}"
    clip = _add(group, "clipPath", id=name)
    _add(clip, "rect", x=area.left, y=area.top, width=area.width, height=area.height)
    group.set("clip-path", f"url(#{name})")


def _say_point(plot: Plot, line: Line, i: int) -> str:
    texts = [line.texts[i] if i < len(line.texts) else "", line.name, plot.y_label]
    name = next((shorten(text) for text in texts if text), "")
    interval = ""
    if i < len(line.low) and i < len(line.high):
        low, high = (format_value(value, plot.y_is_percent) for value in (line.low[i], line.high[i]))
        interval = f" ({low} to {high})"
    x, y = format_value(line.x[i], plot.x_is_percent), format_value(line.y[i], plot.y_is_percent)
    return f"{name}: {y}{interval}\n{shorten(plot.x_label)}: {x}"


def _add(parent: Element, tag: str, text: str | None = None, **attributes: object) -> Element:
    """`stroke_width=2` becomes stroke-width="2"; ElementTree escapes what XML needs."""
    written = {name.replace("_", "-"): _say(value) for name, value in attributes.items()}
    child = ElementTree.SubElement(parent, tag, written)
    child.text = text
    return child


def _join(places: Iterable[tuple[float, float]]) -> str:
    path = "L".join(f"{_say(x)} {_say(y)}" for x, y in places)
    return f"M{path}" if path else ""


def _color(number: int) -> str:
    return f"var(--plot-{number % len(COLORS) + 1}, {COLORS[number % len(COLORS)]})"


def _say(value: object) -> str:
    """Numbers to a hundredth of a pixel."""
    return f"{round(value, 2):.7g}" if isinstance(value, float) and abs(value) < 1e5 else str(value)
