"""The galleries of an evaluation: what it got wrong, with what spoke for it, and what it was least sure of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from headstart.errors import ConfigError, ImageError
from headstart.evaluation import Evaluation
from headstart.heat_maps import Explainer
from headstart.parallel import Progress, count_cpus, map_bounded
from headstart.prediction import Classifier
from headstart.report.content import Gallery, GalleryItem, Neighbour
from headstart.report.page import MISTAKES

MAX_EXPLAINED = 300
"""Mistakes with heat map and neighbours; a network runs once for each."""
_NUM_UNSURE = 60


def explain_mistakes(
    classifier: Classifier, evaluation: Evaluation, near: Mapping[str, tuple[Neighbour, ...]], progress: Progress
) -> Gallery:
    """The mistakes, the surest first, with what spoke for the wrong class; `near` holds neighbours by SHA-256."""
    rows = evaluation.mistakes()[:MAX_EXPLAINED].tolist()
    items = []
    explainer = _open_explainer(classifier) if rows else None
    predicted = evaluation.predicted

    def explain(row: int) -> GalleryItem:
        item = GalleryItem(evaluation.paths[row], evaluation.sha256[row])
        item = replace(item, neighbours=near.get(item.sha256, ()))
        if explainer is None:
            return item
        try:
            heat = explainer.explain(item.path, int(predicted[row]))
        except ImageError:  # gone or changed since: the page says so in the picture's place
            return item
        return replace(item, heat=heat.smoothed, heat_box=heat.box)

    for done, (_, item) in enumerate(map_bounded(explain, rows, count_cpus()), start=1):
        items.append(item)
        progress("explaining mistakes", done, len(rows))
    intro = "The surest first: those most likely to carry a wrong label."
    if near:
        intro += " Beside each stand the training pictures that lie nearest to it for the network."
    return Gallery(MISTAKES, "Misidentified pictures", intro, tuple(items))


def _open_explainer(classifier: Classifier) -> Explainer | None:
    try:
        return Explainer(classifier.data)
    except ConfigError:  # a foreign file does not say where its maps are
        return None


def list_unsure(evaluation: Evaluation) -> Gallery:
    """Right answers, the least sure first."""
    confidence = evaluation.probs.max(axis=1)
    right = np.flatnonzero(evaluation.correct)
    rows = right[np.argsort(confidence[right], kind="stable")][:_NUM_UNSURE].tolist()
    items = tuple(
        GalleryItem(
            evaluation.paths[row],
            evaluation.sha256[row],
            int(evaluation.labels[row]),
            int(evaluation.predicted[row]),
            float(confidence[row]),
        )
        for row in rows
    )
    return Gallery("unsure", "Right, but least sure", "The next mistakes will look like these.", items)
