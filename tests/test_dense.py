"""Dense heads as arrays and as nodes against sums written out by hand, and their parameters against Keras's."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tiny_backbone import make_tiny_backbone
from tiny_models import make_tiny_metadata

from headstart.artifact import build_artifact, create_session, parse_artifact
from headstart.calibration import apply_temperature
from headstart.features import FeatureLayout
from headstart.graph import FEATURES, IMAGE, PooledLayer, compute_pooling_matrix
from headstart.heads.dense import DenseHead
from headstart.heads.linear import build_classifier

BACKBONE = make_tiny_backbone()
PICTURES = [
    np.random.default_rng(size).integers(0, 256, (size, size + 9, 3), dtype=np.uint8) for size in (1, 16, 40, 77)
]
# Pooling, layer (its map is 8 x 8 or 4 x 4), grid.
POOLINGS = [
    ("average", "top", 1),
    ("average", "first", 2),
    ("max", "top", 4),
    ("max", "first", 8),
    ("max", "first", 4),  # of the averages of 2 x 2 positions
    ("flatten", "second", 4),
    ("flatten", "first", 8),
]


def make_head(
    sizes: tuple[int, ...], layer: PooledLayer, pooling: Any, activation: Any = "softmax", temperature: float = 1.0
) -> DenseHead:
    """Random weights between layers of `sizes`, scaled so that the probabilities are neither all alike nor 0 and 1."""
    rng = np.random.default_rng(sizes)
    weights = [
        (rng.normal(0, 1.5 / np.sqrt(size), (size, units)), rng.normal(0, 0.3, units))
        for size, units in itertools.pairwise(sizes)
    ]
    weights = [(coef.astype(np.float32), bias.astype(np.float32)) for coef, bias in weights]
    return DenseHead((layer,), pooling, tuple(weights), activation, temperature)


def make_case(pooling: str, layer: str, grid: int, *units: int, **options: Any) -> DenseHead:
    size = BACKBONE.get_layer(layer).channels * (1 if pooling == "max" else grid**2)
    return make_head((size, *units), PooledLayer(layer, grid), pooling, **options)


def run_map(pixels: np.ndarray, layer: str) -> np.ndarray:
    """float64 (C, h, w)"""
    session = onnxruntime.InferenceSession(BACKBONE.model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([layer], {IMAGE: pixels})[0][0].astype(np.float64)


def pool_by_hand(maps: np.ndarray, pooling: str, grid: int) -> list[float]:
    """Channel after channel, row after row."""
    step = maps.shape[1] // grid
    cells = [
        [
            plane[y : y + step, x : x + step].mean()
            for y in range(0, step * grid, step)
            for x in range(0, step * grid, step)
        ]
        for plane in maps
    ]
    return [max(plane) for plane in cells] if pooling == "max" else [value for plane in cells for value in plane]


def compute_by_hand(head: DenseHead, maps: np.ndarray) -> np.ndarray:
    """Probabilities (K,)"""
    values = pool_by_hand(maps, head.pooling, head.layers[0].grid)
    for number, (coef, bias) in enumerate(head.weights, start=1):
        sums = [
            sum(value * float(weight) for value, weight in zip(values, column, strict=True)) + float(offset)
            for column, offset in zip(coef.T, bias, strict=True)
        ]
        values = [max(each, 0.0) for each in sums] if number < len(head.weights) else sums
    if head.activation == "sigmoid":
        [z] = values
        s = 1 / (1 + np.exp(-z / head.temperature))
        return np.array([1 - s, s])
    powers = np.exp((np.array(values) - max(values)) / head.temperature)
    return powers / powers.sum()


@pytest.mark.parametrize(("pooling", "layer", "grid"), POOLINGS)
@pytest.mark.parametrize(
    ("units", "options"),
    [
        ((5,), {"temperature": 1.7}),
        ((9, 7, 3), {"temperature": 0.6}),
        ((1,), {"activation": "sigmoid", "temperature": 2.5}),
        ((12, 6, 1), {"activation": "sigmoid", "temperature": 0.8}),
    ],
)
def test_arrays_and_graph_are_what_is_written_out_by_hand(
    pooling: str, layer: str, grid: int, units: tuple[int, ...], options: dict[str, Any]
) -> None:
    head = make_case(pooling, layer, grid, *units, **options)
    maps = [run_map(pixels, layer) for pixels in PICTURES]
    expected = np.stack([compute_by_hand(head, each) for each in maps])
    assert expected.max() < 0.9999
    assert np.ptp(expected, axis=0).max() > 0.01

    session = onnxruntime.InferenceSession(
        build_classifier(BACKBONE, head).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = np.stack([session.run(None, {IMAGE: pixels})[0] for pixels in PICTURES])
    assert found.shape == (4, head.num_classes)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    size = BACKBONE.get_layer(layer).size
    for kept in sorted({grid, size}):  # the raster itself, and one that it divides
        layout = FeatureLayout((PooledLayer("other", 1), PooledLayer(layer, kept)), (3, len(maps[0])))
        rows = np.stack([np.concatenate([np.ones(3), pool_by_hand(each, "flatten", kept)]) for each in maps])
        logits = head.compute_logits(rows.astype(np.float32), layout)
        assert logits.shape == (4, head.num_classes)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(apply_temperature(logits, head.temperature), expected, atol=1e-5)


@pytest.mark.parametrize(("pooling", "layer", "grid"), POOLINGS)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_classifier_passes_the_rules_of_its_file(pooling: str, layer: str, grid: int, activation: str) -> None:
    units = (6, 1) if activation == "sigmoid" else (6, 2)
    head = make_case(pooling, layer, grid, *units, activation=activation, temperature=1.3)
    head = dataclasses.replace(head, dropout=(0.5,))
    metadata = dataclasses.replace(
        make_tiny_metadata(("cat", "dog")),
        preprocess={**make_tiny_metadata(("cat", "dog")).preprocess, **BACKBONE.preprocess.to_json()},
        head=head.to_json(),
    )
    data = build_artifact(build_classifier(BACKBONE, head), metadata)
    found, model_bytes = parse_artifact(data)
    assert found.head == {
        "kind": "dense",
        "layers": [[layer, grid]],
        "pooling": pooling,
        "hidden": [6],
        "dropout": [0.5],
        "activation": activation,
        "penalty": None,
        "temperature": 1.3,
    }
    probs = create_session(model_bytes).run(None, {IMAGE: PICTURES[2]})[0]
    np.testing.assert_allclose(probs, compute_by_hand(head, run_map(PICTURES[2], layer)), atol=1e-5)


def test_a_row_of_a_whole_map_is_the_flattened_map() -> None:
    """Rows of the cache, the graph's own pooling and (C, h, w) read in order hold the same numbers."""
    from headstart.features import build_feature_graph

    block = PooledLayer("second", 4)
    layout = FeatureLayout((block,), (48,))
    session = onnxruntime.InferenceSession(
        build_feature_graph(BACKBONE, layout).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    row = session.run([FEATURES], {IMAGE: PICTURES[1]})[0]
    np.testing.assert_allclose(
        layout.read_block(row[None], block)[0], run_map(PICTURES[1], "second").ravel(), rtol=1e-6
    )
    np.testing.assert_array_equal(compute_pooling_matrix(4, 4), np.eye(16))


@pytest.mark.parametrize(
    ("sizes", "activation", "expected"),
    [
        ((512 * 7 * 7, 100, 100, 100, 2), "softmax", 2_529_302),
        ((512, 256, 128, 1), "sigmoid", 164_353),
        ((2048 * 7 * 7, 100, 100, 100, 2), "softmax", 10_055_702),
    ],
)
def test_parameters_are_counted_as_keras_counts_them(sizes: tuple[int, ...], activation: Any, expected: int) -> None:
    weights = tuple((np.zeros(pair, np.float32), np.zeros(pair[1], np.float32)) for pair in itertools.pairwise(sizes))
    head = DenseHead((PooledLayer("top", 7),), "flatten", weights, activation, 1.0)
    assert head.num_params == expected
    assert head.num_classes == 2
    assert head.hidden == sizes[1:-1]
