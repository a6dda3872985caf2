"""The training pictures that lie nearest to a picture, kept in memory beside the classifier that is served."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headstart._files import show_path
from headstart.dataset import ImageRecord, scan_dataset
from headstart.decode import decode_image
from headstart.errors import DataError, ImageError
from headstart.feature_cache import FeatureCache
from headstart.features import Extractor, Picture, extract_features, get_top_layer
from headstart.heads.cached import read_features
from headstart.image_files import DEFAULT_LIMITS, DecodeLimits
from headstart.insight.neighbours import find_neighbours
from headstart.insight.subject import open_extractor
from headstart.parallel import Progress
from headstart.prediction import Classifier, match_classes
from headstart.preparation import prepare_dataset, read_settings
from headstart.report.thumbnails import Thumbnail, make_thumbnail

_THUMBNAIL_PX = 160
_ROWS_PER_READ = 1000


@dataclass(frozen=True, eq=False, slots=True)
class NearPicture:
    """A training picture; `name` is its file's, without folders, `similarity` the cosine, at most 1."""

    label: str
    name: str
    similarity: float
    thumbnail: Thumbnail


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The training pictures of a classifier: `rows` float16 (N, D) of the network's last layer, `records` in order."""

    classes: tuple[str, ...]
    records: Sequence[ImageRecord]
    rows: np.ndarray
    extractor: Extractor
    network: str

    def __len__(self) -> int:
        return len(self.records)

    def fits(self, classifier: Classifier) -> bool:
        """Whether the classifier has the classes and the network that these rows come from."""
        return classifier.classes == self.classes and _name_network(classifier) == self.network

    def find(self, picture: bytes, count: int, limits: DecodeLimits = DEFAULT_LIMITS) -> list[NearPicture]:
        """The `count` nearest to an encoded picture, the nearest first; from several threads at once.

        Thumbnails are made from the files as they are now: one that is gone or changed has the reason in `problem`.
        Raises ImageError.
        """
        decoded = decode_image(picture, min_side_px=2 * self.extractor.preprocess.input_size_px, limits=limits)
        row = self.extractor.run(decoded.pixels)[None]
        layout = self.extractor.layout
        query = np.concatenate([layout.read_block(row, pooled) for pooled in get_top_layer(layout)], axis=1)
        rows, similarities = find_neighbours(query, self.rows, count)
        return [self._describe(*each) for each in zip(rows[0].tolist(), similarities[0].tolist(), strict=True)]

    def _describe(self, row: int, similarity: float) -> NearPicture:
        record = self.records[row]
        try:
            thumbnail = make_thumbnail(record.path, _THUMBNAIL_PX, lossless_side_px=64, sha256=record.sha256)
        except ImageError as error:
            thumbnail = Thumbnail(b"", problem=error.reason)
        return NearPicture(self.classes[record.label], os.path.basename(record.path), similarity, thumbnail)


def open_neighbours(
    classifier: Classifier,
    folder: Any,
    *,
    progress: Progress = lambda stage, done, total: None,
    **options: Any,
) -> Neighbours:
    """The pictures that the classifier was trained on, found in `folder` and divided as the training did it.

    `folder` and `options` are those of `scan_dataset`. Features come from the cache; those that are not there are
    computed and kept, about 40 pictures a second and processor. Rows take 2.6 kB a picture in memory (1,280 numbers of
    EfficientNet-Lite0), the network some 40 MB.
    Raises DataError where the folder's classes are not the classifier's, ConfigError for a file that headstart did not
    train.
    """
    settings = read_settings(classifier.metadata)
    dataset = prepare_dataset(scan_dataset(folder, **options), settings, progress)
    label_of = match_classes(dataset.classes, classifier.classes)
    extractor = open_extractor(classifier, settings)
    records = [record for record in dataset.records if record.split == "train"]
    pictures = [Picture(record.sha256, record.path) for record in records]
    with FeatureCache() as cache:
        extraction = extract_features(
            pictures, extractor, cache, lambda done, total: progress("extracting features", done, total)
        )
        records = [record for record in records if record.sha256 in extraction.facts]
        if not records:
            raise DataError(f"{show_path(str(folder))} holds no training pictures that can be used.")
        layers = get_top_layer(extractor.layout)
        width = sum(map(extractor.layout.count_features, layers))
        rows = np.empty((len(records), width), np.float16)
        for start in range(0, len(records), _ROWS_PER_READ):
            part = slice(start, start + _ROWS_PER_READ)
            rows[part] = read_features([record.sha256 for record in records[part]], layers, extractor, cache)
    classes = classifier.classes
    labelled = [replace(record, label=label_of[dataset.classes[record.label]]) for record in records]
    return Neighbours(classes, labelled, rows, extractor, _name_network(classifier))


def _name_network(classifier: Classifier) -> str:
    return str(classifier.metadata.backbone.get("sha256", ""))
