"""From a scanned source to what a head is fitted on: pictures hashed, labelled as a review decided, without copies,
divided, their features cached."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace

from headstart.artifact import ArtifactMetadata
from headstart.config import TrainSettings
from headstart.data_check import (
    DataReport,
    check_classes,
    check_pictures,
    hash_images,
    leave_out,
    resolve_duplicates,
)
from headstart.dataset import ImageDataset
from headstart.errors import ConfigError
from headstart.feature_cache import FeatureCache
from headstart.features import Extraction, Extractor, Picture, extract_features
from headstart.parallel import Progress, count_cpus
from headstart.review import Decision, apply_decisions
from headstart.splits import split_dataset


def prepare_dataset(
    dataset: ImageDataset, settings: TrainSettings, progress: Progress, decisions: Sequence[Decision] = ()
) -> ImageDataset:
    """The scanned pictures as a training sees them: the same settings and decisions divide them in the same way."""
    dataset = hash_images(
        dataset, num_threads=count_cpus(), on_progress=lambda done, total: progress("reading files", done, total)
    )
    if decisions:
        dataset = apply_decisions(dataset, decisions)
    return split_dataset(resolve_duplicates(dataset), test_frac=settings.test_frac, seed=settings.seed)


def extract_dataset(
    dataset: ImageDataset, extractor: Extractor, cache: FeatureCache, progress: Progress
) -> tuple[DataReport, Extraction]:
    """See that the cache holds the features of all that decodes, and say what is wrong with the data.

    Raises DataError for a class that is left with too few pictures.
    """
    pictures = [Picture(record.sha256, record.path) for record in dataset.records]
    extraction = extract_features(
        pictures, extractor, cache, lambda done, total: progress("extracting features", done, total)
    )
    dataset = leave_out(dataset, extraction.failures)
    warnings = check_classes(dataset)
    spec = extractor.backbone.preprocess
    report = check_pictures(dataset, extraction.facts, spec.crop_frac, spec.input_size_px)
    return replace(report, problems=(*warnings, *report.problems)), extraction


def read_settings(metadata: ArtifactMetadata) -> TrainSettings:
    """The settings of a classifier's training; of a file of weights the name alone. Raises ConfigError where the file
    does not tell them."""
    if not metadata.settings:
        raise ConfigError("The file does not say how it was trained: another tool made it. Train a classifier anew.")
    told = {item.name: metadata.settings[item.name] for item in fields(TrainSettings) if item.name in metadata.settings}
    told |= {name: tuple(told[name]) for name in ("hidden", "dropout") if name in told}
    return TrainSettings(**told)


def stand_in_linear(settings: TrainSettings) -> TrainSettings:
    """The same for a linear head that takes a dense one's place, without what is for dense heads only."""
    return replace(
        settings, head="linear", layers="auto", pooling="average", hidden=(), dropout=(), activation="softmax"
    )


def compute_fingerprint(dataset: ImageDataset) -> str:
    """SHA-256 over content, class and split of every picture used; order, names and places play no part."""
    lines = sorted(f"{r.sha256} {r.split} {dataset.classes[r.label]}" for r in dataset.records)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
