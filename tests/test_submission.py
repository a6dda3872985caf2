"""A competition's file: ids in natural order, each once, with one class's probability."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headstart.errors import ConfigError, DataError, ImageError
from headstart.prediction import Prediction
from headstart.submission import find_class, find_ids, write_submission

CLASSES = ("cat", "dog")


def predict(path: str, dog: float) -> tuple[str, Prediction | ImageError]:
    return path, Prediction(path, CLASSES, np.array([1 - dog, dog], np.float32))


def test_ids_in_natural_order(tmp_path: Path) -> None:
    paths = ["t/10.jpg", "t/2.jpg", "t/a,b.jpg", "t/a10.jpg", "t/a9.tar.jpg", "t/1.jpg"]
    rows = [predict(path, 1 / (number + 1)) for number, path in enumerate(paths)]
    target = tmp_path / "s.csv"
    write_submission(target, find_ids(paths), rows, find_class("dog", CLASSES))
    assert target.read_text().splitlines() == [
        *("id,label", "1,0.16666667", "2,0.5", "10,1.0", "a9.tar,0.2", "a10,0.25", '"a,b",0.33333334')
    ]


def test_two_pictures_with_one_id() -> None:
    with pytest.raises(DataError) as caught:
        find_ids(["a/1.jpg", "b/1.png", "b/2.png", "c/1.jpg", "c/2.jpg"])
    assert str(caught.value).splitlines() == [
        "2 problems:",
        "  --submission takes names as ids, and 1 is the id of 3 pictures: a/1.jpg and b/1.png. Name one folder, or "
        "rename them.",
        "  --submission takes names as ids, and 2 is the id of 2 pictures: b/2.png and c/2.jpg. Name one folder, or "
        "rename them.",
    ]
    many = [f"{folder}/{number}.jpg" for folder in "ab" for number in range(30)]
    with pytest.raises(DataError, match="So it is with 20 more ids"):
        find_ids(many)


def test_an_unknown_class() -> None:
    with pytest.raises(
        ConfigError, match=r"no class of this classifier\. Did you mean 'dog'\? Its classes: cat, dog\."
    ):
        find_class("dogs", CLASSES)


def test_a_submission_without_a_picture_is_not_written(tmp_path: Path) -> None:
    target = tmp_path / "s.csv"
    rows = [predict("1.jpg", 0.5), ("2.jpg", ImageError("empty", "the file is empty"))]
    with pytest.raises(
        DataError, match=r"needs every picture, and 1 of 2 could not be used:\n  2\.jpg: empty: the file"
    ):
        write_submission(target, ["1", "2"], rows, 1)
    assert not target.exists()
