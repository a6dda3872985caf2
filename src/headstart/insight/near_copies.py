"""Pictures that are the same photo: re-encoded, resized, mirrored, brightened or cropped by a few percent."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headstart.errors import DataError, ImageError
from headstart.features import Picture, Progress
from headstart.insight.alignment import SIZE_PX, Thumbnails, compare_thumbnails, make_thumbnail
from headstart.insight.neighbours import find_neighbours
from headstart.parallel import count_cpus, map_bounded
from headstart.pictures import load_picture

logger = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int64]

_NUM_NEIGHBOURS = 10
_STANDS_OUT = 0.8  # of the distance to the tenth neighbour; planted copies lay under 0.75 in all but 1 of 400
_SURELY_NEAR = 0.95
_MANY_COPIES = 0.9  # quantile; above it the tenth neighbour counts as a copy too
# Correlation and low tile (see Agreement) from which on two pictures are one photo. Of 400 planted copies of photos
# 399 lay above, of 3,000 pairs of nearest neighbours the most alike that were not one photo had 0.65 and 0.39. At
# CIFAR-10's size silhouettes of different ships reach 0.83 and 0.58; above 0.9 and 0.8 all was one photo to the eye.
MIN_CORRELATION = 0.85
_AGREE, _AGREE_SMALL = (MIN_CORRELATION, 0.7), (0.9, 0.8)
_SMALL_PX = 64
TOO_SMALL_PX = 24
_SAME_PLACE = 0.03  # change of scale, or shift as a fraction of the side, that counts as none
_MIRROR_GAIN = 0.02  # a symmetric picture is not called mirrored
# Of 100 pairs that are no candidates the 95th percentile says what correlation is usual; a quarter of what it lacks of
# 1 may be lacking. Photos have 0.3 and are not touched; of digits drawn large, 0.92, 2 instead of 27 pairs are false.
_NUM_CONTROLS, _USUAL, _FRAC_OF_USUAL = 100, 0.95, 0.25
_PAIRS_AT_ONCE = 64
_MANY_PICTURES, _NUM_COMPONENTS, _ROWS_AT_ONCE = 20_000, 256, 4096


@dataclass(frozen=True, slots=True)
class NearCopy:
    """Two pictures, numbered in the order given, `first` < `second`, that show the same photo.

    `kind` is "same view", "cropped", "mirrored" or "mirrored and cropped"; `correlation` of the pixels where they
    overlap, 0.85 .. 1; `similarity` is the cosine of their centred features, -1 .. 1; of the features'
    256 principal components where there are more than 20,000 pictures.
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
    neighbour so near that the pixels were looked at; `too_small` (under 24 px) and `unread` of them could not be
    judged. `min_correlation` was asked for, 0.85 where different pictures are not much alike.
    """

    num_pictures: int
    num_candidates: int
    pairs: tuple[NearCopy, ...]
    groups: tuple[tuple[int, ...], ...]
    min_correlation: float
    too_small: tuple[int, ...] = ()
    unread: tuple[int, ...] = ()

    def find_copied(self, splits: Sequence[str | None], split: str, other: str = "train") -> npt.NDArray[np.bool_]:
        """Which pictures (N,) belong to `split` and have a near-copy in `other`."""
        copied = np.zeros(self.num_pictures, bool)
        for group in self.groups:
            if any(splits[row] == other for row in group):
                copied[list(group)] = True
        return copied & np.array([each == split for each in splits], bool)


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
    agree as a whole and nearly everywhere. Crops of up to 10 % and moderate changes of light are found; another photo
    of the same scene is not. Pictures under 64 px must agree more closely, and under 24 px nothing tells a near-copy
    from another picture that is alike, so they are listed and not judged. How alike the pixels of mere neighbours are
    is measured on 100 pairs; where that is much, as with drawings of digits, more is asked of near-copies.

    Only candidates are read, and `features` in parts where there are more than 20,000 pictures. The search takes
    time in proportion to N² and memory to N; above 20,000 pictures it looks at principal components, which brings
    together as many near-copies and half as many others again.
    `on_progress` gets (done, total), counting the pictures to read and the pairs to compare.
    Raises DataError where `features` does not fit.
    """
    if features.ndim != 2 or len(features) != len(pictures):
        raise DataError(f"features has shape {features.shape}. Expected a row for each of {len(pictures)} pictures.")
    if len(pictures) < 2:
        return NearCopies(len(pictures), 0, (), (), MIN_CORRELATION)
    num_threads = num_threads or count_cpus()
    pairs, similarities, controls = _find_candidates(features)
    num_candidates = len(np.unique(pairs))
    every = np.concatenate([pairs, controls])
    rows = np.unique(every)
    total = len(rows) + len(every)
    thumbnails = np.zeros((len(rows), SIZE_PX, SIZE_PX, 3), np.uint8)
    short_sides_px = np.zeros(len(rows), np.int64)
    reading = map_bounded(lambda row: _read_thumbnail(pictures[row]), rows.tolist(), num_threads)
    for index, (_, found) in enumerate(reading):
        if found is not None:
            thumbnails[index], short_sides_px[index] = found
        if on_progress:
            on_progress(index + 1, total)

    places = np.searchsorted(rows, every)
    sides_px = short_sides_px[places].min(axis=1)
    judged = np.flatnonzero(sides_px >= TOO_SMALL_PX)
    parts = [judged[start : start + _PAIRS_AT_ONCE] for start in range(0, len(judged), _PAIRS_AT_ONCE)]
    figures = np.zeros((len(every), 4))
    compared = map_bounded(lambda part: _compare(*thumbnails[places[part].T]), parts, num_threads)
    for index, (part, measured) in enumerate(compared, start=1):
        figures[part] = measured
        if on_progress:
            on_progress(len(rows) + min(index * _PAIRS_AT_ONCE, len(judged)), total)

    limits = np.where(sides_px[:, None] < _SMALL_PX, np.array(_AGREE_SMALL), np.array(_AGREE))
    control = figures[len(pairs) :][sides_px[len(pairs) :] >= TOO_SMALL_PX, 0]
    asked = 1 - _FRAC_OF_USUAL * (1 - np.quantile(control, _USUAL)) if len(control) else 0.0
    limits[:, 0] = np.maximum(limits[:, 0], asked)
    same = np.all(figures[:, :2] >= limits, axis=1)[: len(pairs)]
    copies = tuple(
        NearCopy(
            int(pairs[at, 0]),
            int(pairs[at, 1]),
            _name_kind(*figures[at, 2:]),
            float(figures[at, 0]),
            float(similarities[at]),
        )
        for at in np.flatnonzero(same)
    )
    seen = np.isin(rows, pairs)
    return NearCopies(
        len(pictures),
        num_candidates,
        copies,
        tuple(_group(len(pictures), copies)),
        float(max(MIN_CORRELATION, asked)),
        tuple(rows[seen & (short_sides_px > 0) & (short_sides_px < TOO_SMALL_PX)].tolist()),
        tuple(rows[seen & (short_sides_px == 0)].tolist()),
    )


def _find_candidates(features: npt.NDArray[np.floating]) -> tuple[IntArray, npt.NDArray[np.float32], IntArray]:
    """Pairs (P, 2), sorted, each row ascending, their similarities (P,); and control pairs that are no candidates."""
    rows = np.arange(len(features))
    features = _project(features) if len(features) > _MANY_PICTURES else features[:]
    neighbours, similarities = find_neighbours(features, features, _NUM_NEIGHBOURS, own_rows=rows)
    limits = np.full(len(features), -1.0, np.float32)  # of a few pictures all neighbours are looked at
    if len(features) > 2 * _NUM_NEIGHBOURS:
        # With ten copies of one picture the tenth neighbour is a copy as well: what is usual caps it.
        usual = np.minimum(similarities[:, -1], np.quantile(similarities[:, -1], _MANY_COPIES))
        limits = np.minimum(1 - _STANDS_OUT * (1 - usual), _SURELY_NEAR)
    near = similarities >= np.maximum(limits[:, None], limits[neighbours])
    pairs = np.sort(np.stack([rows[:, None].repeat(neighbours.shape[1], axis=1)[near], neighbours[near]], axis=1))
    pairs, chosen = np.unique(pairs, axis=0, return_index=True)
    free = np.flatnonzero(~near[:, -1])
    free = free[np.linspace(0, len(free) - 1, min(len(free), _NUM_CONTROLS)).astype(np.int64)]
    return pairs, similarities[near][chosen], np.stack([free, neighbours[free, -1]], axis=1)


def _project(features: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """The leading principal components (N, 256), of the spread of 5,000 to 10,000 rows."""
    sample = features[:: max(1, len(features) // 5_000)].astype(np.float32)
    sample -= sample.mean(axis=0)
    components = np.linalg.eigh(sample.T @ sample)[1][:, -_NUM_COMPONENTS:]
    starts = range(0, len(features), _ROWS_AT_ONCE)
    return np.concatenate([features[start : start + _ROWS_AT_ONCE].astype(np.float32) @ components for start in starts])


def _read_thumbnail(picture: Picture) -> tuple[Thumbnails, int] | None:
    """The thumbnail and the short side of the whole picture in pixels; None for one that cannot be read."""
    try:
        decoded = load_picture(picture.source, picture.sha256 or None, min_side_px=2 * SIZE_PX)
    except ImageError as error:
        logger.warning("not compared with its near-copies: %s", error)
        return None
    return make_thumbnail(decoded.pixels), min(decoded.facts.width_px, decoded.facts.height_px)


def _compare(first: Thumbnails, second: Thumbnails) -> npt.NDArray[np.float64]:
    """Correlation, low tile, whether mirrored, whether moved (P, 4), of the orientation that agrees better."""
    figures = []
    for mirrored in (False, True):
        found = compare_thumbnails(first, second[:, :, ::-1] if mirrored else second)
        moved = np.maximum(abs(found.scale - 1), abs(found.shift)).max(axis=1) > _SAME_PLACE
        figures.append(np.stack([found.correlation, found.low_tile, np.full(len(first), mirrored), moved], axis=1))
    as_is, turned = figures
    return np.where(turned[:, :1] > as_is[:, :1] + _MIRROR_GAIN, turned, as_is)


def _name_kind(mirrored: float, moved: float) -> str:
    return " and ".join(["mirrored"] * bool(mirrored) + ["cropped"] * bool(moved)) or "same view"


def _group(num_pictures: int, copies: Sequence[NearCopy]) -> Iterator[tuple[int, ...]]:
    """Connected components of two and more, in the order of their first pictures."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = [copy.first for copy in copies], [copy.second for copy in copies]
    graph = coo_array((np.ones(len(copies)), (first, second)), shape=(num_pictures, num_pictures))
    component = connected_components(graph, directed=False)[1]
    members: defaultdict[int, list[int]] = defaultdict(list)
    for row in sorted({*first, *second}):
        members[int(component[row])].append(row)
    return map(tuple, members.values())
