"""Plots as plain data: what is to be drawn, told once, for a page (vector graphics) and for notebooks (matplotlib)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Line:
    """One series. `x` and `y` are as long; `low` and `high`, where given, bound a band round the line.

    "points" are not joined; "bars" stand on 0, as wide as the spacing of `x`. `texts` label single points; `band_name`
    names the band in the legend. Where a value is nan or infinite, nothing is drawn.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    style: Literal["solid", "dashed", "points", "bars"] = "solid"
    texts: tuple[str, ...] = ()
    band_name: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A reference line across the plot: horizontal at y = `value`, vertical at x = `value`, or the diagonal y = x."""

    kind: Literal["horizontal", "vertical", "diagonal"]
    name: str
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Plot:
    """Axes with their lines. Ranges that are None follow from the data. Percent axes take fractions.

    `x_is_whole` keeps ticks between whole numbers (epochs) away.
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    x_scale: Literal["linear", "log"] = "linear"
    x_is_percent: bool = False
    y_is_percent: bool = False
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    x_is_whole: bool = False
