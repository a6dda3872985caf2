"""What an evaluation shows: reliability, what is gained by asking a person, and itself in a notebook."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart import metrics
from headstart.metrics import FloatArray, IntArray
from headstart.plot_axes import shorten
from headstart.plot_svg import render_svg
from headstart.plots import Line, Mark, Plot
from headstart.stats import format_percent, wilson_interval

if TYPE_CHECKING:
    from headstart.evaluation import Evaluation

_NUM_STEPS, _FEWEST_KEPT = 100, 30  # of the share that is kept
_MAX_MATRIX, _MAX_ROWS, _MAX_NAME_CHARS = 20, 20, 40
_CELL = "padding:2px 8px;text-align:right"


def describe_reliability(evaluation: Evaluation, figures: dict[str, Any] | None = None) -> Plot:
    """Accuracy against stated probability in bins (Guo et al. 2017), with Wilson intervals and the share in each bin.

    The title states the expected calibration error with its interval, from `figures`, which are
    `evaluation.compute_figures()` where they are known already.
    """
    bins = metrics.compute_reliability_bins(evaluation.labels, evaluation.probs)
    total = int(bins.num_images.sum())
    filled = np.flatnonzero(bins.num_images)
    hits = np.rint(bins.accuracy[filled] * bins.num_images[filled]).astype(int)
    ends = [wilson_interval(int(hit), int(n)) for hit, n in zip(hits, bins.num_images[filled], strict=True)]
    centres = (bins.edges[:-1] + bins.edges[1:]) / 2
    figures = figures or evaluation.compute_figures()
    shown = [format_percent(figures["ece"][key]) for key in ("value", "low", "high")]
    by_chance = format_percent(figures["ece_if_calibrated"]["high"])
    return Plot(
        title=f"Reliability: calibration error (ECE) {shown[0]} % ({shown[1]} to {shown[2]}), "
        f"by chance alone up to {by_chance} %",
        x_label="stated probability",
        y_label="share",
        lines=(
            Line("of all pictures", _to_floats(centres), _to_floats(bins.num_images / total), style="bars"),
            Line(
                "right among those so sure",
                _to_floats(bins.confidence[filled]),
                _to_floats(bins.accuracy[filled]),
                tuple(low for low, _ in ends),
                tuple(high for _, high in ends),
                style="points",
                texts=tuple(f"{n:,}" for n in bins.num_images[filled]),
                band_name="95 % interval",
            ),
        ),
        marks=(Mark("diagonal", "as sure as right"),),
        x_is_percent=True,
        y_is_percent=True,
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
    )


def describe_confidence(evaluation: Evaluation) -> Plot:
    """The accuracy on the pictures that are kept when the least sure are handed to a person, with Wilson intervals.

    Pictures are ranked by the probability of the predicted class; those that share a probability stay together. Fewer
    than a tenth of the pictures, or than 30, say too little to be drawn.
    """
    confidence = evaluation.probs.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    hits = np.cumsum(evaluation.correct[order])
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1) + 1  # how many a threshold can keep
    fewest = min(len(ranked), max(len(ranked) / 10, _FEWEST_KEPT))
    wanted = np.linspace(fewest, len(ranked), _NUM_STEPS)
    kept = np.unique(ends[np.searchsorted(ends, wanted)])
    low, high = zip(*(wilson_interval(int(hits[n - 1]), int(n)) for n in kept), strict=True)
    return Plot(
        title="Accuracy when the least sure pictures go to a person",
        x_label="pictures left to the classifier",
        y_label="accuracy on them",
        lines=(
            Line(
                "accuracy",
                _to_floats(kept / len(ranked)),
                _to_floats(hits[kept - 1] / kept),
                low,
                high,
                band_name="95 % interval",
            ),
        ),
        x_is_percent=True,
        y_is_percent=True,
    )


def _to_floats(values: FloatArray) -> tuple[float, ...]:
    return tuple(map(float, values))


def render_evaluation(evaluation: Evaluation) -> str:
    """A self-contained piece of HTML for notebooks: accuracy, confusion matrix, recalls, reliability.

    Up to 20 classes show their matrix; beyond that, the 20 most confused pairs and the 20 lowest recalls. Names are
    escaped.
    """
    num_images, num_classes = evaluation.probs.shape
    counts = metrics.compute_confusion_matrix(evaluation.labels, evaluation.predicted, num_classes)
    right = int(counts.diagonal().sum())
    tables = (
        _render_matrix(evaluation.classes, counts) if num_classes <= _MAX_MATRIX else _render_worst(evaluation, counts)
    )
    return (
        '<div style="font-family:system-ui,sans-serif;font-size:13px;line-height:1.4">'
        f'<p style="margin:4px 0 10px"><b style="font-size:16px">Accuracy {_say_share(right, num_images)}</b><br>'
        f"{right:,} of {num_images:,} pictures right, {num_classes:,} classes; in brackets 95 % intervals</p>"
        f'<div style="display:flex;flex-wrap:wrap;gap:24px;align-items:flex-start">{tables}'
        f'<div style="flex:1 1 320px;max-width:480px">{render_svg(describe_reliability(evaluation), 480, 340)}</div>'
        "</div></div>"
    )


def _render_matrix(classes: Sequence[str], counts: IntArray) -> str:
    """Rows are labels, columns predictions, then the recall; what is right is blue, what is wrong is orange."""
    names = [_say_name(name) for name in classes]
    heads = ("labelled \\ predicted", *names, "recall")
    rows = []
    for k, name in enumerate(names):
        total = int(counts[k].sum())
        cells = [f'<th style="{_CELL};text-align:left">{name}</th>']
        for j, count in enumerate(counts[k].tolist()):
            color = "66,105,208" if j == k else "213,94,0"
            alpha = 0.1 + 0.5 * math.sqrt(count / total) if count else 0
            cells.append(f'<td style="{_CELL};background:rgba({color},{alpha:.2f})">{count:,}</td>' if count else _ZERO)
        cells.append(f'<td style="{_CELL};white-space:nowrap">{_say_share(int(counts[k, k]), total)}</td>')
        rows.append("".join(cells))
    return _render_table(heads, rows)


_ZERO = f'<td style="{_CELL};opacity:.4">0</td>'


def _render_worst(evaluation: Evaluation, counts: IntArray) -> str:
    names = [_say_name(name) for name in evaluation.classes]
    totals = counts.sum(axis=1)
    pairs = [
        _render_cells(names[pair.true], names[pair.predicted], f"{pair.count:,} of {totals[pair.true]:,}")
        for pair in evaluation.most_confused(_MAX_ROWS)
    ]
    known = [k for k in range(len(names)) if totals[k]]
    known.sort(key=lambda k: counts[k, k] / totals[k])
    recalls = [
        _render_cells(names[k], _say_share(int(counts[k, k]), int(totals[k])), f"{totals[k]:,}")
        for k in known[:_MAX_ROWS]
    ]
    return _render_table(("labelled", "taken for", "pictures"), pairs) + _render_table(
        ("lowest recalls", "recall", "pictures"), recalls
    )


def _render_cells(first: str, *others: str) -> str:
    return f'<th style="{_CELL};text-align:left">{first}</th>' + "".join(
        f'<td style="{_CELL}">{other}</td>' for other in others
    )


def _render_table(heads: Iterable[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th style="{_CELL}">{text}</th>' for text in heads)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        '<div style="overflow-x:auto;max-width:100%"><table style="border-collapse:collapse;font-size:12px">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _say_share(part: int, whole: int) -> str:
    if whole == 0:
        return "-"
    low, high = wilson_interval(part, whole)
    return f"{format_percent(part / whole)} % ({format_percent(low)} to {format_percent(high)})"


def _say_name(name: str) -> str:
    return escape(shorten(name, _MAX_NAME_CHARS))
