"""Nearest pictures: exact whatever the parts, never the picture itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headstart.errors import DataError
from headstart.insight import neighbours
from headstart.insight.neighbours import find_neighbours


def search_plainly(queries: np.ndarray, features: np.ndarray) -> np.ndarray:
    """All similarities (M, N), in double precision."""
    mean = features.astype(np.float64).mean(axis=0)
    one, other = queries - mean, features - mean
    one /= np.linalg.norm(one, axis=1, keepdims=True)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    return one @ other.T


@pytest.mark.parametrize(("at_once", "features_at_once"), [(1024, 4096), (7, 11), (1, 1), (50, 3)])
def test_the_nearest_are_found_whatever_the_parts(
    monkeypatch: pytest.MonkeyPatch, at_once: int, features_at_once: int
) -> None:
    monkeypatch.setattr(neighbours, "_QUERIES_AT_ONCE", at_once)
    monkeypatch.setattr(neighbours, "_FEATURES_AT_ONCE", features_at_once)
    rng = np.random.default_rng(0)
    queries, features = rng.random((23, 6), np.float32), rng.random((50, 6), np.float32) + 1
    rows, similarities = find_neighbours(queries, features, 4)
    expected = search_plainly(queries, features)
    assert rows.dtype == np.int64
    assert similarities.dtype == np.float32
    np.testing.assert_array_equal(rows, np.argsort(-expected, axis=1)[:, :4])
    np.testing.assert_allclose(similarities, -np.sort(-expected, axis=1)[:, :4], atol=1e-5)


def test_own_rows_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_FEATURES_AT_ONCE", 8)
    features = np.random.default_rng(1).random((30, 5), np.float32)
    itself, _ = find_neighbours(features, features, 3)
    assert (itself[:, 0] == np.arange(30)).all()
    rows, _ = find_neighbours(features, features, 2, own_rows=np.arange(30))
    np.testing.assert_array_equal(rows, itself[:, 1:])
    some, _ = find_neighbours(features[:2], features, 2, own_rows=[0, -1])
    np.testing.assert_array_equal(some, [itself[0, 1:], itself[1, :2]])


def test_no_more_than_there_are() -> None:
    features = np.random.default_rng(2).random((3, 5), np.float32)
    assert sorted(find_neighbours(features[:1], features, 9)[0][0]) == [0, 1, 2]
    assert sorted(find_neighbours(features[:1], features, 9, own_rows=[0])[0][0]) == [1, 2]
    assert find_neighbours(features[:0], features, 2)[0].shape == (0, 2)


def test_equal_pictures_come_in_order_and_the_mean_is_like_nothing() -> None:
    features = np.array([[1, 0], [-1, 0], [1, 0], [-1, 0], [0, 0]], np.float32)
    rows, similarities = find_neighbours(features, features, 4, own_rows=np.arange(5))
    np.testing.assert_array_equal(rows[0], [2, 4, 1, 3])
    np.testing.assert_allclose(similarities[0], [1, 0, -1, -1], atol=1e-6)
    np.testing.assert_array_equal(similarities[4], [0, 0, 0, 0])


def test_half_precision_mapped_from_disk(tmp_path: Path) -> None:
    features = np.random.default_rng(3).random((40, 8)).astype(np.float16)
    np.save(tmp_path / "rows.npy", features)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    rows, similarities = find_neighbours(mapped, mapped, 3)
    expected = find_neighbours(features.astype(np.float32), features.astype(np.float32), 3)
    np.testing.assert_array_equal(rows, expected[0])
    np.testing.assert_array_equal(similarities, expected[1])


@pytest.mark.parametrize(
    ("queries", "features", "count", "own", "named"),
    [
        ((2, 3), (4, 5), 1, None, r"\(2, 3\) and features \(4, 5\)"),
        ((2, 3), (0, 3), 1, None, "N at least 1"),
        ((3,), (4, 3), 1, None, r"queries \(3,\)"),
        ((2, 3), (4, 3), 0, None, "count is 0"),
        ((2, 3), (4, 3), 1, [0], r"own_rows has shape \(1,\)"),
    ],
)
def test_what_does_not_fit_is_said(
    queries: tuple[int, ...], features: tuple[int, ...], count: int, own: list[int] | None, named: str
) -> None:
    with pytest.raises(DataError, match=named):
        find_neighbours(np.ones(queries, np.float32), np.ones(features, np.float32), count, own)
