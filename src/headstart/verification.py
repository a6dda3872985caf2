"""Hold a classifier file against plain ONNX Runtime: a default session, and no code of ours but the decoding."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart.errors import ImageError
from headstart.pictures import load_picture
from headstart.prediction import Prediction, load


@dataclass(frozen=True)
class Agreement:
    """How far our predictions and the bare file's go together.

    `worst_difference` is the largest absolute difference of a probability; `worst_path` the picture it was seen on.
    `left_out` are pictures that cannot be decoded, for either side.
    """

    num_images: int
    num_same_class: int
    worst_difference: float
    worst_path: str
    left_out: tuple[ImageError, ...]


def verify_classifier(
    path: str | os.PathLike[str],
    pictures: Sequence[str],
    *,
    allow_unsigned: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Agreement:
    """Predict `pictures` by `headstart.load(path).predict` and by a default ONNX Runtime session on the file.

    The second decodes every picture at full scale, the first may read a large JPEG at a reduced one, so this measures
    that too. Raises ArtifactError for the file.
    """
    import onnxruntime

    classifier = load(path, allow_unsigned=allow_unsigned)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Its bytes, because ONNX Runtime opens only paths that are UTF-8.
    session = onnxruntime.InferenceSession(Path(path).read_bytes(), options, providers=["CPUExecutionProvider"])
    num_images = num_same = 0
    worst, worst_path = 0.0, ""
    left_out = []
    for done, (picture, outcome) in enumerate(zip(pictures, classifier.predict_each(pictures), strict=True), start=1):
        if isinstance(outcome, Prediction):
            probs = session.run(None, {"image": load_picture(picture).pixels})[0]
            difference = float(np.abs(probs - outcome.probs).max())
            num_images += 1
            num_same += int(probs.argmax() == outcome.probs.argmax())
            if difference >= worst:
                worst, worst_path = difference, picture
        else:
            left_out.append(outcome)
        if on_progress:
            on_progress(done, len(pictures))
    return Agreement(num_images, num_same, worst, worst_path, tuple(left_out))
