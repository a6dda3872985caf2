"""The built-in networks in 8 bits: near the float ones, the same on every processor, sound as classifier files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import write_shapes
from drawn_pictures import draw_picture
from onnx import numpy_helper
from tiny_models import make_tiny_metadata

import headstart
from headstart.artifact import build_artifact, create_session, parse_artifact
from headstart.backbones.catalog import Backbone
from headstart.backbones.efficientnet_lite_int8 import _compute_clipped_mean, find_scales
from headstart.backbones.loading import load_backbone
from headstart.errors import ArtifactError
from headstart.features import Extractor
from headstart.graph import IMAGE, PooledLayer
from headstart.heads.linear import LinearHead, build_classifier

NAME = "efficientnet-lite0-int8"
SIDE = 96
LAST = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
NONE = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


@pytest.fixture(scope="module")
def int8() -> Backbone:
    return load_backbone(NAME, SIDE)


def open_session(
    model: onnx.ModelProto, level: onnxruntime.GraphOptimizationLevel = LAST
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_layers(session: onnxruntime.InferenceSession) -> list[np.ndarray]:
    """Of each layer, the channels' means over 24 pictures, float64 (24, C)."""
    runs = [
        session.run(None, {IMAGE: draw_picture(("circles", "stripes", "checks")[seed % 3], seed)}) for seed in range(24)
    ]
    return [
        np.stack([maps.mean(axis=(2, 3), dtype=np.float64)[0] for maps in layer]) for layer in zip(*runs, strict=True)
    ]


def compute_share_kept(found: np.ndarray, expected: np.ndarray) -> float:
    """What part of the variance over pictures is that of the float network."""
    return 1 - float(((found - expected) ** 2).mean() / expected.var(axis=0).mean())


def test_every_layer_is_near_that_of_the_float_network(int8: Backbone) -> None:
    exact = load_backbone("efficientnet-lite0", SIDE)
    assert int8.layers == exact.layers
    assert (int8.name, int8.sha256, int8.preprocess) == (NAME, exact.sha256, exact.preprocess)
    for layer, found, expected in zip(
        exact.layers, run_layers(open_session(int8.model)), run_layers(open_session(exact.model)), strict=True
    ):
        assert compute_share_kept(found, expected) > 0.97, layer.name
        # What rounding adds to every picture alike is small: most of it goes into the biases.
        shift = ((found - expected).mean(axis=0) ** 2).mean() / expected.var(axis=0).mean()
        assert shift < 0.0015, layer.name


def test_a_runtime_that_only_rounds_gives_the_same_as_integer_arithmetic(int8: Backbone) -> None:
    plain, optimised = (run_layers(open_session(int8.model, level)) for level in (NONE, LAST))
    for layer, found, expected in zip(int8.layers, optimised, plain, strict=True):
        assert compute_share_kept(found, expected) > 0.99, layer.name


def test_convolutions_run_on_bytes(int8: Backbone, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(int8.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert (ops.count("QLinearConv"), ops.count("Conv") + ops.count("FusedConv")) == (43, 6)
    assert ops.count("QLinearAdd") == 9


def test_no_two_neighbouring_weights_overflow_16_bits(int8: Backbone) -> None:
    """Processors without VNNI add the products of two neighbours with a byte up to 255 in 16 bits."""
    constants = {each.name: numpy_helper.to_array(each) for each in int8.model.graph.initializer}
    producers = {node.output[0]: node for node in int8.model.graph.node}
    num_checked = 0
    for node in int8.model.graph.node:
        if node.op_type == "Conv":
            if node.input[1] in constants:  # the first ones, in floats
                continue
            weights = constants[producers[node.input[1]].input[0]].astype(int)
            assert np.abs(weights).max() <= 127
            if weights.shape[1] > 1:
                flat = weights.transpose(0, 2, 3, 1).reshape(len(weights), -1)
                pairs = flat[:, : flat.shape[1] // 2 * 2].reshape(len(weights), -1, 2)
                extremes = 255 * np.array([pairs.clip(min=0).sum(axis=2).max(), pairs.clip(max=0).sum(axis=2).min()])
                assert -(2**15) <= extremes[1] <= extremes[0] < 2**15, node.name
                num_checked += 1
    assert num_checked == 29


def test_scales_are_as_fine_as_neighbours_allow() -> None:
    kernel = np.zeros((3, 4, 1, 1))
    kernel[0, :, 0, 0] = [1, -1, 0, 0]  # of different signs: nothing adds up
    kernel[1, :, 0, 0] = [0, 1, 1, 0]  # not of one pair
    kernel[2, :, 0, 0] = [1, 1, 0, 0]
    assert find_scales(kernel) == pytest.approx([1 / 127, 1 / 127, 2 / 127])


def test_the_mean_of_a_clipped_normal_variable() -> None:
    mean, deviation = np.array([-3.0, 0.1, 2.0, 5.5, 9.0]), np.array([1.0, 0.5, 4.0, 2.0, 1.0])
    drawn = np.random.default_rng(0).normal(mean, deviation, (200_000, 5)).clip(0, 6).mean(axis=0)
    assert _compute_clipped_mean(mean, deviation) == pytest.approx(drawn, abs=0.02)
    assert _compute_clipped_mean(np.array([2.0, -1.0]), np.zeros(2)) == pytest.approx([2, 0])


def test_the_same_in_threads_and_when_built_again(int8: Backbone) -> None:
    again = load_backbone(NAME, SIDE)
    assert again.model.SerializeToString(deterministic=True) == int8.model.SerializeToString(deterministic=True)
    extractor = Extractor(int8, num_threads=2)
    pictures = [draw_picture("stripes", seed) for seed in range(12)]
    alone = [extractor.run(each) for each in pictures]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(np.array_equal, alone, pool.map(extractor.run, pictures)))


def test_a_black_and_a_white_picture_are_no_limit(int8: Backbone) -> None:
    session, exact = open_session(int8.model), open_session(load_backbone("efficientnet-lite0", SIDE).model)
    for grey in (0, 255):
        pixels = np.full((100, 100, 3), grey, np.uint8)
        found, expected = (each.run(["stage2"], {IMAGE: pixels})[0] for each in (session, exact))
        assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


# As a classifier


def test_a_classifier_is_small_agrees_and_explains(tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "shapes", 12)
    classifier = headstart.train(shapes, backbone=NAME, input_size_px=64, layers="top", penalty=0.1)
    file = tmp_path / "shapes.onnx"
    classifier.save(file)
    assert file.stat().st_size < 4_500_000  # 14 MB in floats
    loaded = headstart.load(file)
    assert loaded.metadata.backbone["name"] == NAME
    pictures = sorted(map(str, shapes.rglob("*.png")))
    agreement = headstart.verify_classifier(file, pictures)
    assert (agreement.num_same_class, agreement.worst_difference < 1e-5) == (len(pictures), True)
    heat = headstart.explain(loaded, pictures[0])
    assert heat.values.sum() == pytest.approx(heat.logit, abs=1e-3)


def make_classifier(int8: Backbone) -> onnx.ModelProto:
    head = LinearHead((PooledLayer("stage2", 1),), np.ones((24, 2), np.float32), np.zeros(2, np.float32), 0.1, 1.0)
    return build_classifier(int8, head)


def test_an_early_layer_leaves_the_rest_out(int8: Backbone) -> None:
    nodes = make_classifier(int8).graph.node
    assert sum(node.op_type == "Conv" for node in nodes) == 9
    assert not {"stage3", "head"} & {name for node in nodes for name in node.output}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("nan scale", "holds NaN or infinity"),
        ("long scale", "cannot run this graph"),
        ("zero of another type", "cannot run this graph"),
        ("few scales", "cannot run this graph"),
        ("input missing", "cannot run this graph"),
        ("op", "'DynamicQuantizeLinear' of node .* is not one that a classifier file may use"),
    ],
)
def test_malformed_rounding_is_refused(int8: Backbone, broken: str, message: str) -> None:
    model = make_classifier(int8)
    metadata = make_tiny_metadata(("cat", "dog"))
    create_session(build_artifact(model, metadata))
    constants = {each.name: each for each in model.graph.initializer}
    node = next(each for each in model.graph.node if each.op_type == "QuantizeLinear")
    weights = next(each for each in model.graph.node if each.op_type == "DequantizeLinear" and each.attribute)
    if broken == "nan scale":
        constants[node.input[1]].CopyFrom(numpy_helper.from_array(np.array(np.nan, np.float32), node.input[1]))
    elif broken == "long scale":
        constants[node.input[1]].CopyFrom(numpy_helper.from_array(np.ones(5, np.float32), node.input[1]))
    elif broken == "zero of another type":
        constants[node.input[2]].CopyFrom(numpy_helper.from_array(np.array(0, np.int64), node.input[2]))
    elif broken == "few scales":
        constants[weights.input[1]].CopyFrom(numpy_helper.from_array(np.ones(5, np.float32), weights.input[1]))
    elif broken == "input missing":
        del node.input[1:]
    else:
        node.op_type = "DynamicQuantizeLinear"
    with pytest.raises(ArtifactError, match=message):
        create_session(parse_artifact(build_artifact(model, metadata))[1])
