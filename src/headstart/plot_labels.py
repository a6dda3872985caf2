"""Where the names of reference lines and the texts of points stand in a plot, the same for page and matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from headstart.plot_axes import FONT_PX, Axis, estimate_width, has_whiskers, sample_mark, shorten
from headstart.plots import Mark, Plot

_MAX_OBSTACLES = 600  # so that the search stays fast

Anchor = Literal["start", "middle", "end"]
Box = tuple[float, float, float, float]  # left, top, right, bottom
Place = tuple[float, float, float, float, Anchor]  # the fields of a Label after its text


@dataclass(frozen=True, slots=True)
class Label:
    """A text beside the place (`x`, `y`), fractions of the axes from the lower left corner.

    Its base line starts, ends or is centred (`anchor`) `dx_px` to the right and `dy_px` below that place.
    """

    text: str
    x: float
    y: float
    dx_px: float
    dy_px: float
    anchor: Anchor


def place_labels(plot: Plot, x_axis: Axis, y_axis: Axis, width_px: float, height_px: float) -> list[Label]:
    """The names of the marks and the texts of the points, each where it covers least of points and other labels."""
    taken = list(islice(_find_obstacles(plot, x_axis, y_axis, width_px, height_px), _MAX_OBSTACLES))
    labels = []

    def place(text: str, choices: Iterable[Place]) -> None:
        shown = shorten(text)
        width = estimate_width(shown, FONT_PX - 1)

        def get_box(choice: Place) -> Box:
            x, y, dx, dy, anchor = choice
            left = x * width_px + dx - {"start": 0, "middle": width / 2, "end": width}[anchor]
            bottom = (1 - y) * height_px + dy
            return left, bottom - FONT_PX + 3, left + width, bottom + 3

        def get_cost(choice: Place) -> float:
            box = get_box(choice)
            outside = max(0, -box[0]) + max(0, box[2] - width_px) + max(0, -box[1]) + max(0, box[3] - height_px)
            return 100 * outside + sum(_overlap(box, other) for other in taken)

        best = min(choices, key=get_cost)
        taken.append(get_box(best))
        labels.append(Label(shown, *best))

    for mark in plot.marks:
        ends = sample_mark(mark, x_axis, y_axis)
        if mark.name and ends:
            place(mark.name, _list_mark_places(mark, [(x_axis.locate(x), y_axis.locate(y)) for x, y in ends]))
    for line in plot.lines:
        for x, y, text in zip(line.x, line.y, line.texts, strict=False):
            at = x_axis.locate(x), y_axis.locate(y)
            if text and all(0 <= each <= 1 for each in at):
                place(text, ((*at, *offset) for offset in _POINT_OFFSETS))
    return labels


def _find_obstacles(plot: Plot, x_axis: Axis, y_axis: Axis, width_px: float, height_px: float) -> Iterator[Box]:
    """What labels should not cover: points, whiskers, and the lines between points in pieces."""
    for line in plot.lines:
        before = None
        for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
            left, top = x_axis.locate(x) * width_px, (1 - y_axis.locate(y)) * height_px
            if math.isnan(left + top):
                before = None
                continue
            yield left - 5, top - 5, left + 5, top + 5
            if line.low and line.high and has_whiskers(line):
                ends = [(1 - y_axis.locate(end)) * height_px for end in (line.high[i], line.low[i])]
                yield left - 2, ends[0], left + 2, ends[1]
            if before and line.style in ("solid", "dashed"):
                num_pieces = min(40, int(math.dist(before, (left, top)) / 12))
                for k in range(1, num_pieces):
                    x_px, y_px = _between(before, (left, top), k / num_pieces)
                    yield x_px - 4, y_px - 4, x_px + 4, y_px + 4
            before = (left, top)


_POINT_OFFSETS: tuple[tuple[float, float, Anchor], ...] = (
    (0, -8, "middle"),
    (8, 4, "start"),
    (-8, 4, "end"),
    (0, 17, "middle"),
    (7, -6, "start"),
    (-7, -6, "end"),
    (7, 14, "start"),
    (-7, 14, "end"),
    (-7, 28, "end"),
    (7, 28, "start"),
    (0, -22, "middle"),
)


def _list_mark_places(mark: Mark, ends: Sequence[tuple[float, float]]) -> Iterable[Place]:
    if mark.kind == "vertical":
        for y in (1.0, 0.0, 0.5):
            dy = {1.0: FONT_PX, 0.0: -8.0, 0.5: 0.0}[y]
            yield ends[0][0], y, 5, dy, "start"
            yield ends[0][0], y, -5, dy, "end"
    elif mark.kind == "horizontal":
        for x, dx, anchor in ((1.0, -4.0, "end"), (0.0, 4.0, "start"), (0.5, 0.0, "middle")):
            yield x, ends[0][1], dx, -5, anchor  # type: ignore[misc]
            yield x, ends[0][1], dx, FONT_PX + 2, anchor  # type: ignore[misc]
    else:
        for part in (0.3, 0.15, 0.5, 0.7):
            x, y = ends[round(part * (len(ends) - 1))] if len(ends) > 2 else _between(ends[0], ends[-1], part)
            yield x, y, 8, 12, "start"
            yield x, y, -8, -4, "end"


def _between(start: tuple[float, float], end: tuple[float, float], part: float) -> tuple[float, float]:
    return start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])


def _overlap(one: Box, other: Box) -> float:
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
