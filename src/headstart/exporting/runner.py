"""A folder with the classifier and a script of ten lines that needs ONNX Runtime, NumPy and Pillow alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from headstart.execution import open_session
from headstart.exporting.checking import (
    Agreement,
    compare_probs,
    get_min_agreement,
    pick_evenly,
    predict_by_both,
    require_agreement,
)
from headstart.exporting.predict_script import classify
from headstart.exporting.targets import check_folder_target, write_folder
from headstart.parallel import Progress
from headstart.prediction import Classifier

_REQUIREMENTS = "numpy\nonnxruntime\npillow\n"
_README = """A picture classifier in one ONNX file, and a script that runs it.

    pip install -r requirements.txt
    python predict.py picture.jpg ...

Each line is the picture, its most probable class and the probability of that, with tabs between them.
classifier.onnx takes an RGB picture of any size, uint8 [H, W, 3], as `image`, and gives `probabilities` float32 [K] in
the order of the labels, which are in its metadata as headstart.labels. Pictures of 16 bits a channel: scale them to 8
bits first.
"""
_NAMES = {"classifier.onnx", "predict.py", "requirements.txt", "README.txt"}


def export_runner(
    classifier: Classifier,
    folder: str | os.PathLike[str],
    pictures: Sequence[str],
    *,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Agreement:
    """Write the classifier file, the script, its requirements and a README into `folder`, whole or not at all.

    The script's own function is first run on `pictures` in a default session. Raises ExportRefused where the classes
    differ on more than 0.1 % of them, ConfigError where the folder holds something else.
    """
    target = Path(folder)
    check_folder_target(target, _NAMES, overwrite)
    session = open_session(classifier.data)
    expected, found, _, left_out = predict_by_both(
        classifier, lambda path, pixels: classify(session, path), pick_evenly(pictures), progress
    )
    agreement = compare_probs(expected, found, left_out)
    require_agreement(agreement, get_min_agreement(classifier), "The script")
    contents = {
        "classifier.onnx": classifier.data,
        "predict.py": (files("headstart.exporting") / "predict_script.py").read_bytes(),
        "requirements.txt": _REQUIREMENTS.encode(),
        "README.txt": _README.encode(),
    }
    write_folder(target, contents, overwrite)
    return agreement
