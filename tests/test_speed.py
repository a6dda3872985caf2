"""Measuring time: the slower classifier is seen, the decoding counts, and what cannot be measured is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Trained

from headstart.errors import DataError
from headstart.insight import speed
from headstart.insight.speed import measure_classifier, measure_classifiers
from headstart.prediction import Classifier, load


def list_pictures(trained: Trained) -> list[str]:
    return sorted(map(str, trained.shapes.rglob("*.png")))


def test_figures_fit_together(trained: Trained, classifier: Classifier) -> None:
    measured = measure_classifier(classifier, list_pictures(trained))
    assert measured.num_pictures == 36
    assert measured.num_threads == 1
    assert measured.size_bytes == trained.file.stat().st_size
    assert measured.low_ms <= measured.ms_per_picture <= measured.high_ms
    assert 1 < measured.network_ms < measured.ms_per_picture  # no network of this size runs in a millisecond


def test_decoding_is_in_the_one_time_and_not_in_the_other(classifier: Classifier, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    large = measure_classifier(classifier, [str(tmp_path / "large.png")] * 7)
    assert large.ms_per_picture > large.network_ms + 10  # a noisy PNG of this size takes 30 ms to decode


def test_two_names_of_one_classifier_take_the_same_time(trained: Trained, classifier: Classifier) -> None:
    measured = measure_classifiers({"a": classifier, "b": load(trained.file)}, list_pictures(trained))
    assert list(measured) == ["a", "b"]
    ratio = measured["a"].ms_per_picture / measured["b"].ms_per_picture
    assert 1 / 3 < ratio < 3  # wide: other work on the machine is not its fault


def test_it_ends_in_time(trained: Trained, classifier: Classifier) -> None:
    measured = measure_classifiers({"a": classifier}, list_pictures(trained), max_seconds=0)
    assert measured["a"].num_pictures == 5


def test_at_most_fifty_pictures_spread_over_all(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "MAX_PICTURES", 3)
    pixels = [np.full((40, 40, 3), value, np.uint8) for value in range(9)]
    assert measure_classifier(classifier, pixels).num_pictures == 3


def test_unreadable_pictures_are_passed_over(trained: Trained, classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    good = list_pictures(trained)[:6]
    assert measure_classifier(classifier, [str(tmp_path / "bad.jpg"), *good]).num_pictures == 6
    for nothing in ([], [str(tmp_path / "bad.jpg")]):
        with pytest.raises(DataError, match="There is nothing to measure"):
            measure_classifier(classifier, nothing)
    with pytest.raises(DataError, match="There is nothing to measure"):
        measure_classifiers({}, good)
