"""The network and the head inside a classifier file are those that it was made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from drawn_pictures import draw_picture, write_shapes
from tiny_models import make_tiny_classifier

import headstart
from headstart._files import compute_file_sha256
from headstart.backbones.catalog import Backbone
from headstart.backbones.from_file import read_backbone
from headstart.calibration import apply_temperature
from headstart.errors import BackboneError
from headstart.feature_cache import FeatureCache
from headstart.features import Extractor, Picture, extract_features
from headstart.graph import PooledLayer
from headstart.heads.cached import read_features
from headstart.heads.from_file import read_head
from headstart.heads.linear import LinearHead


def read_all(extractor: Extractor, root: Path, layers: tuple[PooledLayer, ...]) -> tuple[np.ndarray, int]:
    pictures = [Picture(compute_file_sha256(path), str(path)) for path in sorted(root.rglob("*.png"))]
    with FeatureCache() as cache:
        done = extract_features(pictures, extractor, cache)
        assert not done.failures
        return read_features([each.sha256 for each in pictures], layers, extractor, cache), done.num_forward


@pytest.mark.parametrize("layers", ["top", "stage5"])
def test_the_network_gives_the_features_it_was_trained_on(
    tmp_path: Path, warm_cache: Path, backbone: Backbone, layers: str
) -> None:
    shapes = write_shapes(tmp_path / "shapes", 6)
    classifier = headstart.train(shapes, layers=layers, penalty=1.0)
    head = read_head(classifier.metadata, classifier.data)
    own = read_backbone(classifier.metadata, classifier.data)
    known = backbone.get_layer(head.layers[0].layer)
    assert own.layers == (known,)
    assert own.preprocess == backbone.preprocess
    assert (own.name, own.sha256, own.licence, own.source) == (
        backbone.name,
        backbone.sha256,
        backbone.licence,
        backbone.source,
    )
    few = write_shapes(tmp_path / "few", 2)
    features, num_forward = read_all(Extractor(own), few, head.layers)
    expected, _ = read_all(Extractor(backbone), few, head.layers)
    assert num_forward == 6  # rows of another network are not taken for its own
    assert features.shape == (6, sum(known.channels * pooled.grid**2 for pooled in head.layers))
    np.testing.assert_allclose(features, expected, rtol=2e-3, atol=2e-3)


def test_the_head_gives_the_probabilities_of_the_file(classifier: headstart.Classifier, warm_cache: Path) -> None:
    head = read_head(classifier.metadata, classifier.data)
    assert isinstance(head, LinearHead)
    assert head.to_json() == classifier.metadata.head
    own = Extractor(read_backbone(classifier.metadata, classifier.data))
    pixels = [draw_picture(shape, 50) for shape in classifier.classes]
    with FeatureCache() as cache:
        pictures = [Picture(f"{number:064}", each) for number, each in enumerate(pixels)]
        extract_features(pictures, own, cache)
        rows = cache.read_features(
            cache.get_recipe(own.recipe_key, own.backbone.name), [each.sha256 for each in pictures]
        )
    probs = apply_temperature(head.compute_logits(rows, own.layout), head.temperature)
    np.testing.assert_allclose(probs, [classifier.run(each) for each in pixels], atol=2e-3)


def test_the_file_stays_as_it_was(classifier: headstart.Classifier) -> None:
    before = onnx.load_model_from_string(classifier.data).SerializeToString(deterministic=True)
    own = read_backbone(classifier.metadata, classifier.data)
    assert {output.name for output in own.model.graph.output} == {"head"}
    assert not own.model.metadata_props
    assert onnx.load_model_from_string(classifier.data).SerializeToString(deterministic=True) == before


def test_a_foreign_file_does_not_say_where_its_features_are(tmp_path: Path) -> None:
    data = make_tiny_classifier(("a", "b")).SerializeToString()
    foreign = headstart.load(data, allow_unsigned=True)
    with pytest.raises(BackboneError, match="a foreign ONNX file: it does not say where its features are"):
        read_backbone(foreign.metadata, foreign.data)
