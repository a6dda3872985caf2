"""A classifier with its pictures is the same whether it was just trained or is opened again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Trained
from drawn_pictures import SHAPES, write_picture, write_shapes
from flipped_shapes import NUM_TEST, NUM_TRAIN, write_flipped
from tiny_models import make_tiny_classifier

import headstart
from headstart.artifact import build_artifact
from headstart.errors import ConfigError, DataError
from headstart.evaluation import Evaluation
from headstart.feature_cache import FeatureCache
from headstart.insight.subject import Subject, open_subject, open_trained
from headstart.review import Decision

QUIET = lambda *_: None  # noqa: E731


def open_again(classifier: headstart.Classifier, source: Any, **options: Any) -> Subject:
    with FeatureCache() as cache:
        return open_subject(classifier, source, cache, QUIET, **options)


def assert_same(found: Evaluation | None, expected: Evaluation | None) -> None:
    assert found is not None
    assert expected is not None
    assert (found.classes, found.paths, found.sha256) == (expected.classes, expected.paths, expected.sha256)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.probs, expected.probs, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"layers": "top"}, {"layers": "auto"}, {"layers": "top", "head": "svm"}, {"class_weights": "balanced", "seed": 4}],
    ids=str,
)
def test_opened_again_it_is_what_it_was_after_training(
    tmp_path: Path, warm_cache: Path, settings: dict[str, Any]
) -> None:
    root = write_flipped(tmp_path / "flipped")
    classifier = headstart.train(root, **settings)
    with FeatureCache() as cache:
        trained = open_trained(classifier, cache)
    again = open_again(headstart.load(classifier.data), root)
    assert trained.num_forward == again.num_forward == 0
    assert_same(again.evaluation, trained.evaluation)
    assert_same(again.out_of_fold, trained.out_of_fold)
    assert not again.is_stand_in
    assert not trained.is_stand_in
    assert again.data.all_problems == trained.data.all_problems
    assert again.records == trained.records
    assert {name: len(each) for name, each in again.records.items()} == {
        "train": NUM_TRAIN,
        "validation": 0,
        "test": NUM_TEST,
    }
    assert again.settings == trained.settings
    assert again.extractor.recipe_key == trained.extractor.recipe_key
    assert again.tested == again.records["test"]
    assert (len(trained.scores) > 0, again.scores) == (True, ())


def test_opened_rows_are_those_that_are_read(tmp_path: Path, warm_cache: Path) -> None:
    classifier = headstart.train(write_flipped(tmp_path / "flipped"), layers="top", penalty=1.0)
    with FeatureCache() as cache:
        subject = open_trained(classifier, cache)
        train = subject.records["train"]
        expected, rows = subject.read_top(train), subject.open_rows(train)
        assert (rows.shape, rows.ndim, len(rows)) == (expected.shape, 2, len(expected))
        for part in (slice(3, 9), slice(None), np.array([7, 2, 2, 20]), np.arange(len(train)) % 3 == 1):
            np.testing.assert_array_equal(rows[part], expected[part])


def test_features_that_left_the_cache_are_computed_again(
    tmp_path: Path, warm_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = headstart.train(write_flipped(tmp_path / "flipped"), layers="top", penalty=1.0)
    with FeatureCache() as cache:
        kept = open_trained(classifier, cache)
        expected = kept.read_top(kept.records["test"])
    assert kept.extractor is classifier.training.extractor  # type: ignore[union-attr]
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "empty"))
    with FeatureCache() as cache:
        subject = open_trained(classifier, cache)
        np.testing.assert_array_equal(subject.read_top(subject.records["test"]), expected)


def test_the_validation_part_stands_in_where_there_is_no_test(tmp_path: Path, warm_cache: Path) -> None:
    root = write_flipped(tmp_path / "flipped")
    (root / "test").rename(root / "validation")
    subject = open_again(headstart.train(root, layers="top", penalty=1.0), root)
    assert subject.evaluation is not None
    assert subject.tested == subject.records["validation"]
    assert len(subject.evaluation.labels) == NUM_TEST


def test_decisions_of_a_review_are_applied(tmp_path: Path, warm_cache: Path) -> None:
    root = write_flipped(tmp_path / "flipped")
    classifier = headstart.train(root, layers="top", penalty=1.0)
    before = open_again(classifier, root)
    record = before.records["train"][0]
    given = classifier.classes[record.label]
    decision = Decision(record.sha256, record.path, given, "leave-out", None, "2026-01-01T00:00:00+00:00")
    after = open_again(classifier, root, decisions=[decision])
    assert after.records["train"] == before.records["train"][1:]
    assert [each.code for each in after.data.all_problems if each.severity == "left-out"] == ["left-out-by-review"]


@pytest.mark.parametrize("change", ["weights from a file that is gone", "other weights under the name"])
def test_a_network_that_is_elsewhere_is_taken_from_the_file(
    trained: Trained, classifier: headstart.Classifier, warm_cache: Path, change: str
) -> None:
    metadata = classifier.metadata
    if change.startswith("weights"):
        metadata = replace(metadata, settings={**metadata.settings, "weights": "gone.pth"})
    else:
        metadata = replace(metadata, backbone={**metadata.backbone, "sha256": "1" * 64})
    stranger = headstart.load(build_artifact(onnx.load_model_from_string(classifier.data), metadata))
    with FeatureCache() as cache:
        known = open_subject(classifier, trained.shapes, cache, QUIET)
        subject = open_subject(stranger, trained.shapes, cache, QUIET)
        train = known.records["train"]
        np.testing.assert_allclose(subject.read_top(train), known.read_top(train), rtol=2e-3, atol=2e-3)
        again = open_subject(stranger, trained.shapes, cache, QUIET)
    assert (known.num_forward, subject.num_forward, again.num_forward) == (0, 36, 0)
    assert subject.extractor.recipe_key != known.extractor.recipe_key
    assert [layer.name for layer in subject.extractor.backbone.layers] == ["head"]
    for one, other in ((subject.evaluation, known.evaluation), (subject.out_of_fold, known.out_of_fold)):
        assert one is not None
        assert other is not None
        assert one.paths == other.paths
        np.testing.assert_allclose(one.probs, other.probs, atol=5e-3)


def test_classes_are_numbered_as_in_the_classifier_whatever_the_folders(
    trained: Trained, classifier: headstart.Classifier, tmp_path: Path, warm_cache: Path
) -> None:
    paths = sorted(map(str, trained.shapes.rglob("*.png")))[::-1]
    labels = [Path(path).parent.name for path in paths]
    subject = open_again(classifier, paths, labels=labels)
    for record in subject.data.dataset.records:
        assert classifier.classes[record.label] == Path(record.path).parent.name
    assert subject.evaluation is not None
    assert subject.evaluation.correct.all()


def test_unknown_classes_are_refused_all_at_once(
    classifier: headstart.Classifier, tmp_path: Path, warm_cache: Path
) -> None:
    root = write_shapes(tmp_path / "shapes", 3)
    (root / "checks").rename(root / "check")
    write_picture(root / "owls" / "0.png", "checks", 7)
    write_picture(root / "owls" / "1.png", "checks", 8)
    with pytest.raises(DataError) as caught:
        open_again(classifier, root)
    assert "The classifier has no class 'check'. Did you mean 'checks'?" in str(caught.value)
    assert "The classifier has no class 'owls'" in str(caught.value)


def test_a_class_without_pictures_is_named(classifier: headstart.Classifier, tmp_path: Path, warm_cache: Path) -> None:
    with pytest.raises(DataError, match="Class 'circles' has no training pictures that can be used"):
        open_again(classifier, write_shapes(tmp_path / "two", 4, [SHAPES[0], SHAPES[2]]))


def test_a_foreign_file_is_refused(tmp_path: Path, warm_cache: Path) -> None:
    data = make_tiny_classifier(SHAPES).SerializeToString()
    with pytest.raises(ConfigError, match="does not say how it was trained"):
        open_again(headstart.load(data, allow_unsigned=True), write_shapes(tmp_path / "shapes", 3))
