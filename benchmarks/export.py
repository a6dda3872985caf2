"""Every form of `headstart export`: agreement with the classifier on its test pictures, sizes, and time a picture.

    python benchmarks/export.py cats_dogs.onnx DATA/cats_dogs cifar10.onnx DATA/cifar10

Pairs of a classifier and the pictures of its training. Times are of the processor in one thread, decoding left out,
forms taken in turn picture by picture, medians. The 8 bits of onnxruntime.quantization stand beside ours. The JSON goes
to standard output, the table for the documentation to standard error.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from measure import list_versions, make_parser, report, round_figure, work_folder
from PIL import Image

import headstart
from headstart.dataset import scan_dataset
from headstart.errors import HeadstartError
from headstart.execution import open_session
from headstart.exporting.batches import build_batch_model, export_batches, get_preparing
from headstart.exporting.checking import compare_probs, pick_evenly, predict_by_both
from headstart.exporting.int8 import NUM_CALIBRATION, export_int8
from headstart.exporting.prepare import prepare
from headstart.exporting.quantization import count_convs
from headstart.exporting.runner import export_runner
from headstart.pictures import load_picture
from headstart.preparation import prepare_dataset, read_settings

_TIMED = 100
_BATCH = 16


def main() -> None:
    parser = make_parser(__doc__, repeats=None)
    parser.add_argument("pairs", nargs="+", metavar="MODEL PICTURES", help="classifiers, each with its pictures")
    parser.add_argument("--most", type=int, default=1000, help="test pictures to compare on (default 1000)")
    given = parser.parse_args()
    if len(given.pairs) % 2:
        parser.error("give pairs: MODEL PICTURES ...")
    results = {}
    with work_folder() as folder:
        for model, source in zip(given.pairs[::2], given.pairs[1::2], strict=True):
            place = folder / Path(source).name
            place.mkdir()
            results[place.name] = measure_one(headstart.load(model), source, place, given.most)
    report({"openvino": list_versions("openvino")["openvino"], "collections": results})
    for name, rows in results.items():
        print_table(name, rows)


def measure_one(classifier: headstart.Classifier, source: str, folder: Path, most: int) -> dict[str, Any]:
    divided = prepare_dataset(scan_dataset(source), read_settings(classifier.metadata), quiet)
    records = [record for record in divided.records if record.split in ("test", "validation")]
    paths = pick_evenly([record.path for record in records], most)
    training = pick_evenly([record.path for record in divided.records if record.split == "train"], NUM_CALIBRATION)
    rows: dict[str, Any] = {"classifier file": {"bytes": len(classifier.data)}}
    runs: dict[str, Callable[[np.ndarray], Any]] = {"classifier file": classifier.run}

    def try_form(form: str, export: Callable[[Path], Any], suffix: str) -> Path | None:
        target = folder / f"{form.replace(' ', '-')}{suffix}"
        try:
            done = export(target)
        except HeadstartError as error:
            rows[form] = {"refused": str(error)}
            return None
        agreement = getattr(done, "agreement", done)
        files = [target] if target.is_file() else [path for path in target.iterdir() if path.suffix != ".txt"]
        rows[form] = describe(agreement) | {"bytes": sum(path.stat().st_size for path in files)}
        if hasattr(done, "accuracies"):
            before, after = done.accuracies
            rows[form] |= {
                "accuracy_before": before,
                "accuracy_after": after,
                "loss_interval": list(done.loss_interval),
                "p_value": done.p_value,
                "num_exact": done.num_exact,
                "num_convs": done.num_convs,
            }
        return target

    if file := try_form("int8", lambda path: export_int8(classifier, path, scan_dataset(source)), ".onnx"):
        runs["int8"] = headstart.load(file).run
    try_form("runner", lambda path: export_runner(classifier, path, paths), "")
    for kind in ("float32", "uint8"):
        try_form(
            f"onnx {kind}", lambda path, kind=kind: export_batches(classifier, path, paths, input_type=kind), ".onnx"
        )
    try_form("openvino", lambda path: export_openvino(classifier, path, paths), "")
    theirs = quantize_by_onnxruntime(classifier, training, folder)
    expected, found, _, _ = predict_by_both(
        classifier, lambda path, pixels: theirs.run(["probabilities"], {"image": pixels})[0], paths, quiet
    )
    name = "onnxruntime.quantization"
    rows[name] = describe(compare_probs(expected, found)) | {"bytes": (folder / "theirs.onnx").stat().st_size}
    runs[name] = lambda pixels: theirs.run(None, {"image": pixels})
    time_runs(classifier, paths[:_TIMED], runs, rows)
    return rows


def export_openvino(classifier: headstart.Classifier, path: Path, paths: list[str]) -> Any:
    from headstart.exporting.openvino_folder import export_openvino as export

    return export(classifier, path, paths)


def describe(agreement: Any) -> dict[str, Any]:
    return {
        "num_checked": agreement.num_checked,
        "num_same_class": agreement.num_same_class,
        "worst_difference": round_figure(agreement.worst_difference, 3),
        "mean_difference": round_figure(agreement.mean_difference, 3),
    }


def quantize_by_onnxruntime(classifier: headstart.Classifier, paths: list[str], folder: Path) -> Any:
    """Its static quantisation with a scale for each channel, as many convolutions left in floats as ours."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Pictures(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(paths)

        def get_next(self) -> dict[str, np.ndarray] | None:
            path = next(self.left, None)
            return None if path is None else {"image": load_picture(path).pixels}

    model = onnx.load_model_from_string(classifier.data)
    for number, node in enumerate(model.graph.node):
        node.name = f"node{number}"
    convs = [node.name for node in model.graph.node if node.op_type == "Conv"]
    onnx.save(model, folder / "named.onnx")
    quantize_static(
        folder / "named.onnx",
        folder / "theirs.onnx",
        Pictures(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Add", "Clip"],
        nodes_to_exclude=convs[: round(0.1 * count_convs(model))],
    )
    return open_session((folder / "theirs.onnx").read_bytes())


def time_runs(
    classifier: headstart.Classifier,
    paths: list[str],
    runs: dict[str, Callable[[np.ndarray], Any]],
    rows: dict[str, Any],
) -> None:
    side = classifier.metadata.preprocess["input_size_px"]
    facts = get_preparing(classifier)
    batch = open_session(build_batch_model(classifier).SerializeToString())
    found: dict[str, list[float]] = {}

    def clock(name: str, function: Callable[[], Any], count: int = 1) -> None:
        began = time.process_time()
        function()
        found.setdefault(name, []).append((time.process_time() - began) / count)

    prepared = []
    for path in paths:
        pixels = load_picture(path, None, 2 * side).pixels
        for name, run in runs.items():
            clock(name, lambda run=run, pixels=pixels: run(pixels))
        clock("prepare", lambda pixels=pixels: prepared.append(prepare(Image.fromarray(pixels), **facts)))
        clock("onnx float32", lambda: batch.run(None, {"pictures": prepared[-1][None]}))
    for start in range(0, len(prepared) - _BATCH + 1, _BATCH):
        rows_of_many = np.stack(prepared[start : start + _BATCH])
        clock(
            f"onnx float32, {_BATCH} at a time", lambda part=rows_of_many: batch.run(None, {"pictures": part}), _BATCH
        )
    for name, seconds in found.items():
        rows.setdefault(name, {})["cpu_ms"] = round_figure(1000 * statistics.median(seconds), 3)


def print_table(name: str, rows: dict[str, Any]) -> None:
    print(
        f"\n{name}\n\n| form | same class | largest difference | MB | ms a picture |\n| --- | --- | --- | --- | --- |",
        file=sys.stderr,
    )
    for form, row in rows.items():
        same = (
            f"{row['num_same_class']} of {row['num_checked']}" if "num_checked" in row else row.get("refused", "")[:40]
        )
        size = f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else ""
        print(
            f"| {form} | {same} | {row.get('worst_difference', '')} | {size} | {row.get('cpu_ms', '')} |",
            file=sys.stderr,
        )


def quiet(stage: str, done: int, total: int) -> None:
    pass


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
