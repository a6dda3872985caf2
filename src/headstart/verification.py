"""Hold a classifier file against plain ONNX Runtime: a default session, and no code of ours but the decoding."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart.errors import ImageError
from headstart.parallel import count_cpus
from headstart.pictures import load_picture
from headstart.prediction import Prediction, load


@dataclass(frozen=True)
class Agreement:
    """How far our predictions and the bare file's go together.

    `worst_difference` is the largest absolute difference of a probability, or of the familiarity, between the two on
    the same pixels, and `worst_path` the picture it was seen on. Of the pictures, `num_reduced` are large JPEGs that we
    decode at a reduced scale; `worst_reduced` is the largest difference of a probability there to the bare file on
    full-scale pixels. `left_out` are pictures that cannot be decoded.
    """

    num_images: int
    num_same_class: int
    worst_difference: float
    worst_path: str
    num_reduced: int
    worst_reduced: float
    left_out: tuple[ImageError, ...]


def verify_classifier(
    path: str | os.PathLike[str],
    pictures: Sequence[str],
    *,
    allow_unsigned: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Agreement:
    """Predict `pictures` by `headstart.load(path).predict` and by a default ONNX Runtime session on the file.

    The classes are compared at full scale, as anybody else would decode. Raises ArtifactError for the file.
    """
    from headstart.execution import open_session

    classifier = load(path, allow_unsigned=allow_unsigned)
    # Its bytes, because ONNX Runtime opens only paths that are UTF-8.
    session = open_session(Path(path).read_bytes(), num_threads=count_cpus())
    size = classifier.metadata.preprocess.get("input_size_px")
    num_images = num_same = num_reduced = 0
    worst, worst_path, worst_reduced = 0.0, "", 0.0
    left_out = []
    for done, (picture, outcome) in enumerate(zip(pictures, classifier.predict_each(pictures), strict=True), start=1):
        if isinstance(outcome, Prediction):
            decoded = load_picture(picture, None, 2 * size if size else None)
            bare, *others = session.run(None, {"image": decoded.pixels})
            difference = float(np.abs(bare - outcome.probs).max())
            if outcome.familiarity is not None:
                difference = max(difference, abs(float(others[0][0]) - outcome.familiarity))
            if difference >= worst:
                worst, worst_path = difference, picture
            if max(decoded.pixels.shape) < max(decoded.facts.width_px, decoded.facts.height_px):
                bare = session.run(None, {"image": load_picture(picture).pixels})[0]
                num_reduced += 1
                worst_reduced = max(worst_reduced, float(np.abs(bare - outcome.probs).max()))
            num_images += 1
            num_same += int(bare.argmax() == outcome.probs.argmax())
        else:
            left_out.append(outcome)
        if on_progress:
            on_progress(done, len(pictures))
    return Agreement(num_images, num_same, worst, worst_path, num_reduced, worst_reduced, tuple(left_out))
