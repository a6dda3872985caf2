"""Which pictures of every class stand on the contact sheet."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headstart.dataset import ImageRecord
from headstart.errors import DataError
from headstart.report.content import GalleryItem

PER_CLASS = 12
MAX_PICTURES = 600
# Typical pictures are sought among so many of a class: with K classes, 40,000 / K, so that the time does not grow with
# the number of pictures. Unusual ones are sought among all.
_MAX_SEARCHED, _MAX_SEARCHED_IN_ALL = 500, 40_000


def choose_sheet(
    records: Sequence[ImageRecord],
    classes: Sequence[str],
    *,
    per_class: int = PER_CLASS,
    features: npt.NDArray[np.float32] | None = None,
) -> list[tuple[str, int, tuple[GalleryItem, ...]]]:
    """For `Report.sheet`: name, number of pictures in all, and some pictures of every class, in the order of classes.

    Up to `per_class` of each, fewer with many classes: about 600 in all, at least one of each. Without features they
    are drawn by the hash of their content (of the path where `sha256` is empty), so the same picture is chosen again as
    long as few are added. With `features`, float32 (N, D), a row for each record, two thirds are typical (those that
    together lie nearest to the rest of the class, by cosine) and one third is unusual (each the farthest from all
    chosen before). The same input gives the same sheet. Raises DataError where the rows do not fit or are not finite.
    """
    if features is not None:
        _check_features(features, len(records))
    labels = np.array([record.label for record in records], np.int64)
    # Sorted by a hash, a class's first pictures are a random draw that does not depend on names or order.
    order = np.array(sorted(range(len(records)), key=lambda i: _draw(records[i])), np.int64)
    num_shown = max(1, min(per_class, MAX_PICTURES // max(1, len(classes))))
    num_searched = max(num_shown, min(_MAX_SEARCHED, _MAX_SEARCHED_IN_ALL // max(1, len(classes))))
    sheet = []
    for k, name in enumerate(classes):
        members = order[labels[order] == k]
        if features is None or len(members) <= num_shown:
            chosen = members[:num_shown]
        else:
            chosen = members[_spread(_normalise(features[members]), num_shown, num_searched)]
        items = (GalleryItem(records[i].path, records[i].sha256, label=k) for i in chosen.tolist())
        sheet.append((name, len(members), tuple(items)))
    return sheet


def _check_features(features: npt.NDArray[np.float32], num_records: int) -> None:
    if features.ndim != 2 or len(features) != num_records:
        raise DataError(f"features has shape {features.shape}. Expected ({num_records}, D), a row for each picture.")
    if not np.isfinite(features).all():
        raise DataError("features holds nan or infinity. Expected finite numbers; extract the features again.")


def _draw(record: ImageRecord) -> bytes:
    """Not the SHA-256 itself: the test part is chosen by that, and the sheet would show nothing else."""
    text = record.sha256 or record.path
    return hashlib.sha256(b"sheet" + text.encode("utf-8", "surrogateescape")).digest()


def _normalise(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)


def _spread(rows: npt.NDArray[np.float32], num_shown: int, num_searched: int) -> npt.NDArray[np.int64]:
    """Numbers (num_shown,) of the rows of unit length (N, D) that show what there is: typical ones, then unusual ones.

    The typical ones are a greedy facility location (Cornuejols et al. 1977): each is the one that brings most rows
    nearer to a chosen one. The unusual ones are Gonzalez's farthest points (1985).
    """
    num_unusual = num_shown // 3
    searched = rows[:num_searched]
    similarity = searched @ searched.T
    nearest = np.full(len(searched), -1.0, np.float32)  # how similar the most similar chosen one is
    chosen: list[int] = []
    for _ in range(num_shown - num_unusual):
        gains = np.maximum(similarity, nearest[:, None]).sum(axis=0, dtype=np.float64)
        gains[chosen] = -np.inf
        chosen.append(int(gains.argmax()))
        nearest = np.maximum(nearest, similarity[:, chosen[-1]])
    closest = (rows @ rows[chosen].T).max(axis=1)
    for _ in range(num_unusual):
        closest[chosen] = np.inf
        chosen.append(int(closest.argmin()))
        closest = np.maximum(closest, rows @ rows[chosen[-1]])
    return np.array(chosen, np.int64)
