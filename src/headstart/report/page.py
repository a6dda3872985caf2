"""A Report as one HTML file: its own style and script inlined, pictures embedded once each, nothing loaded."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from itertools import accumulate, chain
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from headstart._files import show_path
from headstart.csv_text import escape_text
from headstart.data_check import DataReport
from headstart.evaluation import Evaluation
from headstart.palette import read_palette
from headstart.plots import Plot
from headstart.report.content import Gallery, GalleryItem, Report
from headstart.report.thumbnails import Thumbnail, Wanted, make_thumbnails, plan_sides
from headstart.stats import format_percent

MISTAKES = "mistakes"
"""The key of the gallery that is made of the evaluation's mistakes."""
NUM_PAIRS = 10
_PLOT_PX = 480, 350  # so narrow that its text can still be read on a phone
MAX_PICTURES = 25_000
"""More than these are listed with their paths, without the picture, so that a browser can hold the page."""
_SEVERITIES = (("left-out", "left out"), ("warning", "warnings"), ("note", "notes"))
_FIGURES = (
    ("balanced_accuracy", "Balanced accuracy", "mean recall of the classes"),
    ("macro_f1", "Macro F1", "mean F1 of the classes"),
    ("log_loss", "Log loss", "nats a picture; 0 is best"),
    ("ece", "Calibration error", "gap between probability and share of right answers"),
)


def render_page(report: Report, *, on_progress: Callable[[int, int], None] | None = None) -> str:
    """The whole page, ready to be written as UTF-8; the same report gives the same text.

    Pictures are read from their paths as they are now: what is gone, or has other bytes than the item's `sha256`, is
    replaced by the reason. The gallery with the key "mistakes" holds the evaluation's mistakes, all of them, the surest
    first: what the report's own gallery of that key says of a picture (neighbours, heat map, note) is taken over.
    `on_progress(done, total)` counts pictures.
    """
    figures = report.figures
    if figures is None and report.evaluation is not None:
        figures = report.evaluation.compute_figures()
    galleries = _collect_galleries(report)
    num_own = len(galleries) - sum(len(section.galleries) for section in report.sections)
    sheet = Gallery("sheet", "Pictures", "", tuple(chain.from_iterable(items for _, _, items in report.sheet)))
    data = _make_data(report, figures, galleries, sheet, on_progress)
    style = read_palette() + _read("page.css")
    # One scope of its own, so that nothing of the page becomes a global name.
    script = '"use strict";\n(() => {\n' + _read("gallery.js") + _read("page.js") + "})();\n"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_show, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = format_percent
    return environment.from_string(_read("page.html.j2")).render(
        report=report,
        figures=figures,
        tiles=_FIGURES,
        pairs=report.evaluation.most_confused(NUM_PAIRS) if report.evaluation else [],
        most_frequent=max(figures["per_class"], key=lambda row: row["n"]) if figures else None,
        galleries=galleries[:num_own],
        section_starts=_number_from(num_own, (section.galleries for section in report.sections)),
        sheet_starts=_number_from(0, (items for _, _, items in report.sheet)),
        faults=_group_problems(report.data) if report.data else [],
        draw=_draw,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash_source(style),
        script_hash=_hash_source(script),
        data=Markup(data),
    )


def _number_from(start: int, groups: Iterable[Sequence[Any]]) -> list[int]:
    """The number of every group's first member, where the members are numbered through from `start`."""
    return list(accumulate(map(len, groups), initial=start))


def _draw(plot: Plot) -> Markup:
    from headstart.plot_svg import render_svg

    return Markup(render_svg(plot, *_PLOT_PX))


def _read(name: str) -> str:
    return files("headstart.report").joinpath(name).read_text("utf-8")


def _hash_source(text: str) -> str:
    """As Content Security Policy level 3, section 2.3.1, names an inline source."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _show(value: Any) -> Any:
    """Every text of the template passes here: nothing that does not print or changes the direction of writing stays."""
    return show_path(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _collect_galleries(report: Report) -> list[Gallery]:
    """The mistakes first, then the report's other galleries, then those of its sections."""
    others = [gallery for gallery in report.galleries if gallery.key != MISTAKES]
    given = next((gallery for gallery in report.galleries if gallery.key == MISTAKES), None)
    if report.evaluation is None:
        mistakes = [given] if given else []
    else:
        start = given or Gallery(
            MISTAKES, "Misidentified pictures", "The surest first: those most likely to carry a wrong label.", ()
        )
        mistakes = [replace(start, items=tuple(_list_mistakes(report.evaluation, start.items)))]
    return [*mistakes, *others, *chain.from_iterable(section.galleries for section in report.sections)]


def _list_mistakes(evaluation: Evaluation, known: Iterable[GalleryItem]) -> Iterator[GalleryItem]:
    told = {(item.path, item.sha256): item for item in known}
    predicted = evaluation.predicted
    for row in evaluation.mistakes().tolist():
        path, sha256, guess = evaluation.paths[row], evaluation.sha256[row], int(predicted[row])
        item = told.get((path, sha256)) or GalleryItem(path, sha256)
        probability = float(evaluation.probs[row, guess])
        yield replace(item, label=int(evaluation.labels[row]), predicted=guess, probability=probability)


def _make_data(
    report: Report,
    figures: dict[str, Any] | None,
    galleries: list[Gallery],
    sheet: Gallery,
    on_progress: Callable[[int, int], None] | None,
) -> str:
    """The JSON that the script reads: class names, counts, galleries, and every distinct picture once."""
    pictures, number_of = _embed_pictures([*galleries, sheet], on_progress)

    def tell(item: GalleryItem) -> dict[str, Any]:
        told = {
            "path": show_path(item.path),
            "key": escape_text(item.path),
            "sha256": item.sha256,
            "picture": number_of[item.path, item.sha256],
            "label": item.label,
            "predicted": item.predicted,
            "percent": None if item.probability is None else format_percent(item.probability),
            "note": show_path(item.note),
            "near": [
                [number_of[near.path, ""], near.label, round(near.similarity, 3), show_path(near.path)]
                for near in item.neighbours
            ],
            "heat": None if item.heat is None else _tell_heat(item.heat, item.heat_box),
        }
        return {name: value for name, value in told.items() if value not in (None, "", [])}

    matrix = figures["confusion_matrix"] if figures else []
    data = {
        "classes": [show_path(name) for name in report.classes],
        "names": [escape_text(name) for name in report.classes],
        "counts": [[i, j, count] for i, row in enumerate(matrix) for j, count in enumerate(row) if count],
        "galleries": [
            {
                "key": each.key,
                "title": show_path(each.title),
                "decides": each.decides,
                "items": list(map(tell, each.items)),
            }
            for each in (*galleries, sheet)
        ],
        "pictures": pictures,
    }
    # "<" would end the element or begin a comment; everything beyond ASCII, lone surrogates too, becomes \\u.
    return json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _embed_pictures(
    galleries: list[Gallery], on_progress: Callable[[int, int], None] | None
) -> tuple[list[Any], dict[tuple[str, str], int]]:
    """[base64 of the thumbnail, width, height, whether exact] or the reason for every picture; (path, SHA-256) to its
    number."""
    items = [item for gallery in galleries for item in gallery.items]
    wanted = {(item.path, item.sha256): Wanted(item.path, item.sha256) for item in items}
    for near in chain.from_iterable(item.neighbours for item in items):
        wanted.setdefault((near.path, ""), Wanted(near.path, is_small=True))
    chosen = list(wanted.values())[:MAX_PICTURES]
    thumbnails = make_thumbnails(chosen, *plan_sides(len(chosen)), on_progress)
    problem = f"not embedded: the page holds {MAX_PICTURES:,} pictures"
    thumbnails += [Thumbnail(b"", problem=problem)] * (len(wanted) - len(chosen))
    distinct: dict[Thumbnail, int] = {}  # equal bytes of files give equal thumbnails
    number_of = {
        key: distinct.setdefault(thumbnail, len(distinct)) for key, thumbnail in zip(wanted, thumbnails, strict=True)
    }
    return [_tell_picture(thumbnail) for thumbnail in distinct], number_of


def _tell_picture(thumbnail: Thumbnail) -> list[Any] | str:
    if thumbnail.problem:
        return show_path(thumbnail.problem)
    code = base64.b64encode(thumbnail.data).decode()
    return [code, thumbnail.width_px, thumbnail.height_px, int(thumbnail.is_exact)]


def _tell_heat(heat: np.ndarray, box: tuple[float, ...]) -> list[Any]:
    """[rows, columns, base64 of one byte a value, box]: 128 is 0, 1 and 255 are the largest amount in the map."""
    values = np.nan_to_num(np.asarray(heat, np.float32), posinf=0, neginf=0)
    largest = float(np.abs(values).max(initial=0)) or 1.0
    code = np.rint(values / largest * 127 + 128).astype(np.uint8).tobytes()
    return [*values.shape, base64.b64encode(code).decode(), [round(float(side), 4) for side in box]]


def _group_problems(data: DataReport) -> list[tuple[str, str, list[tuple[str, list[Any]]]]]:
    """(severity, its title, (code, problems), the most frequent code first), what was left out first."""
    grouped = []
    for severity, title in _SEVERITIES:
        of_kind = [problem for problem in data.all_problems if problem.severity == severity]
        codes = Counter(problem.code for problem in of_kind).most_common()
        if of_kind:
            by_code = [(code, [each for each in of_kind if each.code == code]) for code, _ in codes]
            grouped.append((severity, title, by_code))
    return grouped
