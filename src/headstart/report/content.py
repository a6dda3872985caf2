"""What a report says, as plain data; `page.py` makes the page of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headstart.data_check import DataReport
from headstart.evaluation import Evaluation
from headstart.plots import Plot


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A training picture that lies near another in feature space; `similarity` is their cosine, -1 .. 1."""

    path: str
    label: int
    similarity: float


@dataclass(frozen=True, eq=False, slots=True)
class GalleryItem:
    """A picture with what is to be said of it. `label` and `predicted` number the classes; None where it has none.

    `sha256` of the file's bytes names what was judged. `heat` is float32 (h, w), what spoke for `predicted` where in
    `heat_box`: top, left, height, width of the square that the network saw, as fractions of the picture. `note` stands
    under the picture.
    """

    path: str
    sha256: str
    label: int | None = None
    predicted: int | None = None
    probability: float | None = None
    note: str = ""
    neighbours: tuple[Neighbour, ...] = ()
    heat: np.ndarray | None = None
    heat_box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures in an order that means something. With `decides` each has buttons for a decision on its label."""

    key: str
    title: str
    intro: str
    items: tuple[GalleryItem, ...]
    decides: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Cells are text; `numeric` columns are set to the right and sorted as numbers. Row `marked` stands out."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[int, ...] = ()
    marked: int | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with paragraphs, then plots, then tables, then galleries."""

    key: str
    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    galleries: tuple[Gallery, ...] = ()


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do next: `action` in a few words, `reason` with the figures behind it, `command` to copy or ""."""

    action: str
    reason: str
    command: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class Report:
    """Everything on the page. `figures` is `evaluation.compute_figures()`; `evaluation` None shows the data alone.

    `sheet` holds some pictures of every class: (class name, number of pictures in all, items). `details` maps settings,
    versions and digests to text.
    """

    title: str
    classes: tuple[str, ...]
    data: DataReport | None = None
    evaluation: Evaluation | None = None
    figures: dict[str, Any] | None = None
    headline: tuple[str, ...] = ()
    sheet: tuple[tuple[str, int, tuple[GalleryItem, ...]], ...] = ()
    advice: tuple[Advice, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    sections: tuple[Section, ...] = ()
    details: dict[str, str] = field(default_factory=dict)
