"""The head as nodes against the head as arrays, and the whole graph against the rules of the classifier file."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime
import pytest
from tiny_models import make_tiny_metadata

from headstart.artifact import build_artifact, create_session, parse_artifact
from headstart.backbones.catalog import Backbone
from headstart.familiarity import Familiarity, fit_familiarity
from headstart.features import Extractor
from headstart.graph import IMAGE, PooledLayer
from headstart.heads.linear import LinearHead, build_classifier, describe_layers

LAYERS = [
    (PooledLayer("head", 1),),
    (PooledLayer("stage4", 2),),
    (PooledLayer("stage5", 3), PooledLayer("stage6", 3), PooledLayer("stage7", 2), PooledLayer("head", 1)),
    (PooledLayer("stage6", 1), PooledLayer("stage6", 2)),  # one layer on two rasters
]
PICTURES = [
    np.random.default_rng(size).integers(0, 256, (size, size + 40, 3), dtype=np.uint8) for size in (24, 224, 300)
]


def make_head(
    extractor: Extractor, layers: tuple[PooledLayer, ...], num_classes: int, temperature: float
) -> LinearHead:
    """Random, scaled so that the probabilities are neither all alike nor all 0 and 1."""
    size = sum(extractor.layout.count_features(pooled) for pooled in layers)
    rng = np.random.default_rng(size)
    coef = rng.normal(0, 1 / np.sqrt(size), (size, num_classes)).astype(np.float32)
    return LinearHead(layers, coef, rng.normal(size=num_classes).astype(np.float32), 0.1, temperature)


def average_cells(maps: np.ndarray, grid: int) -> np.ndarray:
    large = maps.repeat(grid, axis=1).repeat(grid, axis=2)
    return large.reshape(len(maps), grid, maps.shape[1], grid, maps.shape[1]).mean(axis=(2, 4)).ravel()


@pytest.fixture(scope="module")
def layer_session(backbone: Backbone) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(backbone.model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("layers", LAYERS)
def test_the_graph_is_pooling_head_and_softmax(
    backbone: Backbone,
    extractor: Extractor,
    layer_session: onnxruntime.InferenceSession,
    layers: tuple[PooledLayer, ...],
) -> None:
    head = make_head(extractor, layers, 7, temperature=1.7)
    model = build_classifier(backbone, head)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for pixels in PICTURES:
        [found] = session.run(None, {IMAGE: pixels})
        maps = [layer_session.run([pooled.layer], {IMAGE: pixels})[0][0].astype(np.float64) for pooled in layers]
        features = np.concatenate([average_cells(m, pooled.grid) for m, pooled in zip(maps, layers, strict=True)])
        logits = (features @ head.coef + head.intercept) / 1.7
        expected = np.exp(logits - logits.max())
        assert found.shape == (7,)
        np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-5)
        assert 0.01 < found.max() < 0.999


@pytest.mark.parametrize("layers", LAYERS)
def test_logits_of_cached_rows_are_those_of_the_graph(
    backbone: Backbone, extractor: Extractor, layers: tuple[PooledLayer, ...]
) -> None:
    """Up to half precision, in which rows are kept."""
    head = make_head(extractor, layers, 5, temperature=0.6)
    model = build_classifier(backbone, head)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits = head.compute_logits(np.stack([extractor.run(pixels) for pixels in PICTURES]), extractor.layout)
    assert logits.shape == (3, 5)
    assert logits.dtype == np.float32
    probs = np.exp(logits / 0.6) / np.exp(logits / 0.6).sum(axis=1, keepdims=True)
    expected = np.stack([session.run(None, {IMAGE: pixels})[0] for pixels in PICTURES])
    np.testing.assert_allclose(probs, expected, atol=3e-3)


def test_the_classifier_passes_the_rules_of_its_file(backbone: Backbone, extractor: Extractor) -> None:
    classes = ("cat", "dog", "owl")
    head = make_head(extractor, LAYERS[2], 3, temperature=1.0)
    metadata = dataclasses.replace(
        make_tiny_metadata(classes),
        preprocess={**make_tiny_metadata(classes).preprocess, **backbone.preprocess.to_json()},
        head=dataclasses.replace(head, kind="svm").to_json(),
    )
    model = build_classifier(backbone, head)
    data = build_artifact(model, metadata)
    found, model_bytes = parse_artifact(data)
    assert found == metadata
    assert found.head == {
        "kind": "svm",
        "layers": [["stage5", 3], ["stage6", 3], ["stage7", 2], ["head", 1]],
        "penalty": 0.1,
        "temperature": 1.0,
    }
    plain = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    probs = create_session(model_bytes).run(None, {IMAGE: PICTURES[1]})[0]
    np.testing.assert_allclose(probs, plain.run(None, {IMAGE: PICTURES[1]})[0], atol=1e-6)


def make_familiarity(backbone: Backbone, layer: PooledLayer) -> Familiarity:
    rng = np.random.default_rng(0)
    size = backbone.get_layer(layer.layer).channels * layer.grid**2
    labels = np.arange(60) % 3
    return fit_familiarity(rng.random((60, size), np.float32) * 0.3, labels, np.arange(60) % 5, layer, rng)


@pytest.mark.parametrize(
    ("layers", "familiar"),
    [(LAYERS[0], LAYERS[0][0]), (LAYERS[2], PooledLayer("stage7", 2)), (LAYERS[1], LAYERS[0][0])],
)
def test_the_second_output_is_the_familiarity_of_its_layer(
    backbone: Backbone,
    extractor: Extractor,
    layer_session: onnxruntime.InferenceSession,
    layers: tuple[PooledLayer, ...],
    familiar: PooledLayer,
) -> None:
    """Also of a layer that the head does not read; and the probabilities stay the same."""
    head = make_head(extractor, layers, 3, temperature=1.0)
    familiarity = make_familiarity(backbone, familiar)
    metadata = dataclasses.replace(
        make_tiny_metadata(("cat", "dog", "owl")), head=head.to_json(), familiarity=familiarity.to_json()
    )
    plain, both = build_classifier(backbone, head), build_classifier(backbone, head, familiarity)
    found, data = parse_artifact(build_artifact(both, metadata))
    assert found == metadata
    session = create_session(data)
    for pixels in PICTURES:
        probs, share = session.run(None, {IMAGE: pixels})
        layer = layer_session.run([familiar.layer], {IMAGE: pixels})[0][0]
        features = average_cells(layer.astype(np.float64), familiar.grid).astype(np.float32)
        assert share.shape == (1,)
        np.testing.assert_allclose(share, familiarity.compute(features[None]), atol=1e-4)
        before = onnxruntime.InferenceSession(plain.SerializeToString(), providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(probs, before.run(None, {IMAGE: pixels})[0], atol=1e-6)
    assert both.ByteSize() - plain.ByteSize() < 2e6 or familiar.layer not in {pooled.layer for pooled in layers}


def test_the_file_holds_only_the_layers_that_the_head_uses(backbone: Backbone, extractor: Extractor) -> None:
    sizes = [build_classifier(backbone, make_head(extractor, layers, 3, 1.0)).ByteSize() for layers in LAYERS[:2]]
    assert sizes[1] < sizes[0] / 10
    assert describe_layers(LAYERS[2]) == "stage5 3x3 + stage6 3x3 + stage7 2x2 + head 1x1"
