"""Ranges, ticks and the legend of a plot: reckoned once, so that the page and matplotlib show the same."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

from headstart._files import show_path
from headstart.plots import Line, Mark, Plot
from headstart.stats import format_percent

# The colour-blind can tell them apart, and each has a contrast of at least 3 against white and against near-black.
COLORS = ("#4269d0", "#d55e00", "#009e73", "#b5548f", "#8a6d00", "#0e8fb3")
FONT_PX = 13
MAX_MARKED = 40  # points of a line that are drawn one by one
_MAX_TITLE_CHARS, _MAX_NAME_CHARS = 200, 60
_LARGEST, _SMALLEST = 1e100, 1e-100  # what lies beyond counts as infinite, and as zero
_MARGIN_FRAC = 0.04


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high`, with a label for each of the `ticks`."""

    low: float
    high: float
    is_log: bool
    ticks: tuple[float, ...]
    labels: tuple[str, ...]

    def locate(self, value: float) -> float:
        """Where `value` lies: 0 at `low`, 1 at `high`, beyond them outside; nan where it cannot be drawn."""
        if not _can_draw(value, self.is_log):
            return math.nan
        low, high, value = (math.log10(each) if self.is_log else each for each in (self.low, self.high, value))
        return (value - low) / (high - low)


def make_axes(plot: Plot, width_px: float, height_px: float) -> tuple[Axis, Axis]:
    """The axes of `plot` for an area of this size, which sets the number of ticks."""
    is_log = plot.x_scale == "log"
    x_values = [mark.value for mark in plot.marks if mark.kind == "vertical"]
    y_values = [mark.value for mark in plot.marks if mark.kind == "horizontal"]
    bars = [line for line in plot.lines if line.style == "bars"]
    for line in plot.lines:
        x_values += chain.from_iterable(find_bar_ends(line, is_log)) if line.style == "bars" else line.x
        y_values += [*line.y, *line.low, *line.high]
    if bars:
        y_values.append(0.0)
    low, high = _choose_range(
        x_values, plot.x_range, is_log=is_log, is_percent=plot.x_is_percent, is_whole=plot.x_is_whole
    )
    bottom, top = _choose_range(y_values, plot.y_range, is_log=False, is_percent=plot.y_is_percent, is_whole=False)
    if bars and plot.y_range is None:  # they stand on the axis
        bottom, top = bottom if any(y < 0 for y in y_values) else 0.0, top if any(y > 0 for y in y_values) else 0.0
        top = top if bottom < top else 1.0
    y_axis = _make_axis((bottom, top), _count_ticks(height_px, 30), is_log=False, is_percent=plot.y_is_percent)
    for spacing in (40, 55, 80, 120):  # until the labels stand apart
        x_axis = _make_axis(
            (low, high),
            _count_ticks(width_px, spacing),
            is_log=is_log,
            is_percent=plot.x_is_percent,
            is_whole=plot.x_is_whole,
        )
        centres = [x_axis.locate(tick) * width_px for tick in x_axis.ticks]
        reach = [estimate_width(text) / 2 + 6 for text in x_axis.labels]
        if all(centres[i] + reach[i] <= centres[i + 1] - reach[i + 1] for i in range(len(centres) - 1)):
            break
    return x_axis, y_axis


def _count_ticks(size_px: float, spacing_px: float) -> int:
    return max(2, min(10, int(size_px / spacing_px)))


def find_bar_ends(line: Line, is_log: bool) -> list[tuple[float, float]]:
    """Left and right end of each bar, which leave a tenth of the smallest distance between two bars free."""
    places = [(math.log(x) if is_log else x) if _can_draw(x, is_log) else math.nan for x in line.x]
    known = sorted({place for place in places if not math.isnan(place)})
    half = 0.45 * min((b - a for a, b in pairwise(known) if b - a > _SMALLEST), default=1.0)
    ends = [(place - half, place + half) for place in places]
    if is_log:
        ends = [(math.exp(left), math.exp(right)) for left, right in ends]
    return [pair if all(_can_draw(end, is_log) for end in pair) else (math.nan, math.nan) for pair in ends]


def find_runs(line: Line, axis: Axis, columns: Sequence[Sequence[float]]) -> list[list[int]]:
    """The point numbers of `line` in stretches without a gap: x and all of `columns` can be drawn."""
    runs: list[list[int]] = [[]]
    for i, x in enumerate(line.x):
        if math.isnan(axis.locate(x)) or not all(_can_draw(column[i], False) for column in columns):
            runs.append([])
        else:
            runs[-1].append(i)
    return [run for run in runs if run]


def has_whiskers(line: Line) -> bool:
    """Whether its interval is drawn at every point by itself: a band of one point would not be seen."""
    return line.style in ("points", "bars") or len(line.x) == 1


def sample_mark(mark: Mark, x_axis: Axis, y_axis: Axis) -> list[tuple[float, float]]:
    """Points (x, y) of the mark within the axes, to be joined."""
    if mark.kind == "horizontal":
        inside = y_axis.low <= mark.value <= y_axis.high
        return [(x_axis.low, mark.value), (x_axis.high, mark.value)] if inside else []
    if mark.kind == "vertical":
        inside = x_axis.low <= mark.value <= x_axis.high
        return [(mark.value, y_axis.low), (mark.value, y_axis.high)] if inside else []
    low, high = max(x_axis.low, y_axis.low), min(x_axis.high, y_axis.high)
    if low >= high:
        return []
    num_steps = 64 if x_axis.is_log else 1  # on a log axis it is a curve
    return [(value, value) for value in (low + (high - low) * i / num_steps for i in range(num_steps + 1))]


def list_legend(plot: Plot) -> list[tuple[int, bool, str]]:
    """Number of the line, whether the entry is about its band, and the name; nothing where all is said by the axis."""
    entries = []
    for number, line in enumerate(plot.lines):
        entries += [(number, False, line.name), (number, True, line.band_name)]
    entries = [(number, is_band, shorten(name)) for number, is_band, name in entries if name]
    return [] if [name for _, _, name in entries] in ([plot.y_label], [plot.title]) else entries


def format_value(value: float, is_percent: bool) -> str:
    """A number as a reader wants it: `99.3 %`, `12,500`, `0.0312`."""
    if is_percent:
        return f"{format_percent(value)} %"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e12 else f"{value:.4g}"


def shorten(text: str, max_chars: int = _MAX_NAME_CHARS) -> str:
    """On one line, without control characters, cut with an ellipsis; a wide character counts as two."""
    shown = show_path(text)
    room = accumulate(2 if _is_wide(char) else 1 for char in shown)
    kept = sum(used < max_chars for used in room)
    return shown if kept >= len(shown) - 1 else f"{shown[:kept]}…"


def wrap_title(plot: Plot, width_px: float, size_px: float) -> list[str]:
    """The title in lines of about this width when set in bold."""
    title = shorten(plot.title, _MAX_TITLE_CHARS)
    if not title.strip():
        return []
    return textwrap.wrap(title, max(8, int(len(title) * width_px / (1.08 * estimate_width(title, size_px)))))


def estimate_width(text: str, size_px: float = FONT_PX) -> float:
    """About how wide a sans serif font sets `text`, in pixels: after DejaVu Sans, which is wider than most."""
    return size_px * sum(map(_estimate_char, text))


def _is_wide(char: str) -> bool:
    return unicodedata.east_asian_width(char) in "WF"


def _estimate_char(char: str) -> float:
    if _is_wide(char):
        return 1.0
    return 0.38 if char in " ijltfrI.,:;|!'()[]-/" else 0.95 if char in "mwMW%@" else 0.68 if char.isupper() else 0.62


def _can_draw(value: float, is_log: bool) -> bool:
    return math.isfinite(value) and abs(value) < _LARGEST and (value > _SMALLEST or not is_log)


def _choose_range(
    values: Sequence[float], given: tuple[float, float] | None, *, is_log: bool, is_percent: bool, is_whole: bool
) -> tuple[float, float]:
    if given is not None and given[1] - given[0] > _SMALLEST and all(_can_draw(end, is_log) for end in given):
        return given
    known = [value for value in values if _can_draw(value, is_log)]
    if not known:
        return (1.0, 10.0) if is_log else (0.0, 1.0)
    low, high = min(known), max(known)
    differ = high - low > max(_SMALLEST, 1e-9 * max(abs(low), abs(high)))
    if is_log:
        factor = (high / low) ** _MARGIN_FRAC if differ else 2.0
        return low / factor, high * factor
    if differ:
        margin = _MARGIN_FRAC * (high - low)
    else:
        least = 0.05 if is_percent else 0.5 if is_whole or abs(low) < _SMALLEST else 0.0
        margin = max(least, 1e-6 * abs(low) if least else 0.1 * abs(low))
    if is_percent and low >= 0 and high <= 1:  # there is nothing beyond
        return max(0.0, low - margin), min(1.0, high + margin)
    return low - margin, high + margin


def _make_axis(
    ends: tuple[float, float], max_ticks: int, *, is_log: bool, is_percent: bool, is_whole: bool = False
) -> Axis:
    low, high = ends
    ticks = _choose_log_ticks(low, high, max_ticks) if is_log else []
    digits = None
    if len(ticks) < 2:  # a log axis over less than a decade gets the ticks of a linear one
        for count in (max_ticks, 2 * max_ticks):  # one tick alone gives no scale
            step, power = _choose_step((high - low) / count, is_whole)
            numbers = range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)
            ticks = [number * step for number in numbers if number > 0 or not is_log]
            if len(ticks) >= 2:
                break
        digits = max(0, -power - 2 if is_percent else -power)
    return Axis(low, high, is_log, tuple(ticks), tuple(_format_tick(tick, is_percent, digits) for tick in ticks))


def _choose_step(smallest: float, is_whole: bool) -> tuple[float, int]:
    """The least of 1, 2 or 5 times a power of ten that is not under `smallest`, and that power."""
    power = math.floor(math.log10(smallest))
    for factor, exponent in ((1, power), (2, power), (5, power), (1, power + 1)):
        step = float(f"{factor}e{exponent}")
        if step >= 0.999 * smallest and (exponent >= 0 or not is_whole):
            return step, exponent
    return 1.0, 0


def _choose_log_ticks(low: float, high: float, max_ticks: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{factor}e{power}") for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= max_ticks:
            return ticks
    return ticks[:: math.ceil(len(ticks) / max_ticks)]


def _format_tick(value: float, is_percent: bool, digits: int | None) -> str:
    """With so many digits behind the point; None: as few as it takes."""
    shown, unit = (100 * value, " %") if is_percent else (value, "")
    if abs(shown) >= 1e9 or (digits or 0) > 6:
        return f"{shown:.6g}{unit}"
    return f"{shown:,.{digits}f}{unit}" if digits is not None else f"{shown:{',.0f' if shown >= 1 else 'g'}}{unit}"
