"""Heat maps against sums written out by hand, the probabilities of the file, and the crop of the graph itself."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import Trained
from drawn_pictures import draw_picture
from onnx import TensorProto, helper
from tiny_backbone import make_tiny_backbone
from tiny_models import make_tiny_classifier, make_tiny_metadata

import headstart
from headstart.artifact import build_artifact
from headstart.backbones.catalog import Backbone
from headstart.dataset import list_images
from headstart.errors import ArtifactError, ConfigError, ImageError
from headstart.graph import IMAGE, IMAGE_INPUT, GraphBuilder, PooledLayer, PreprocessSpec, add_preprocessing
from headstart.heads.dense import DenseHead
from headstart.heads.linear import LinearHead, build_classifier
from headstart.heat_maps import AGAINST_COLOUR, FOR_COLOUR, Explainer, HeatMap, compute_box, draw_heat_map, explain
from headstart.heat_maps import overlay_values as overlay

BACKBONE = make_tiny_backbone()
PICTURES = [np.random.default_rng(size).integers(0, 256, (size, size + 9, 3), dtype=np.uint8) for size in (16, 40, 77)]
CLASSES = ("cat", "dog", "owl")


def make_file(head: LinearHead | DenseHead, backbone: Backbone = BACKBONE, **changes: Any) -> bytes:
    classes = CLASSES[: head.num_classes]
    metadata = dataclasses.replace(
        make_tiny_metadata(classes),
        preprocess={**make_tiny_metadata(classes).preprocess, **backbone.preprocess.to_json()},
        head={**head.to_json(), **changes},
    )
    return build_artifact(build_classifier(backbone, head), metadata)


def make_linear(*layers: tuple[str, int], num_classes: int = 3, temperature: float = 0.7) -> LinearHead:
    """Random weights whose sum over the classes is not 0, as a support vector machine's."""
    rng = np.random.default_rng(len(layers))
    size = sum(BACKBONE.get_layer(layer).channels * grid**2 for layer, grid in layers)
    coef = rng.normal(0.1, 2 / np.sqrt(size), (size, num_classes)).astype(np.float32)
    intercept = rng.normal(0.5, 1, num_classes).astype(np.float32)
    return LinearHead(tuple(PooledLayer(*each) for each in layers), coef, intercept, 0.1, temperature)


def make_dense(layer: str, grid: int, pooling: Any, *units: int, activation: Any = "softmax") -> DenseHead:
    size = BACKBONE.get_layer(layer).channels * (1 if pooling == "max" else grid**2)
    rng = np.random.default_rng(units)
    weights = tuple(
        (rng.normal(0, 1.5 / a**0.5, (a, b)).astype(np.float32), rng.normal(0, 0.3, b).astype(np.float32))
        for a, b in itertools.pairwise((size, *units))
    )
    return DenseHead((PooledLayer(layer, grid),), pooling, weights, activation, 1.6)


def run_maps(backbone: Backbone, pixels: np.ndarray, *layers: str) -> list[np.ndarray]:
    """float64 (C, h, h) each"""
    session = onnxruntime.InferenceSession(backbone.model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [each[0].astype(np.float64) for each in session.run(list(layers), {IMAGE: pixels})]


def check_sum(heat: HeatMap, probs: np.ndarray) -> None:
    """The probabilities alone say what the sum must be."""
    logs = np.log(probs.astype(np.float64))
    assert heat.logit == pytest.approx(logs[heat.class_index] - logs.mean(), abs=1e-4)
    assert heat.values.sum(dtype=np.float64) == pytest.approx(heat.logit, abs=1e-5)
    np.testing.assert_allclose(heat.probs, probs, atol=1e-6)


def test_a_linear_head_on_averages_by_hand() -> None:
    head = make_linear(("top", 1))
    explainer = Explainer(make_file(head))
    for pixels in PICTURES:
        [maps] = run_maps(BACKBONE, pixels, "top")
        coef = (head.coef - head.coef.mean(axis=1, keepdims=True)) / head.temperature
        offset = (head.intercept - head.intercept.mean()) / head.temperature
        for number in range(3):
            heat = explainer.explain(pixels, number)
            expected = np.einsum("chw,c->hw", maps, coef[:, number]) / 16 + offset[number] / 16
            np.testing.assert_allclose(heat.values, expected, atol=1e-5)
            assert heat.values.dtype == np.float32
            assert heat.spread == pytest.approx(offset[number], abs=1e-6)
            assert (heat.class_index, heat.label) == (number, CLASSES[number])
            check_sum(heat, heat.probs)
        assert np.ptp(expected) > 0.01


@pytest.mark.parametrize(
    ("layers", "size"),
    [
        ([("top", 2)], 4),
        ([("first", 3)], 8),
        ([("second", 3), ("top", 1)], 4),
        ([("first", 2), ("second", 4), ("top", 1)], 8),
        ([("second", 1), ("second", 2)], 4),
    ],
)
def test_several_layers_on_rasters_sum_to_the_logit(layers: list[tuple[str, int]], size: int) -> None:
    data = make_file(make_linear(*layers))
    explainer, classifier = Explainer(data), headstart.load(data)
    for pixels in PICTURES:
        for number in range(3):
            heat = explainer.explain(pixels, number)
            assert heat.values.shape == (size, size)
            check_sum(heat, classifier.predict(pixels).probs)


def test_a_coarse_map_is_divided_evenly_and_cells_weigh_by_their_own_coefficients() -> None:
    """Only the lower right cell of `first` 2x2 and of `top`'s mean have weights."""
    coef = np.zeros((32 * 4 + 160, 2), np.float32)
    coef[3::4, 1][:32] = 1
    coef[3:128:4, 1] = 1
    coef[128:, 1] = 0.5
    head = LinearHead((PooledLayer("first", 2), PooledLayer("top", 1)), coef, np.zeros(2, np.float32), 0.1, 1.0)
    heat = Explainer(make_file(head)).explain(PICTURES[1], 1)
    first, top = run_maps(BACKBONE, PICTURES[1], "first", "top")
    expected = top.sum(axis=0).repeat(2, axis=0).repeat(2, axis=1) * 0.25 / 16 / 4
    expected[4:, 4:] += first.sum(axis=0)[4:, 4:] / 16 / 2
    np.testing.assert_allclose(heat.values, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("pooling", "layer", "grid"),
    [("average", "top", 1), ("average", "first", 2), ("max", "top", 4), ("max", "first", 4), ("flatten", "second", 4)],
)
@pytest.mark.parametrize(
    ("units", "activation"), [((3,), "softmax"), ((9, 7, 3), "softmax"), ((1,), "sigmoid"), ((8, 1), "sigmoid")]
)
def test_dense_heads_are_followed_by_their_gradient(
    pooling: str, layer: str, grid: int, units: tuple[int, ...], activation: str
) -> None:
    head = make_dense(layer, grid, pooling, *units, activation=activation)
    data = make_file(head)
    explainer, classifier = Explainer(data), headstart.load(data)
    heat = explainer.explain(PICTURES[1])
    check_sum(heat, classifier.predict(PICTURES[1]).probs)
    assert heat.class_index == heat.probs.argmax()

    [maps] = run_maps(BACKBONE, PICTURES[1], layer)
    size = maps.shape[1]
    step = size // grid

    def compute_logit(changed: np.ndarray) -> float:
        cells = changed.reshape(len(changed), grid, step, grid, step).mean(axis=(2, 4)).reshape(len(changed), -1)
        values = cells.max(axis=1) if pooling == "max" else cells.ravel()
        for coef, bias in head.weights[:-1]:
            values = np.maximum(values @ coef + bias, 0)
        logits = (values @ head.weights[-1][0] + head.weights[-1][1]) / head.temperature
        logits = np.array([0, logits[0]]) if activation == "sigmoid" else logits
        return float(logits[heat.class_index] - logits.mean())

    shares = np.zeros((size, size))
    for y, x in np.ndindex(size, size):
        changed = maps.copy()
        changed[:, y, x] *= 1 + 1e-6
        shares[y, x] = (compute_logit(changed) - compute_logit(maps)) / 1e-6
    np.testing.assert_allclose(heat.values - heat.spread / size**2, shares, atol=1e-4)
    assert np.ptp(shares) > 1e-3


def make_vector_backbone(size: int = 4) -> Backbone:
    """`deep` is one vector: the mean of a map's values, through a matrix and ReLU."""
    base = make_tiny_backbone()
    builder = GraphBuilder("deep_")
    rng = np.random.default_rng(3)
    kernel = rng.normal(0, 0.2, (20, 160, 1, 1)).astype(np.float32)
    mean = builder.add("GlobalAveragePool", "top")
    vector = builder.add("Conv", mean, builder.constant(kernel), kernel_shape=[1, 1])
    builder.add("Tanh", vector, output="pooled")
    joined = GraphBuilder()
    joined.nodes = [*base.model.graph.node, *builder.nodes]
    joined.initializers = [*base.model.graph.initializer, *builder.initializers]
    outputs = [*base.model.graph.output, helper.make_tensor_value_info("pooled", TensorProto.FLOAT, [1, 20, 1, 1])]
    layers = (*base.layers, headstart.backbones.catalog.Layer("pooled", 20, 1))
    return dataclasses.replace(base, layers=layers, model=joined.build([IMAGE_INPUT], outputs))


@pytest.mark.parametrize("layers", [["pooled"], ["second", "pooled"]])
def test_a_layer_without_positions_is_followed_back_to_the_last_map(layers: list[str]) -> None:
    backbone = make_vector_backbone()
    rng = np.random.default_rng(0)
    size = sum(backbone.get_layer(layer).channels for layer in layers)
    coef = rng.normal(0, 1, (size, 2)).astype(np.float32)
    head = LinearHead(tuple(PooledLayer(each, 1) for each in layers), coef, np.ones(2, np.float32), 0.1, 1.0)
    data = make_file(head, backbone)
    heat = Explainer(data).explain(PICTURES[1], 0)
    check_sum(heat, headstart.load(data).predict(PICTURES[1]).probs)

    second, top = run_maps(backbone, PICTURES[1], "second", "top")
    weights = (coef - coef.mean(axis=1, keepdims=True))[:, 0].astype(np.float64)
    [kernel] = [onnx.numpy_helper.to_array(t) for t in backbone.model.graph.initializer if t.dims == [20, 160, 1, 1]]
    matrix = kernel[:, :, 0, 0].astype(np.float64)
    slope = 1 - np.tanh(matrix @ top.mean(axis=(1, 2))) ** 2
    expected = np.einsum("chw,c->hw", top, matrix.T @ (slope * weights[-20:])) / 16
    if "second" in layers:
        expected += np.einsum("chw,c->hw", second, weights[:48]) / 16
    np.testing.assert_allclose(heat.values - heat.spread / 16, expected, atol=2e-3 * np.abs(expected).max())


def test_a_class_token_is_followed_back_behind_its_attention() -> None:
    """Random weights: that all patches count, that the sum holds, and that the changed patch is where it is."""
    pytest.importorskip("timm")
    from headstart.backbones.loading import load_backbone

    backbone = load_backbone("timm:vit_tiny_patch16_224", 64, "none")
    names = [layer.name for layer in backbone.layers]
    assert names[-1] == "class token"
    rng = np.random.default_rng(0)
    head = LinearHead(
        (PooledLayer("class token", 1),),
        rng.normal(size=(192, 2)).astype(np.float32),
        np.zeros(2, np.float32),
        0.1,
        1.0,
    )
    data = make_file(head, backbone)
    heat = Explainer(data).explain(PICTURES[2])
    assert heat.values.shape == (4, 4)
    assert len(np.unique(heat.values)) == 16
    check_sum(heat, headstart.load(data).predict(PICTURES[2]).probs)


def test_real_pictures_sum_to_the_logit(trained: Trained, classifier: headstart.Classifier) -> None:
    explainer = Explainer(classifier.data)
    paths, _ = list_images([trained.shapes])
    for path in paths[::3]:
        heat = explainer.explain(path)
        check_sum(heat, classifier.predict(path).probs)
        assert heat.label == classifier.predict(path).label
        assert heat.values.shape == (7, 7)


def test_all_of_hymenoptera_sums_to_the_logit(hymenoptera: Any, backbone: Backbone) -> None:
    head = LinearHead(
        (PooledLayer("stage7", 2), PooledLayer("head", 1)),
        np.random.default_rng(0).normal(0, 0.05, (2560, 2)).astype(np.float32),
        np.array([1, -2], np.float32),
        0.1,
        0.4,
    )
    data = make_file(head, backbone)
    explainer, classifier = Explainer(data), headstart.load(data)
    paths, _ = list_images([hymenoptera])
    for path in paths[::16]:
        check_sum(explainer.explain(path), classifier.predict(path).probs)


def test_what_changes_in_the_picture_changes_there_in_the_map() -> None:
    """The tiny network sees every pixel by itself, so a corner of its input is a corner of its map."""
    explainer = Explainer(make_file(make_linear(("top", 1))))
    pixels = PICTURES[0][:, :16].copy()
    before = explainer.explain(pixels, 0).values
    pixels[:4, 8:12] = 255 - pixels[:4, 8:12]
    changed = explainer.explain(pixels, 0).values != before
    assert changed.any()
    assert set(zip(*np.nonzero(changed), strict=True)) == {(0, 2)}


@pytest.mark.parametrize("crop", ["centre", "after-resize", "squash"])
@pytest.mark.parametrize("shape", [(300, 200), (200, 333), (40, 60), (64, 64), (70, 66)])
def test_the_box_is_what_the_graph_sees(crop: str, shape: tuple[int, int]) -> None:
    """The picture's own coordinates go through the preprocessing; its edges then tell where the box lies."""
    spec = PreprocessSpec(64, 0.875, (0, 0, 0), (1 / 255,) * 3, "linear", crop)
    builder = GraphBuilder()
    prepared = add_preprocessing(builder, spec)
    model = builder.build([IMAGE_INPUT], [helper.make_tensor_value_info(prepared, TensorProto.FLOAT, [1, 3, 64, 64])])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    height, width = shape
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = (np.arange(height) * 255 // height)[:, None]
    pixels[..., 1] = (np.arange(width) * 255 // width)[None]
    seen = session.run(None, {IMAGE: pixels})[0][0] / 255
    rows, columns = seen[0].mean(axis=1)[8:-8], seen[1].mean(axis=0)[8:-8]
    top, left, tall, wide = compute_box({"input_size_px": 64, "crop_frac": 0.875, "crop": crop}, height, width)
    places = (np.arange(64) + 0.5)[8:-8] / 64
    np.testing.assert_allclose(rows, top + tall * places, atol=0.02)
    np.testing.assert_allclose(columns, left + wide * places, atol=0.02)


@pytest.mark.parametrize("size", [1, 2, 4, 7, 14])
def test_smoothing_keeps_the_sum_and_shares_with_neighbours(size: int) -> None:
    values = np.zeros((size, size), np.float32)
    values[size // 2, 0] = 8
    smoothed = make_heat(values).smoothed
    assert smoothed.sum() == pytest.approx(8, rel=1e-6)
    assert smoothed.dtype == np.float32
    if size == 7:
        np.testing.assert_allclose(smoothed[2:5, :3], [[1.5, 0.5, 0], [3, 1, 0], [1.5, 0.5, 0]])
    np.testing.assert_allclose(make_heat(np.full((size, size), 2.0)).smoothed, 2, rtol=1e-6)
    assert (make_heat(values).smoothed == values).all() == (size < 5)


def make_heat(values: Any, box: tuple[float, float, float, float] = (0, 0, 1, 1)) -> HeatMap:
    return HeatMap(np.array(values, np.float32), ("a", "b"), 0, 0.0, 0.0, np.array([0.5, 0.5], np.float32), box)


def test_drawing() -> None:
    pixels = np.full((80, 120, 3), 100, np.uint8)
    heat = make_heat([[4.0, 0], [0, -4]], (0.1, 0.2, 0.8, 0.5))
    drawn = np.asarray(draw_heat_map(pixels, heat, alpha=1.0))
    assert drawn.shape == pixels.shape
    assert (drawn[:8] == 35).all()
    assert (drawn[:, :24] == 35).all()
    assert (drawn[:, 84:] == 35).all()
    np.testing.assert_allclose(drawn[9, 25], FOR_COLOUR, atol=8)
    np.testing.assert_allclose(drawn[70, 82], AGAINST_COLOUR, atol=8)
    assert (np.asarray(draw_heat_map(pixels, heat, alpha=0))[8:72, 24:84] == 100).all()
    assert (np.asarray(draw_heat_map(pixels, make_heat([[0.0, 0], [0, 0]]))) == 100).all()
    draw_heat_map(np.zeros((1, 3, 3), np.uint8), make_heat([[1.0]], (0, 1 / 3, 1, 1 / 3)))
    np.testing.assert_array_equal(overlay(heat), [[255, 128], [128, 1]])
    np.testing.assert_array_equal(overlay(make_heat([[0.0]])), [[128]])


def test_classes_and_pictures_that_are_none(classifier: headstart.Classifier) -> None:
    picture = draw_picture("circles", 1)
    assert explain(classifier, picture, "circles").label == "circles"
    with pytest.raises(ConfigError, match="no class 'circels'. Did you mean 'circles'"):
        explain(classifier, picture, "circels")
    for number in (3, -1):
        with pytest.raises(ConfigError, match="no class"):
            explain(classifier, picture, number)
    with pytest.raises(ImageError, match="not-an-image"):
        explain(classifier, b"no picture at all")


def test_other_files_are_refused_with_the_reason() -> None:
    foreign = make_tiny_classifier(CLASSES)
    with pytest.raises(ConfigError, match="does not say which layers"):
        Explainer(foreign.SerializeToString())
    with pytest.raises(ArtifactError, match="no constant 'head.coef'"):
        Explainer(build_artifact(foreign, make_tiny_metadata(CLASSES)))
    with pytest.raises(ArtifactError):
        Explainer(b"")
    head = make_linear(("second", 2), ("top", 1))
    with pytest.raises(ArtifactError, match="no tensor 'elsewhere'"):
        Explainer(make_file(head, layers=[["elsewhere", 2], ["top", 1]]))
    with pytest.raises(ArtifactError, match="another number of values"):
        Explainer(make_file(head, layers=[["second", 1], ["top", 1]]))
    with pytest.raises(ArtifactError, match="not square maps"):
        Explainer(make_file(head, layers=[["head_concat6", 2], ["top", 1]]))
    swapped = make_linear(("top", 1), ("top", 2))
    with pytest.raises(ArtifactError, match="does not add up"):
        Explainer(make_file(swapped, layers=[["top", 2], ["top", 1]]))
    dense = make_dense("top", 4, "max", 5, 3)
    with pytest.raises(ArtifactError, match="another number of values"):
        Explainer(make_file(dense, pooling="average"))


def test_threads_give_the_same() -> None:
    from headstart.parallel import map_bounded

    explainer = Explainer(make_file(make_linear(("first", 3), ("top", 1))))
    alone = [explainer.explain(pixels).values for pixels in PICTURES * 4]
    together = {
        i: heat.values for (i, _), heat in map_bounded(lambda p: explainer.explain(p[1]), enumerate(PICTURES * 4), 3)
    }
    assert all(np.array_equal(values, together[i]) for i, values in enumerate(alone))
