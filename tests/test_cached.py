"""Features of cached pictures side by side, and the familiarity that is fitted on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Trained

import headstart
from headstart.config import TrainSettings
from headstart.dataset import ImageRecord, scan_dataset
from headstart.errors import HeadstartError
from headstart.feature_cache import FeatureCache
from headstart.features import Extractor
from headstart.graph import PooledLayer
from headstart.heads import cached
from headstart.heads.from_file import read_head
from headstart.heads.linear import LinearHead
from headstart.preparation import prepare_dataset

SETTINGS = TrainSettings(layers="top")


@pytest.fixture
def records(trained: Trained, warm_cache: Path) -> list[ImageRecord]:
    dataset = prepare_dataset(scan_dataset(trained.shapes), SETTINGS, lambda *_: None)
    return list(dataset.records)


def test_layers_stand_side_by_side_in_the_order_of_the_pictures(
    records: list[ImageRecord], extractor: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = (PooledLayer("stage6", 1), PooledLayer("stage5", 2), PooledLayer("head", 1))
    pictures = [record.sha256 for record in records]
    with FeatureCache() as cache:
        features = cached.read_features(pictures, layers, extractor, cache)
        monkeypatch.setattr(cached, "_ROWS_PER_READ", 5)  # 36 pictures in 8 parts, the last with a single one
        again = cached.read_features(pictures, layers, extractor, cache)
        turned = cached.read_features(pictures[::-1], layers, extractor, cache)
        single = cached.read_features(pictures[3:4], layers[2:], extractor, cache)
        rows = cache.read_features(cache.get_recipe(extractor.recipe_key, extractor.name), pictures)
    assert features.dtype == np.float32
    assert features.shape == (36, 192 + 4 * 112 + 1280)
    for pooled, start, end in ((layers[0], 0, 192), (layers[1], 192, 640), (layers[2], 640, 1920)):
        np.testing.assert_array_equal(features[:, start:end], extractor.layout.read_block(rows, pooled))
    np.testing.assert_array_equal(features, again)
    np.testing.assert_array_equal(features, turned[::-1])
    np.testing.assert_array_equal(single[0], features[3, 640:])


def test_pictures_that_are_not_cached_are_no_zeros(records: list[ImageRecord], extractor: Extractor) -> None:
    with FeatureCache() as cache, pytest.raises((HeadstartError, KeyError)):
        cached.read_features([records[0].sha256, "0" * 64], (PooledLayer("head", 1),), extractor, cache)


def test_familiarity_is_the_one_in_the_file_and_repeats(
    records: list[ImageRecord], extractor: Extractor, classifier: headstart.Classifier
) -> None:
    head = read_head(classifier.metadata, classifier.data)
    train = [record for record in records if record.split == "train"]
    with FeatureCache() as cache:
        found = [cached.fit_head_familiarity(train, head, extractor, cache, SETTINGS) for _ in range(2)]
        other = cached.fit_head_familiarity(train, head, extractor, cache, replace(SETTINGS, seed=1))
        features = cached.read_features([each.sha256 for each in train], head.layers, extractor, cache)
    assert classifier.metadata.familiarity == found[0].to_json() == found[1].to_json()
    assert other.to_json() != found[0].to_json()
    assert found[0].num_images == len(train)
    values = found[0].compute(features)
    assert ((values >= 0) & (values <= 1)).all()
    # Seen pictures lie nearer than unseen ones, which the shares are about.
    assert np.median(values) > 0.5


def test_familiarity_where_a_class_is_one_group(records: list[ImageRecord], extractor: Extractor) -> None:
    """Its pictures lie in one fold, so that the other folds do not know the class at all."""
    train = [
        replace(record, group=f"{record.label}-{n % 2 if record.label else 0}") for n, record in enumerate(records)
    ]
    head = LinearHead((PooledLayer("head", 1),), np.zeros((1280, 3), np.float32), np.zeros(3, np.float32), 1.0, 1.0)
    with FeatureCache() as cache:
        fitted = cached.fit_head_familiarity(train, head, extractor, cache, SETTINGS)
    assert np.isfinite(fitted.distances).all()
    assert (np.diff(fitted.distances) > 0).all()


def test_the_file_tells_the_familiarity_of_every_prediction(
    trained: Trained, classifier: headstart.Classifier, tmp_path: Path
) -> None:
    known = classifier.predict(sorted(map(str, trained.shapes.rglob("*.png"))))
    assert all(0 <= each.familiarity <= 1 for each in known)
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    assert classifier.predict(noise).familiarity < np.median([each.familiarity for each in known])
