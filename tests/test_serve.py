"""The server's own interface, by a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import Trained
from serving import Served, serving

import headstart


@pytest.fixture(scope="module")
def served(trained: Trained) -> Iterator[Served]:
    with serving(trained.file) as served:
        yield served


def test_raw_bytes_get_what_predict_gives(served: Served, trained: Trained, classifier: headstart.Classifier) -> None:
    data = (trained.shapes / "checks" / "00.png").read_bytes()
    answer = served.send("POST", "/predict", data)
    assert answer.status == 200
    (row,) = answer.json["predictions"]
    expected = classifier.predict(data)
    assert row["predicted"] == expected.label
    assert row["probabilities"] == dict(expected.get_top(3))
    assert row["familiarity"] == expected.familiarity


def test_every_refusal_is_json(served: Served) -> None:
    for method, path, status in (
        ("GET", "/nowhere", 404),
        ("GET", "/predict", 405),
        ("POST", "/predict/other", 404),
        ("POST", "/predict", 400),
        ("POST", "/predict?top=x", 400),
    ):
        answer = served.send(method, path)
        assert (answer.status, answer.headers["content-type"]) == (status, "application/json"), path
        assert answer.json["error"].startswith(answer.json["code"] + ": ")
