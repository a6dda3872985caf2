"""Small real ONNX classifiers with the signature of a classifier file, for tests of everything that opens one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headstart.artifact import ArtifactMetadata

INPUT_SIZE_PX = 8


def make_tiny_classifier(classes: Sequence[str], seed: int = 0) -> onnx.ModelProto:
    """`image` uint8 [H, W, 3] to `probabilities` float32 [K]; random weights from `seed`, under 4 kB."""
    rng = np.random.default_rng(seed)
    num_classes = len(classes)

    def constant(name: str, values: np.ndarray) -> TensorProto:
        return numpy_helper.from_array(np.ascontiguousarray(values), name)

    nodes = [
        helper.make_node("Cast", ["image"], ["image_float"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["image_float"], ["chw"], name="to_chw", perm=[2, 0, 1]),
        helper.make_node("Unsqueeze", ["chw", "batch_axis"], ["nchw"], name="add_batch"),
        helper.make_node(
            "Resize",
            ["nchw", "", "", "sizes"],
            ["resized"],
            name="resize",
            mode="cubic",
            antialias=1,
            coordinate_transformation_mode="half_pixel",
        ),
        helper.make_node("Conv", ["resized", "conv_weight"], ["conv_out"], name="conv", kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["conv_out"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["features"], name="flatten"),
        helper.make_node("Gemm", ["features", "head_weight", "head_bias"], ["logits"], name="head"),
        helper.make_node("Softmax", ["logits"], ["probabilities_batch"], name="softmax", axis=1),
        helper.make_node("Squeeze", ["probabilities_batch", "batch_axis"], ["probabilities"], name="drop_batch"),
    ]
    initializers = [
        constant("batch_axis", np.array([0], np.int64)),
        constant("sizes", np.array([1, 3, INPUT_SIZE_PX, INPUT_SIZE_PX], np.int64)),
        constant("conv_weight", rng.normal(0, 0.0005, (8, 3, 3, 3)).astype(np.float32)),
        constant("head_weight", rng.normal(0, 0.5, (8, num_classes)).astype(np.float32)),
        constant("head_bias", np.zeros(num_classes, np.float32)),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_classifier",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["H", "W", 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [num_classes])],
        initializers,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="headstart"
    )


def add_tiny_familiarity(model: onnx.ModelProto) -> None:
    """A second output that stays between 0 and 1, from the same features."""
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["features"], ["level"], name="level", keepdims=0),
            helper.make_node("Sigmoid", ["level"], ["share"], name="share"),
            helper.make_node("Reshape", ["share", "one"], ["familiarity"], name="shape_familiarity"),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    model.graph.output.append(helper.make_tensor_value_info("familiarity", TensorProto.FLOAT, [1]))


TINY_FAMILIARITY = {
    "layer": ["pooled", 1],
    "num_components": 2,
    "num_images": 8,
    "shares": [0.7, 0.5],
    "distances": [0.1, 0.2],
    "tail_width": 0.05,
}


def make_tiny_metadata(classes: Sequence[str]) -> ArtifactMetadata:
    """Metadata that fits `make_tiny_classifier(classes)`."""
    return ArtifactMetadata(
        labels=tuple(classes),
        preprocess={
            "input_size_px": INPUT_SIZE_PX,
            "crop_frac": 1.0,
            "interpolation": "cubic",
            "mean": [0.0, 0.0, 0.0],
            "std": [1.0, 1.0, 1.0],
            "exif": "applied",
            "alpha": "white",
            "decoder_version": 1,
        },
        backbone={"name": "tiny", "sha256": "0" * 64, "licence": "Apache-2.0", "source": "tests/tiny_models.py"},
        head={"layers": [["pooled", 1]], "penalty": 1.0, "temperature": 1.0},
        settings={"seed": 0},
        data={"fingerprint": "0" * 64, "num_train": 8, "num_test": 4, "class_counts": dict.fromkeys(classes, 4)},
        evaluation={"accuracy": {"value": 0.75, "low": 0.3, "high": 0.95, "n": 4}},
        created_with="headstart 0.1.0",
    )
