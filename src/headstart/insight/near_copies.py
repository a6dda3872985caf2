"""Pictures that are the same photo: re-encoded, resized, mirrored, brightened or cropped by a few percent."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from headstart.errors import DataError, ImageError
from headstart.evaluation import Evaluation
from headstart.features import Picture, Progress
from headstart.insight.alignment import SIZE_PX, Thumbnails, compare_thumbnails, make_thumbnail
from headstart.insight.neighbours import find_neighbours
from headstart.parallel import count_cpus, map_bounded
from headstart.pictures import load_picture
from headstart.stats import wilson_interval

logger = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int64]

_NUM_NEIGHBOURS = 10
_STANDS_OUT = 0.8  # of the distance to the tenth neighbour; planted copies lay under 0.75 in all but 1 of 400
_SURELY_NEAR = 0.95
_MANY_COPIES = 0.9  # quantile; above it the tenth neighbour counts as a copy too
# Correlation and low tile (see Agreement) from which on two pictures are one photo. Of 400 planted copies of photos
# 399 lay above, of 3,000 pairs of nearest neighbours the most alike that were not one photo had 0.65 and 0.39. At
# CIFAR-10's size silhouettes of different ships reach 0.83 and 0.58; above 0.9 and 0.8 all was one photo to the eye.
_AGREE, _AGREE_SMALL = (0.85, 0.7), (0.9, 0.8)
_SMALL_PX = 64
_TOO_SMALL_PX = 24
_SAME_PLACE = 0.03  # change of scale, or shift as a fraction of the side, that counts as none
_PAIRS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class NearCopy:
    """Two pictures, numbered in the order given, `first` < `second`, that show the same photo.

    `kind` is "same view", "cropped", "mirrored" or "mirrored and cropped"; `correlation` of the pixels where they
    overlap, 0.85 .. 1; `similarity` is the cosine of their centred features, -1 .. 1.
    """

    first: int
    second: int
    kind: str
    correlation: float
    similarity: float


@dataclass(frozen=True, slots=True)
class NearCopies:
    """What was found among N pictures.

    `groups` are all that hangs together by `pairs`, each sorted. Not every pair of a group need be in `pairs`: of
    pictures with more than ten near-copies only the nearest ten are looked at. `num_candidates` pictures had a
    neighbour so near that the pixels were looked at; `too_small` (under 24 px) and `unread` of them could not be judged.
    """

    num_pictures: int
    num_candidates: int
    pairs: tuple[NearCopy, ...]
    groups: tuple[tuple[int, ...], ...]
    too_small: tuple[int, ...] = ()
    unread: tuple[int, ...] = ()

    def find_copied(self, splits: Sequence[str | None], split: str, other: str = "train") -> npt.NDArray[np.bool_]:
        """Which pictures (N,) belong to `split` and have a near-copy in `other`."""
        copied = np.zeros(self.num_pictures, bool)
        for group in self.groups:
            if any(splits[row] == other for row in group):
                copied[list(group)] = True
        return copied & np.array([each == split for each in splits], bool)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """`num_correct` of `num_pictures`, with the Wilson interval; without pictures all three fractions are None."""

    num_pictures: int
    num_correct: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class WithoutCopies:
    """Accuracy on all test pictures, on those without and on those with a near-copy among the training pictures."""

    all: Accuracy
    without: Accuracy
    copied: Accuracy


def find_near_copies(
    pictures: Sequence[Picture],
    features: npt.NDArray[np.floating],
    num_threads: int | None = None,
    on_progress: Progress | None = None,
) -> NearCopies:
    """Find the pairs of pictures that are the same photo, and the groups that they form.

    `features` (N, D) of the top layer, in the order of `pictures`, tell which pairs could be: two pictures that are
    nearer to each other than 0.8 times the distance (1 - cosine) from either to its tenth neighbour. Pixels decide:
    thumbnails of 32 px are aligned (see `compare_thumbnails`), as they are and with one of them mirrored, and must
    agree as a whole and nearly everywhere. Crops of up to 10 % and moderate changes of light are found; another photo of the
    same scene is not. Pictures under 64 px must agree more closely, and under 24 px nothing tells a near-copy from
    another picture that is alike, so they are listed and not judged.

    Only candidates are read. The search takes time in proportion to N² (a multiply-add for each feature) and memory to
    N. `on_progress` gets (done, total), counting the pictures to read and the pairs to compare.
    Raises DataError where `features` does not fit.
    """
    if features.ndim != 2 or len(features) != len(pictures):
        raise DataError(f"features has shape {features.shape}. Expected a row for each of {len(pictures)} pictures.")
    if len(pictures) < 2:
        return NearCopies(len(pictures), 0, (), ())
    num_threads = num_threads or count_cpus()
    pairs, similarities = _find_candidates(features)
    rows = np.unique(pairs)
    total = len(rows) + len(pairs)

    def tell(done: int) -> None:
        if on_progress:
            on_progress(done, total)

    thumbnails = np.zeros((len(rows), SIZE_PX, SIZE_PX, 3), np.uint8)
    short_sides_px = np.zeros(len(rows), np.int64)
    reading = map_bounded(lambda row: _read_thumbnail(pictures[row]), map(int, rows), num_threads)
    for index, (_, found) in enumerate(reading):
        if found is not None:
            thumbnails[index], short_sides_px[index] = found
        tell(index + 1)
    places = np.searchsorted(rows, pairs)
    judged = short_sides_px[places].min(axis=1) >= _TOO_SMALL_PX
    pairs, places, similarities = pairs[judged], places[judged], similarities[judged]
    is_small = short_sides_px[places].min(axis=1) < _SMALL_PX

    def compare(part: slice) -> list[tuple[str, float]]:
        return _compare(thumbnails[places[part, 0]], thumbnails[places[part, 1]], is_small[part])

    copies = []
    parts = [slice(start, start + _PAIRS_AT_ONCE) for start in range(0, len(pairs), _PAIRS_AT_ONCE)]
    for part, verdicts in map_bounded(compare, parts, num_threads):
        for (first, second), similarity, (kind, correlation) in zip(
            pairs[part].tolist(), similarities[part].tolist(), verdicts, strict=True
        ):
            if kind:
                copies.append(NearCopy(first, second, kind, correlation, similarity))
        tell(min(total, len(rows) + part.stop))
    tell(total)
    return NearCopies(
        len(pictures),
        len(rows),
        tuple(copies),
        tuple(_group(len(pictures), copies)),
        tuple(rows[(short_sides_px > 0) & (short_sides_px < _TOO_SMALL_PX)].tolist()),
        tuple(rows[short_sides_px == 0].tolist()),
    )


def compare_without(evaluation: Evaluation, copied: npt.ArrayLike) -> WithoutCopies:
    """Accuracy with and without the pictures of `evaluation` that are marked in `copied`, bool (N,).

    What a near-copy in training lends to the accuracy is not seen on pictures that have none. Raises DataError where
    `copied` does not fit.
    """
    marked = np.asarray(copied)
    if marked.shape != evaluation.labels.shape or marked.dtype != np.bool_:
        raise DataError(
            f"Got {marked.dtype} {marked.shape}. Expected bool, one for each of {len(evaluation.labels)} pictures."
        )
    correct = evaluation.correct
    return WithoutCopies(*(_count_accuracy(correct[part]) for part in (marked | True, ~marked, marked)))


def _count_accuracy(correct: npt.NDArray[np.bool_]) -> Accuracy:
    n, num_correct = len(correct), int(correct.sum())
    if not n:
        return Accuracy(0, 0, None, None, None)
    return Accuracy(n, num_correct, num_correct / n, *wilson_interval(num_correct, n))


def _find_candidates(features: npt.NDArray[np.floating]) -> tuple[IntArray, npt.NDArray[np.float32]]:
    """Pairs (P, 2), sorted, each row ascending, and their similarities (P,)."""
    rows = np.arange(len(features))
    neighbours, similarities = find_neighbours(features, features, _NUM_NEIGHBOURS, own_rows=rows)
    limits = np.full(len(features), -1.0, np.float32)  # of a few pictures every pair is looked at
    if len(features) > 2 * _NUM_NEIGHBOURS:
        # With ten copies of one picture the tenth neighbour is a copy as well: what is usual caps it.
        usual = np.minimum(similarities[:, -1], np.quantile(similarities[:, -1], _MANY_COPIES))
        limits = np.minimum(1 - _STANDS_OUT * (1 - usual), _SURELY_NEAR)
    near = similarities >= np.maximum(limits[:, None], limits[neighbours])
    pairs = np.sort(np.stack([rows[:, None].repeat(neighbours.shape[1], axis=1)[near], neighbours[near]], axis=1))
    pairs, chosen = np.unique(pairs, axis=0, return_index=True)
    return pairs, similarities[near][chosen]


def _read_thumbnail(picture: Picture) -> tuple[Thumbnails, int] | None:
    """The thumbnail and the short side of the whole picture in pixels; None for one that cannot be read."""
    try:
        decoded = load_picture(picture.source, picture.sha256 or None, min_side_px=2 * SIZE_PX)
    except ImageError as error:
        logger.warning("not compared with its near-copies: %s", error)
        return None
    return make_thumbnail(decoded.pixels), min(decoded.facts.width_px, decoded.facts.height_px)


def _compare(first: Thumbnails, second: Thumbnails, is_small: npt.NDArray[np.bool_]) -> list[tuple[str, float]]:
    """Kind and correlation of each pair; the kind is "" where they are not the same photo."""
    limits = np.where(is_small[:, None], _AGREE_SMALL, _AGREE)
    verdicts = [("", 0.0)] * len(first)
    left = np.arange(len(first))
    for mirrored in (False, True):
        other = second[left, :, ::-1] if mirrored else second[left]
        found = compare_thumbnails(first[left], other)
        same = (found.correlation >= limits[left, 0]) & (found.low_tile >= limits[left, 1])
        moved = np.maximum(abs(found.scale - 1), abs(found.shift)).max(axis=1) > _SAME_PLACE
        for index in np.flatnonzero(same):
            kinds = ["mirrored"] * mirrored + ["cropped"] * bool(moved[index])
            verdicts[left[index]] = (" and ".join(kinds) or "same view", float(found.correlation[index]))
        left = left[~same]
        if not len(left):
            break
    return verdicts


def _group(num_pictures: int, copies: Sequence[NearCopy]) -> Iterator[tuple[int, ...]]:
    """Connected components of two and more, in the order of their first pictures."""
    first, second = [copy.first for copy in copies], [copy.second for copy in copies]
    graph = coo_array((np.ones(len(copies)), (first, second)), shape=(num_pictures, num_pictures))
    component = connected_components(graph, directed=False)[1]
    members: defaultdict[int, list[int]] = defaultdict(list)
    for row in sorted({*first, *second}):
        members[int(component[row])].append(row)
    return map(tuple, members.values())
