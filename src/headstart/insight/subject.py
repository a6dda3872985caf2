"""A classifier together with its pictures, whose features are cached: what every question about it is asked of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from headstart.backbones.catalog import Backbone
from headstart.backbones.from_file import read_backbone
from headstart.backbones.loading import load_backbone
from headstart.config import TrainSettings
from headstart.data_check import DataReport
from headstart.dataset import ImageDataset, ImageRecord, scan_dataset
from headstart.errors import HeadstartError
from headstart.evaluation import Evaluation
from headstart.feature_cache import FeatureCache
from headstart.features import Extractor, Picture, extract_features, get_top_layer
from headstart.graph import PooledLayer
from headstart.heads.cached import evaluate_head, fit_head, make_evaluation, make_layout, read_features
from headstart.heads.from_file import Head, read_head
from headstart.heads.linear import LinearHead
from headstart.heads.selection import CandidateScore
from headstart.parallel import Progress
from headstart.prediction import Classifier, match_classes
from headstart.preparation import extract_dataset, prepare_dataset, read_settings, stand_in_linear
from headstart.review import Decision

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Subject:
    """`data` holds the pictures with their splits, classes numbered as the classifier does.

    `evaluation` is of the part that nothing was chosen by, None where there is none; `out_of_fold` of the training
    pictures, each predicted by a fit that did not see it, None where the network itself was trained on them. With
    `is_stand_in` these fits are linear heads in a dense one's place: good for judging labels, not for judging the head.
    `scores` are the candidates of the choice of layers, where it was made in this run.
    """

    classifier: Classifier
    settings: TrainSettings
    data: DataReport
    head: Head
    extractor: Extractor
    cache: FeatureCache
    evaluation: Evaluation | None
    out_of_fold: Evaluation | None
    num_forward: int
    is_stand_in: bool = False
    scores: tuple[CandidateScore, ...] = ()
    records: dict[str, list[ImageRecord]] = field(default_factory=dict)

    @property
    def is_tuned(self) -> bool:
        return is_tuned(self.classifier)

    @property
    def tested(self) -> list[ImageRecord]:
        """The pictures of `evaluation`."""
        return self.records["test"] or self.records["validation"]

    def read_top(self, records: Sequence[ImageRecord]) -> np.ndarray:
        """float32 (N, C): the top layer's means, in which pictures of a kind lie together."""
        return self.read(records, get_top_layer(self.extractor.layout))

    def read(self, records: Sequence[ImageRecord], layers: Sequence[PooledLayer]) -> np.ndarray:
        """float32 (N, D): the layers' features side by side."""
        return read_features([record.sha256 for record in records], layers, self.extractor, self.cache)

    def open_rows(self, records: Sequence[ImageRecord], layers: Sequence[PooledLayer] | None = None) -> Any:
        """As `read`, or `read_top` without layers, but only what is indexed is read: for many pictures."""
        return _CachedRows(self, records, layers or get_top_layer(self.extractor.layout))


@dataclass(frozen=True, eq=False)
class _CachedRows:
    """Looks like float32 (N, D); a slice or row numbers give an array."""

    subject: Subject
    records: Sequence[ImageRecord]
    layers: Sequence[PooledLayer]
    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.records), sum(map(self.subject.extractor.layout.count_features, self.layers))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, part: slice | np.ndarray) -> np.ndarray:
        return self.subject.read([self.records[row] for row in np.arange(len(self))[part].tolist()], self.layers)


def is_tuned(classifier: Classifier) -> bool:
    """Whether the network inside was fine-tuned on the training pictures."""
    return classifier.metadata.settings.get("finetune", {}).get("kept") == "tuned"


def open_subject(
    classifier: Classifier,
    source: Any,
    cache: FeatureCache,
    progress: Progress,
    decisions: Sequence[Decision] = (),
    **options: Any,
) -> Subject:
    """The classifier with the pictures of its training, or with others of the same classes.

    `source` and `options` are those of `scan_dataset`; the pictures are labelled and divided as the training does it.
    Features that are not cached are computed; linear heads are fitted again for the predictions out of fold, which
    takes a second. Raises DataError when the classes differ or one has too few pictures, ConfigError for a file that
    headstart did not train.
    """
    settings = read_settings(classifier.metadata)
    progress("finding pictures", 0, 0)
    dataset = prepare_dataset(scan_dataset(source, **options), settings, progress, decisions)
    dataset = _number_classes(dataset, classifier.classes)
    extractor = open_extractor(classifier, settings)
    data, extraction = extract_dataset(dataset, extractor, cache, progress)
    records = {name: [record for record in data.dataset.records if record.split == name] for name in SPLITS}
    head = read_head(classifier.metadata, classifier.data)
    held_out = records["test"] or records["validation"]
    progress("evaluating", 0, 0)
    return Subject(
        classifier=classifier,
        settings=settings,
        data=data,
        head=head,
        extractor=extractor,
        cache=cache,
        evaluation=evaluate_head(head, held_out, classifier.classes, extractor, cache) if held_out else None,
        out_of_fold=_predict_out_of_fold(classifier, settings, head, records["train"], extractor, cache, progress),
        num_forward=extraction.num_forward,
        is_stand_in=not isinstance(head, LinearHead),
        records=records,
    )


def open_trained(
    classifier: Classifier, cache: FeatureCache, progress: Progress = lambda stage, done, total: None
) -> Subject:
    """The same for a classifier that was trained in this process: nothing is computed again, but that a fine-tuned
    network sees the pictures that only the one before it has seen."""
    record: Any = classifier.training
    settings, dataset = record.settings, record.report.dataset
    extractor = getattr(record, "extractor", None) or open_extractor(classifier, settings)
    records = {name: [each for each in dataset.records if each.split == name] for name in SPLITS}
    digests = {each.sha256 for each in dataset.records}
    if digests - cache.find_features(cache.get_recipe(extractor.recipe_key, extractor.name), digests):
        pictures = [Picture(each.sha256, each.path) for each in dataset.records]
        extract_features(pictures, extractor, cache, lambda done, total: progress("extracting features", done, total))
    selection = getattr(record, "selection", None)
    out_of_fold = None if is_tuned(classifier) else getattr(record, "out_of_fold", None)
    return Subject(
        classifier=classifier,
        settings=settings,
        data=record.report,
        head=read_head(classifier.metadata, classifier.data),
        extractor=extractor,
        cache=cache,
        evaluation=record.evaluation,
        out_of_fold=out_of_fold,
        num_forward=record.num_forward,
        scores=selection.scores if selection else (),
        records=records,
    )


def _number_classes(dataset: ImageDataset, classes: tuple[str, ...]) -> ImageDataset:
    """The same pictures, labels numbered as in `classes`. Raises DataError that lists all unknown classes."""
    numbers = match_classes(dataset.classes, classes)
    labels = [numbers[name] for name in dataset.classes]
    records = tuple(replace(record, label=labels[record.label]) for record in dataset.records)
    return replace(dataset, classes=classes, records=records)


def open_extractor(classifier: Classifier, settings: TrainSettings) -> Extractor:
    """The one of the training, whose features are cached, where its network can be had; else the file's own."""
    backbone = _load_same(classifier, settings)
    if backbone is not None:
        return Extractor(backbone, layout=make_layout(backbone, settings))
    return Extractor(read_backbone(classifier.metadata, classifier.data))


def _load_same(classifier: Classifier, settings: TrainSettings) -> Backbone | None:
    if is_tuned(classifier) or "int8" in classifier.metadata.settings:  # not the network of the catalog any more
        return None
    try:
        backbone = load_backbone(settings.backbone, settings.input_size_px, settings.weights)
    except HeadstartError:  # weights from a file that is elsewhere, or a package that is not installed
        return None
    return backbone if backbone.sha256 == classifier.metadata.backbone["sha256"] else None


def _predict_out_of_fold(
    classifier: Classifier,
    settings: TrainSettings,
    head: Head,
    records: list[ImageRecord],
    extractor: Extractor,
    cache: FeatureCache,
    progress: Progress,
) -> Evaluation | None:
    if is_tuned(classifier) or not records:
        return None
    if isinstance(head, LinearHead):
        settings, layers = replace(settings, penalty=head.penalty), head.layers
    else:  # a linear head on the means of the same layer stands in for the dense one
        settings = stand_in_linear(settings)
        layers = (PooledLayer(head.layers[0].layer, 1),)
    selection = fit_head(records, len(classifier.classes), extractor, cache, settings, progress, candidates=[layers])
    return make_evaluation(classifier.classes, records, selection.out_of_fold_probs)
