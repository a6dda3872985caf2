"""Vector graphics read back: ticks give the scale, and by it every coordinate is the number it stands for."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from drawn_pictures import run_python
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headstart.plot_axes import COLORS, estimate_width, make_axes
from headstart.plot_labels import place_labels
from headstart.plot_svg import render_svg
from headstart.plots import Line, Mark, Plot

SVG = "{http://www.w3.org/2000/svg}"
NAN, INF = math.nan, math.inf
TAGS = {"svg", "title", "desc", "g", "path", "rect", "text", "clipPath"}

EPOCHS = tuple(map(float, range(6)))
ACCURACY = (0.52, 0.71, 0.803, 0.86, 0.91, 0.903)
COURSE = Plot(
    "Accuracy by epoch",
    "epoch",
    "accuracy",
    (
        Line("validation", EPOCHS, ACCURACY, tuple(a - 0.05 for a in ACCURACY), tuple(a + 0.03 for a in ACCURACY)),
        Line("training", EPOCHS, (NAN, 0.75, 0.85, NAN, 0.93, 0.96), style="dashed"),
        Line("best", (4.0,), (0.91,), style="points"),
    ),
    marks=(Mark("horizontal", "desired", 0.95),),
    y_is_percent=True,
    x_is_whole=True,
)
COUNTS = Plot(
    "Error by pictures",
    "pictures",
    "error",
    (Line("unseen", (50.0, 333.0, 1000.0, 4096.0), (0.4, 0.22, 0.1, 0.07)),),
    x_scale="log",
)
BARS = Plot(
    "Shares",
    "probability",
    "share",
    (
        Line("bins", (0.1, 0.3, 0.5, 0.7, 0.9), (0.05, 0.1, NAN, 0.25, 0.6), style="bars"),
        Line("right", (0.15, 0.72), (0.2, 0.8), (0.1, 0.7), (0.35, 0.9), style="points", texts=("n 5", "n 25")),
    ),
    marks=(Mark("diagonal", "equal"),),
    x_is_percent=True,
    y_is_percent=True,
    x_range=(0.0, 1.0),
)
LOSS = Plot("Loss", "step", "loss", (Line("loss", (0.0, 1500.0, 2250.0), (-2.5, 17.25, 3.125)),))


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def read_number(label: str) -> float:
    number = float(label.removesuffix(" %").replace(",", ""))
    return number / 100 if label.endswith("%") else number


class Scale:
    """Pixels to data, from the tick labels alone."""

    def __init__(self, root: ElementTree.Element, is_log: bool) -> None:
        ticks = [text for text in root.iter(f"{SVG}text") if text.get("fill-opacity")]
        self.is_log = is_log
        xs = [(float(t.get("x")), read_number(t.text)) for t in ticks if t.get("text-anchor") == "middle"]  # type: ignore[arg-type]
        ys = [(float(t.get("y")) - 4, read_number(t.text)) for t in ticks if t.get("text-anchor") == "end"]  # type: ignore[arg-type]
        self.x, self.x_error = self.fit([(px, math.log10(v) if is_log else v) for px, v in xs])
        self.y, self.y_error = self.fit(ys)

    @staticmethod
    def fit(pairs: list[tuple[float, float]]) -> tuple[np.ndarray, float]:
        assert len(pairs) >= 2
        px, value = np.array(pairs).T
        line = np.polyfit(px, value, 1)
        assert np.allclose(np.polyval(line, px), value, atol=abs(line[0]) * 0.02)  # the ticks lie on one scale
        return line, abs(line[0]) * 0.05

    def read(self, x: float, y: float) -> tuple[float, float]:
        found = float(np.polyval(self.x, x))
        return (10**found if self.is_log else found), float(np.polyval(self.y, y))

    def is_near(self, found: tuple[float, float], expected: tuple[float, float]) -> bool:
        x, y = (math.log10(value) if self.is_log else value for value in (found[0], expected[0]))
        return abs(x - y) <= self.x_error and abs(found[1] - expected[1]) <= self.y_error


def read_path(element: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", element.get("d", ""))]


def read_data(plot: Plot, svg: str) -> dict[str, list[tuple[float, float]]]:
    """What is drawn in units of the data: "line 0" as joined, "points 0" as markers, "bars 0", "band 0" outlines."""
    root = parse(svg)
    scale = Scale(root, plot.x_scale == "log")
    found: dict[str, list[tuple[float, float]]] = {}
    for element in root.iter():
        if band := element.get("data-band"):
            found.setdefault(f"band {band}", []).extend(scale.read(*place) for place in read_path(element))
        elif line := element.get("data-line"):
            if place := re.match(r"translate\(([-\d.]+) ([-\d.]+)\)", element.get("transform", "")):
                found.setdefault(f"points {line}", []).append(scale.read(float(place[1]), float(place[2])))
            elif element.tag == f"{SVG}rect":
                x, y, width, height = (float(element.get(key, "")) for key in ("x", "y", "width", "height"))
                found.setdefault(f"bars {line}", []).append(scale.read(x + width / 2, y))
                found.setdefault(f"feet {line}", []).append(scale.read(x + width / 2, y + height))
            else:
                found.setdefault(f"line {line}", []).extend(scale.read(*place) for place in read_path(element))
    return found


def skip_legend(plot: Plot, found: dict[str, list[tuple[float, float]]]) -> dict[str, list[tuple[float, float]]]:
    """Swatches with a marker come first, one for each line that has a name."""
    names = {f"points {number}" for number, line in enumerate(plot.lines) if line.style != "bars"}
    return {key: places[1:] if key in names else places for key, places in found.items()}


def list_known(line: Line) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(line.x, line.y, strict=True) if not math.isnan(y)]


@pytest.mark.parametrize("plot", [COURSE, COUNTS, BARS, LOSS], ids=lambda plot: plot.title)
@pytest.mark.parametrize("size", [(640, 400), (360, 260)])
def test_coordinates_are_the_numbers(plot: Plot, size: tuple[int, int]) -> None:
    svg = render_svg(plot, *size)
    scale = Scale(parse(svg), plot.x_scale == "log")
    found = read_data(plot, svg)
    if len(plot.lines) > 1:
        found = skip_legend(plot, found)
    else:
        found["points 0"] = found["points 0"][-len(plot.lines[0].x) :]
    for number, line in enumerate(plot.lines):
        kind = {"bars": "bars", "points": "points"}.get(line.style, "line")
        kinds = {kind, "points"} if kind == "line" else {kind}
        for each in kinds:
            places = found.pop(f"{each} {number}")
            assert len(places) == len(list_known(line))
            assert all(map(scale.is_near, places, list_known(line)))
        if line.low:
            outline = found.pop(f"band {number}")
            low, high = list(zip(line.x, line.low, strict=True)), list(zip(line.x, line.high, strict=True))
            whiskers = [end for pair in zip(low, high, strict=True) for end in pair]
            expected = whiskers if line.style == "points" else low + high[::-1]
            assert len(outline) == len(expected)
            assert all(map(scale.is_near, outline, expected))
        if line.style == "bars":
            assert all(abs(y) < scale.y_error for _, y in found.pop(f"feet {number}"))
    assert not found


def test_a_gap_is_not_bridged() -> None:
    root = parse(render_svg(COURSE))
    pieces = [path for path in root.iter(f"{SVG}path") if path.get("data-line") == "1" and not path.get("transform")]
    assert [len(read_path(piece)) for piece in pieces] == [2, 2]


def test_marks_are_where_they_say() -> None:
    for plot, ends in ((COURSE, None), (BARS, [(0.0, 0.0), (0.6, 0.6)])):
        root = parse(render_svg(plot))
        scale = Scale(root, False)
        [mark] = [path for path in root.iter(f"{SVG}path") if path.get("stroke-dasharray") == "2 4"]
        found = [scale.read(*place) for place in read_path(mark)]
        if ends is None:
            assert [y for _, y in found] == pytest.approx([0.95, 0.95], abs=scale.y_error)
        else:
            top = make_axes(plot, 500, 300)[1].high
            assert [value for place in found for value in place] == pytest.approx([0, 0, top, top], abs=0.01)
        assert plot.marks[0].name in [text.text for text in root.iter(f"{SVG}text")]


HOSTILE = (
    "</title></svg><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a\x00b\x1b[31m\ud800\udce9\u202e\n]]>&amp;<!--",
    "猫" * 300,
    "$\\frac{1}$",
    "_name",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_text(text: str) -> None:
    line = Line(
        text, (1.0, 2.0), (1.0, 2.0), (0.5, 1.0), (2.0, 3.0), style="points", texts=(text, text), band_name=text
    )
    svg = render_svg(Plot(text, text, text, (line,), (Mark("horizontal", text, 1.5), Mark("vertical", text, 1.5))))
    root = parse(svg)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= TAGS
    assert not [name for element in root.iter() for name in element.attrib if name.startswith("on") or "href" in name]
    assert all(char.isprintable() for char in svg.replace("\n", ""))
    svg.encode()
    assert "<script" not in svg
    assert "<img" not in svg
    assert max(len(element.text or "") for element in root.iter(f"{SVG}text")) <= 200


ODD = {
    "no lines": Plot("t", "x", "y", ()),
    "empty": Plot("t", "x", "y", (Line("a", (), ()), Line("b", (), (), style="bars")), (Mark("diagonal", "d"),)),
    "one point": Plot("t", "x", "y", (Line("a", (3.0,), (4.0,), (3.5,), (4.5,)),)),
    "one bar": Plot("t", "x", "y", (Line("a", (3.0,), (4.0,), style="bars"),)),
    "equal": Plot("t", "x", "y", (Line("a", (5.0, 5.0), (0.7, 0.7)),), y_is_percent=True),
    "zeros": Plot("t", "x", "y", (Line("a", (0.0, 0.0), (0.0, 0.0)),)),
    "zero bars": Plot("t", "x", "y", (Line("a", (0.0, 1.0), (0.0, 0.0), style="bars"),)),
    "negative bars": Plot("t", "x", "y", (Line("a", (0.0, 1.0), (-1.0, 2.0), style="bars"),)),
    "not numbers": Plot("t", "x", "y", (Line("a", (NAN, 1.0, INF), (1.0, NAN, 2.0), (NAN, NAN, 1.0), (1.0, INF, 2.0)),)),
    "huge": Plot("t", "x", "y", (Line("a", (-1e99, 1e308), (5e-324, 1e99)),)),
    "tiny span": Plot("t", "x", "y", (Line("a", (1e9, 1e9 + 1e-6), (1.0, 1.0 + 1e-16)),)),
    "log of nothing": Plot("t", "x", "y", (Line("a", (0.0, -1.0), (1.0, 2.0)),), (Mark("vertical", "v", 0.0),), x_scale="log"),
    "log, one": Plot("t", "x", "y", (Line("a", (70.0,), (1.0,)),), x_scale="log"),
    "log, narrow": Plot("t", "x", "y", (Line("a", (120.0, 140.0), (1.0, 2.0)),), (Mark("diagonal", "d"),), x_scale="log"),
    "log, wide": Plot("t", "x", "y", (Line("a", (1e-30, 1e30), (1.0, 2.0)),), x_scale="log"),
    "range the wrong way": Plot("t", "x", "y", (Line("a", (1.0, 2.0), (1.0, 2.0)),), x_range=(2.0, 1.0), y_range=(NAN, 1.0)),
    "range outside": Plot("t", "x", "y", (Line("a", (1.0, 2.0), (1.0, 2.0)),), x_range=(5.0, 6.0), y_range=(0.0, 1e-7)),
}  # fmt: skip


def check_sound(plot: Plot, width: float = 640, height: float = 400) -> ElementTree.Element:
    root = parse(render_svg(plot, width, height))
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in ("d", "x", "y", "width", "height", "transform"):
                assert not re.search(r"nan|inf|e", re.sub("translate|scale", "", value)), (element.tag, name, value)
    return root


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("size", [(640, 400), (120, 90)])
def test_odd_data_do_not_break_it(name: str, size: tuple[int, int]) -> None:
    check_sound(ODD[name], *size)


FLOATS = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=150, deadline=None)
@given(
    points=st.lists(st.tuples(FLOATS, FLOATS, FLOATS, FLOATS), max_size=6),
    style=st.sampled_from(["solid", "dashed", "points", "bars"]),
    scale=st.sampled_from(["linear", "log"]),
    percent=st.booleans(),
    whole=st.booleans(),
    mark=FLOATS,
)
def test_any_numbers_can_be_drawn(points, style, scale, percent, whole, mark) -> None:  # type: ignore[no-untyped-def]
    x, y, low, high = (tuple(column) for column in zip(*points, strict=True)) if points else ((), (), (), ())
    marks = (Mark("vertical", "v", mark), Mark("horizontal", "h", mark), Mark("diagonal", "d"))
    line = Line("a", x, y, low, high, style=style, texts=("t",) * len(x))
    plot = Plot("t", "x", "y", (line,), marks, scale, percent, percent, x_is_whole=whole)
    check_sound(plot)
    for axis in make_axes(plot, 500, 300):
        assert axis.low < axis.high
        assert len(axis.ticks) <= 12


@settings(max_examples=300, deadline=None)
@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-4, 1e7), percent=st.booleans(), whole=st.booleans())
@example(low=999999.0, span=0.0001, percent=False, whole=True)
def test_ticks_are_even_inside_and_say_their_value(low: float, span: float, percent: bool, whole: bool) -> None:
    line = Line("a", (low, low + span), (low, low + span))
    plot = Plot("t", "x", "y", (line,), x_is_percent=percent, y_is_percent=percent, x_is_whole=whole)
    for axis, may_be_one in zip(make_axes(plot, 500, 300), (whole, False), strict=True):
        assert len(axis.ticks) >= (0 if may_be_one else 2)
        edge = 1e-5 * (axis.high - axis.low)  # of the axis, which is wider than the data where these hardly differ
        assert all(axis.low - edge <= tick <= axis.high + edge for tick in axis.ticks)
        assert len(set(axis.labels)) == len(axis.ticks)
        steps = np.diff(axis.ticks)
        assert np.allclose(steps, steps[:1] if len(steps) else 0, rtol=1e-4)
        for tick, label in zip(axis.ticks, axis.labels, strict=True):
            assert read_number(label) == pytest.approx(tick, abs=1e-6 * max(span, abs(tick)))
        if may_be_one:
            assert all(tick == round(tick) for tick in axis.ticks)


def test_percents_end_at_a_hundred_and_bars_stand_on_zero() -> None:
    assert make_axes(COURSE, 500, 300)[1].high < 1
    full = Plot("t", "x", "y", (Line("a", (0.0, 1.0), (0.4, 1.0)),), y_is_percent=True)
    assert make_axes(full, 500, 300)[1].high == 1
    assert make_axes(BARS, 500, 300)[1].low == 0
    assert make_axes(COUNTS, 500, 300)[0].labels == ("50", "100", "200", "500", "1,000", "2,000")


def test_tick_labels_stand_apart() -> None:
    for width in range(60, 900, 40):
        axis, _ = make_axes(COUNTS, width, 300)
        ends = [
            (axis.locate(t) * width, estimate_width(text) / 2) for t, text in zip(axis.ticks, axis.labels, strict=True)
        ]
        for (x, half), (following, other) in pairwise(ends):
            assert x + half < following - other or width < 200


def test_labels_of_points_do_not_cover_each_other() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random(15), rng.random(15)
    line = Line("networks", tuple(x), tuple(y), style="points", texts=tuple(f"network-{i}" for i in range(15)))
    plot = Plot("t", "x", "y", (line,), (Mark("horizontal", "desired", 0.5), Mark("vertical", "now", 0.5)))
    axes = make_axes(plot, 560, 300)
    labels = place_labels(plot, *axes, 560, 300)
    assert {label.text for label in labels} == {*line.texts, "desired", "now"}
    boxes = []
    for label in labels:
        width = estimate_width(label.text, 12)
        left = label.x * 560 + label.dx_px - {"start": 0, "middle": width / 2, "end": width}[label.anchor]
        bottom = (1 - label.y) * 300 + label.dy_px
        assert left >= -1
        assert left + width <= 561
        boxes.append((left, bottom - 9, left + width, bottom))
    overlaps = sum(
        max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        for i, a in enumerate(boxes)
        for b in boxes[:i]
    )
    assert overlaps == 0


def test_what_lies_outside_is_cut_off() -> None:
    assert "clip" not in render_svg(COURSE)
    line = Line("a", (0.0, 1.0, 2.0), (0.1, 5.0, 0.2))
    plots = [Plot(name, "x", "y", (line,), y_range=(0.0, 1.0)) for name in ("one", "two")]
    ids = []
    for plot in plots:
        root = check_sound(plot)
        [clip] = root.iter(f"{SVG}clipPath")
        [group] = root.iter(f"{SVG}g")
        assert group.get("clip-path") == f"url(#{clip.get('id')})"
        ids.append(clip.get("id"))
        markers = [path for path in root.iter(f"{SVG}path") if path.find(f"{SVG}title") is not None]
        assert len(markers) == 2  # the third is outside
    assert len(set(ids)) == 2


def test_colours_are_the_pages() -> None:
    svg = render_svg(COURSE)
    for number in (1, 2, 3):
        assert f"var(--plot-{number}, {COLORS[number - 1]})" in svg
    assert "var(--plot-grid, " in svg
    root = parse(svg)
    assert root.get("fill") == "currentColor"
    assert "style" not in {name for element in root.iter() for name in element.attrib}  # a page may forbid it
    many = Plot("t", "x", "y", tuple(Line(str(i), (0.0, 1.0), (i, i + 1.0)) for i in range(14)))
    assert "--plot-6" in render_svg(many)
    assert "--plot-7" not in render_svg(many)


def test_colours_can_be_seen_on_white_and_on_black() -> None:
    def compute_luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for color in COLORS:
        luminance = compute_luminance(color)
        assert 1.05 / (luminance + 0.05) >= 3
        assert (luminance + 0.05) / (compute_luminance("#16181d") + 0.05) >= 3


def test_a_screen_reader_is_told_the_figures() -> None:
    root = parse(render_svg(COURSE))
    assert root.get("role") == "img"
    title, description = list(root)[:2]
    assert (title.tag, title.text) == (f"{SVG}title", "Accuracy by epoch")
    text = description.text or ""
    assert description.tag == f"{SVG}desc"
    for part in ("accuracy against epoch", "validation:", "52.0 % at 0", "training: 75.0 % at 1", "95.0 %: desired"):
        assert part in text
    long = Plot(
        "t", "x", "y", (Line("a", tuple(map(float, range(50))), tuple(float((i * 7) % 50) for i in range(50))),)
    )
    assert "50 figures, from 0 at 0 to 43 at 49; lowest 0 at 0, highest 49 at 7" in render_svg(long)


def test_points_say_their_value_when_pointed_at() -> None:
    titles = [title.text for title in parse(render_svg(BARS)).iter(f"{SVG}title")]
    assert "n 5: 20.0 % (10.0 % to 35.0 %)\nprobability: 15.0 %" in titles


def test_the_same_plot_gives_the_same_text() -> None:
    assert render_svg(COURSE) == render_svg(COURSE)
    assert 'viewBox="0 0 640 400"' in render_svg(COURSE)


def test_nothing_is_needed_for_it(tmp_path: Path) -> None:
    code = (
        "import sys; from headstart.plots import *; from headstart.plot_svg import render_svg;"
        "render_svg(Plot('t', 'x', 'y', (Line('a', (1.0,), (2.0,)),)));"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "headstart" in done.stdout.split()
    assert not {"matplotlib", "scipy", "sklearn", "PIL", "jinja2"} & set(done.stdout.split())
