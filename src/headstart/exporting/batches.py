"""The classifier as a bare ONNX graph for several prepared pictures at a time, for runtimes that want fixed sides."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from headstart._files import write_atomic
from headstart.errors import ConfigError
from headstart.execution import open_session
from headstart.exporting.checking import (
    Agreement,
    compare_probs,
    get_min_agreement,
    pick_evenly,
    predict_by_both,
    require_agreement,
)
from headstart.exporting.prepare import prepare
from headstart.exporting.targets import check_file_target
from headstart.fixed_shapes import split_graph
from headstart.graph import IR_VERSION, OPSET, PROBABILITIES
from headstart.parallel import Progress
from headstart.prediction import Classifier

PICTURES = "pictures"
_BATCH = "N"
_MAX_COMPANY_DIFFERENCE = 1e-3
PREPARING_KEYS = ("input_size_px", "crop_frac", "crop", "interpolation")


def export_batches(
    classifier: Classifier,
    path: str | os.PathLike[str],
    pictures: Sequence[str],
    *,
    input_type: Literal["float32", "uint8"] = "float32",
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Agreement:
    """Write an ONNX file from `pictures` [N, S, S, 3], 0 .. 255, to `probabilities` float32 [N, K], N at will.

    The caller cuts and resizes, as `prepare` does; the rest is in the graph. Before it is written, the graph runs on
    `pictures`, prepared so, and is compared with the classifier; several at a time must give what each gives alone.
    Raises ConfigError for a network that takes one picture at a time, ExportRefused where the classes differ on more
    than 0.1 % of the pictures.
    """
    target = Path(path)
    check_file_target(target, ".onnx", overwrite)
    data = build_batch_model(classifier, input_type).SerializeToString()
    agreement = check_batches(classifier, open_session(data), pictures, input_type, progress)
    advice = " Rounding costs small pictures that are enlarged: use float32." if input_type == "uint8" else ""
    require_agreement(agreement, get_min_agreement(classifier), f"The ONNX file for {input_type} pictures", advice)
    write_atomic(target, data)
    return agreement


def check_batches(
    classifier: Classifier, session: Any, pictures: Sequence[str], input_type: str, progress: Progress
) -> Agreement:
    """A session of `build_batch_model` against the classifier. Raises ConfigError where company changes a result."""
    facts = get_preparing(classifier)
    kept: list[tuple[np.ndarray, np.ndarray]] = []

    def run(path: str, pixels: np.ndarray) -> np.ndarray:
        row = prepare(Image.fromarray(pixels), **facts)
        row = row.round().astype(np.uint8) if input_type == "uint8" else row
        probs = session.run(None, {PICTURES: row[None]})[0][0]
        if len(kept) < 3:
            kept.append((row, probs))
        return np.asarray(probs)

    expected, found, _, left_out = predict_by_both(classifier, run, pick_evenly(pictures), progress)
    together, alone = (np.stack(values) for values in zip(*kept, strict=True))
    if not np.abs(session.run(None, {PICTURES: together})[0] - alone).max() < _MAX_COMPANY_DIFFERENCE:
        raise ConfigError(_say_single())
    return compare_probs(expected, found, left_out)


def get_preparing(classifier: Classifier) -> dict[str, Any]:
    """The arguments of `prepare`, in its order."""
    spec = {"crop": "centre", **classifier.metadata.preprocess}
    size, crop_frac, crop, interpolation = (spec[key] for key in PREPARING_KEYS)
    return {"size": size, "crop_frac": crop_frac, "crop": crop, "interpolation": interpolation}


def build_batch_model(classifier: Classifier, input_type: Literal["float32", "uint8"] = "float32") -> onnx.ModelProto:
    """The network and head for `pictures` [N, S, S, 3]. Labels and what `prepare` needs are in its metadata as JSON.

    The familiarity is left out: it compares one picture with all classes. Raises ConfigError for a network that takes
    one picture at a time.
    """
    if input_type not in ("uint8", "float32"):
        raise ConfigError(f"The input type is {input_type!r}. Expected float32 or uint8.")
    spec = classifier.metadata.preprocess
    size = spec["input_size_px"]
    try:
        network = onnx.load_model_from_string(_cut_to_probs(split_graph(classifier.data, size)[1]))
    except RuntimeError as error:
        raise ConfigError(f"This classifier cannot be exported for several pictures: {error}.") from error
    source = network.graph.input[0].name
    std = np.array(spec["std"], np.float64)
    scale = (1 / (255 * std)).astype(np.float32).reshape(1, 3, 1, 1)
    shift = (-np.array(spec["mean"]) / std).astype(np.float32).reshape(1, 3, 1, 1)
    before = [
        helper.make_node("Transpose", [PICTURES], ["pictures_planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["pictures_planes"], ["pictures_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pictures_float", "pictures_scale"], ["pictures_scaled"]),
        helper.make_node("Add", ["pictures_scaled", "pictures_shift"], [source]),
    ]
    constants = [
        numpy_helper.from_array(values, name) for values, name in ((scale, "pictures_scale"), (shift, "pictures_shift"))
    ]
    nodes, reshaped = _free_batch(network.graph)
    used = {name for node in nodes for name in node.input}  # ONNX Runtime warns of what nobody takes any more
    kind = TensorProto.UINT8 if input_type == "uint8" else TensorProto.FLOAT
    graph = helper.make_graph(
        [*before, *nodes],
        "headstart",
        [helper.make_tensor_value_info(PICTURES, kind, [_BATCH, size, size, 3])],
        [helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, [_BATCH, len(classifier.classes)])],
        [*(each for each in network.graph.initializer if each.name in used), *constants, *reshaped],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="headstart"
    )
    helper.set_model_props(
        model,
        {
            "labels": json.dumps(list(classifier.classes), ensure_ascii=False),
            "prepare": json.dumps(get_preparing(classifier)),
            "made_from_sha256": classifier.sha256,
        },
    )
    _check_runs(model, size, input_type)
    return model


def _cut_to_probs(data: bytes) -> bytes:
    """Without the familiarity, and without the node that takes the picture's axis off the probabilities."""
    model = onnx.load_model_from_string(data)
    network = onnx.utils.Extractor(model).extract_model([model.graph.input[0].name], [PROBABILITIES])
    last = next(node for node in network.graph.node if PROBABILITIES in node.output)
    if last.op_type != "Squeeze":
        raise RuntimeError("its probabilities are not those of one picture among several")
    inner = last.input[0]
    network.graph.node.remove(last)
    for node in network.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == inner:
                    names[place] = PROBABILITIES
    return bytes(network.SerializeToString())


def _free_batch(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes whose constant shapes leave the first side open, and these shapes.

    The picture is the outermost side of every tensor, so the first side of a shape is a multiple of their number.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes, shapes = [], []
    for number, node in enumerate(graph.node):
        if node.op_type == "Reshape" and node.input[1] in constants:
            shape = numpy_helper.to_array(constants[node.input[1]]).copy()
            if len(shape) and shape[0] > 0:
                shape[0] = 0 if -1 in shape else -1  # 0 takes over the input's first side
                node.input[1] = f"batch_shape_{number}"
                shapes.append(numpy_helper.from_array(shape, node.input[1]))
        nodes.append(node)
    return nodes, shapes


def _check_runs(model: onnx.ModelProto, size: int, input_type: str) -> None:
    try:
        onnx.checker.check_model(model)
        probes = np.random.default_rng(0).integers(0, 256, (3, size, size, 3)).astype(input_type)
        session = open_session(model.SerializeToString())
        together = session.run(None, {PICTURES: probes})[0]
        alone = np.concatenate([session.run(None, {PICTURES: probe[None]})[0] for probe in probes])
    except Exception as error:  # ONNX Runtime's own classes share no base
        raise ConfigError(_say_single()) from error
    if together.shape != alone.shape or not np.abs(together - alone).max() < _MAX_COMPANY_DIFFERENCE:
        raise ConfigError(_say_single())


def _say_single() -> str:
    return (
        "This network takes one picture at a time, as those with a class token do, so there is no graph for several. "
        "The classifier file itself runs in any ONNX Runtime (docs/exporting.md); --to runner writes what is needed."
    )
