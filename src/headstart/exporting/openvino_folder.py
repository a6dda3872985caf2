"""A folder with the classifier for OpenVINO, and a script that runs it."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import warnings
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import ConfigError, MissingDependencyError
from headstart.exporting.batches import build_batch_model, check_batches, get_preparing
from headstart.exporting.checking import Agreement, get_min_agreement, require_agreement
from headstart.exporting.targets import check_folder_target, write_folder
from headstart.parallel import Progress
from headstart.prediction import Classifier

# On processors with bfloat16 OpenVINO would compute in that, and say something else at times.
_SINGLE_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}
_SCRIPT = '''"""Say what pictures show: python predict.py PICTURE ..."""

import json
import sys
from pathlib import Path

import openvino
from prepare import open_picture, prepare

here = Path(__file__).resolve().parent
settings = json.loads((here / "settings.json").read_text(encoding="utf-8"))
network = openvino.Core().compile_model(here / "classifier.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
for path in sys.argv[1:]:
    probs = network(prepare(open_picture(path), **settings["prepare"])[None])[0][0]
    print(path, settings["labels"][probs.argmax()], f"{probs.max():.4f}", sep="\\t")
'''
_REQUIREMENTS = "numpy\nopenvino\npillow\n"
_README = """A picture classifier for OpenVINO, and a script that runs it.

    pip install -r requirements.txt
    python predict.py picture.jpg ...

classifier.xml and classifier.bin take `pictures`, float32 [N, S, S, 3] from 0 to 255, as the function `prepare` of
prepare.py makes them with the settings in settings.json, and give `probabilities` float32 [N, K] in the order of its
labels. The weights are in single precision; without INFERENCE_PRECISION_HINT=f32 OpenVINO computes in bfloat16 where
the processor has it, and results differ in the third digit.
"""
_NAMES = {"classifier.xml", "classifier.bin", "predict.py", "prepare.py", "settings.json", "requirements.txt"} | {
    "README.txt"
}


def export_openvino(
    classifier: Classifier,
    folder: str | os.PathLike[str],
    pictures: Sequence[str],
    *,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Agreement:
    """Write OpenVINO's .xml and .bin with a script, its requirements and a README into `folder`, whole or not at all.

    The network is that of `build_batch_model`, run by OpenVINO on `pictures` before it is written. Raises
    MissingDependencyError without openvino, ConfigError for a network that takes one picture at a time or a folder that
    holds something else, ExportRefused where the classes differ on more than 0.1 % of the pictures.
    """
    if find_spec("openvino") is None:
        raise MissingDependencyError("--to openvino needs openvino. Install it with: pip install openvino")
    target = Path(folder)
    check_folder_target(target, _NAMES, overwrite)
    model = build_batch_model(classifier)
    progress("converting", 0, 0)
    with tempfile.TemporaryDirectory(prefix="headstart-") as scratch:
        network, contents = _convert(model.SerializeToString(), Path(scratch))
    agreement = check_batches(classifier, _Session(network), pictures, "float32", progress)
    require_agreement(agreement, get_min_agreement(classifier), "The network in OpenVINO")
    settings = {"labels": list(classifier.classes), "prepare": get_preparing(classifier)}
    contents |= {
        "predict.py": _SCRIPT.encode(),
        "prepare.py": (files("headstart.exporting") / "prepare.py").read_bytes(),
        "settings.json": json.dumps(settings, ensure_ascii=False, indent=1).encode(),
        "requirements.txt": _REQUIREMENTS.encode(),
        "README.txt": _README.encode(),
    }
    write_folder(target, contents, overwrite)
    return agreement


def _convert(data: bytes, scratch: Path) -> tuple[Any, dict[str, bytes]]:
    """The network compiled from what is to be written, and the bytes of that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn
        import openvino
    (scratch / "classifier.onnx").write_bytes(data)
    try:
        # Compressed to half precision, its default, weights beyond 65,504 would be infinite.
        openvino.save_model(
            openvino.convert_model(scratch / "classifier.onnx"), scratch / "classifier.xml", compress_to_fp16=False
        )
        contents = {name: (scratch / name).read_bytes() for name in ("classifier.xml", "classifier.bin")}
        core = openvino.Core()
        read = core.read_model(contents["classifier.xml"], contents["classifier.bin"])
        return core.compile_model(read, "CPU", _SINGLE_PRECISION), contents
    except RuntimeError as error:
        raise ConfigError(
            f"OpenVINO {openvino.__version__} cannot take this network: {str(error).strip().splitlines()[-1][:300]}"
        ) from error


class _Session:
    """A compiled network as ONNX Runtime's sessions are called; from several threads, one after the other."""

    def __init__(self, network: Any) -> None:
        self._request = network.create_infer_request()  # requests made and freed in many threads have hung
        self._lock = threading.Lock()

    def run(self, names: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        with self._lock:
            return [np.array(values) for values in self._request.infer(feed).values()]
