"""Heads on features that are cached: choose, fit, predict, evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headstart import familiarity
from headstart._files import show_path
from headstart.backbones.catalog import Backbone
from headstart.calibration import apply_temperature
from headstart.config import TrainSettings
from headstart.dataset import ImageRecord
from headstart.errors import ConfigError, DataError
from headstart.evaluation import Evaluation
from headstart.familiarity import Familiarity
from headstart.feature_cache import FeatureCache
from headstart.features import (
    Extractor,
    FeatureLayout,
    find_layer,
    get_top_layer,
    list_candidates,
    plan_layout,
    plan_single_layout,
)
from headstart.graph import PooledLayer
from headstart.heads.from_file import Head
from headstart.heads.selection import PENALTIES, Selection, select_head
from headstart.parallel import Progress
from headstart.splits import assign_folds, get_split_key

_ROWS_PER_READ = 1000
# With few pictures the folds are drawn anew until about this many out-of-fold predictions are averaged.
_ENOUGH_OUT_OF_FOLD = 1000
_MAX_REPEATS = 5


def make_layout(backbone: Backbone, settings: TrainSettings) -> FeatureLayout:
    """What to keep of the backbone for the kind of head that is asked for. Raises ConfigError for an unknown layer."""
    if settings.head == "dense":
        return plan_single_layout(backbone, settings.layers, settings.pooling)
    layout = plan_layout(backbone)
    if settings.layers not in ("auto", "top"):
        layer = find_layer(backbone, settings.layers)
        kept = list(dict.fromkeys(block.layer for block in layout.blocks))
        if layer.name not in kept:
            raise ConfigError(
                f"layers is '{layer.name}', which has only {layer.channels} channels. "
                f"For a {settings.head} head choose one of {', '.join(kept)}."
            )
    return layout


def compute_class_weights(labels: np.ndarray, num_classes: int, settings: TrainSettings) -> np.ndarray | None:
    """float64 (K,) with which every class weighs the same; None where pictures are to weigh the same."""
    if settings.class_weights != "balanced":
        return None
    return np.asarray(len(labels) / (num_classes * np.bincount(labels, minlength=num_classes)))


def fit_head(
    records: Sequence[ImageRecord],
    num_classes: int,
    extractor: Extractor,
    cache: FeatureCache,
    settings: TrainSettings,
    progress: Progress,
    candidates: Sequence[tuple[PooledLayer, ...]] | None = None,
) -> Selection:
    """Choose and fit the head on cached features. Raises DataError when a class cannot be spread over folds.

    `candidates` are the layers to choose from; by default the settings say.
    """
    recipe = cache.get_recipe(extractor.recipe_key, extractor.backbone.name)
    labels = np.array([record.label for record in records], np.int64)
    keys = [get_split_key(record) for record in records]
    groups: list[set[str]] = [set() for _ in range(num_classes)]
    for key, label in zip(keys, labels, strict=True):
        groups[label].add(key)
    smallest = min(map(len, groups))
    if smallest < 2:
        raise DataError(_say_few_groups(records, keys, num_classes))
    num_folds = min(settings.num_folds, smallest)
    num_repeats = max(1, min(_MAX_REPEATS, _ENOUGH_OUT_OF_FOLD // len(labels)))
    if candidates is None and settings.layers == "top":
        candidates = [get_top_layer(extractor.layout)]
    elif candidates is None and settings.layers != "auto":
        candidates = [
            layers
            for layers in list_candidates(extractor.layout)
            if len(layers) == 1 and layers[0].layer == settings.layers
        ]
    problem = (
        lambda indices: cache.read_features(recipe, [records[index].sha256 for index in indices]),
        extractor.layout,
        labels,
        np.stack([assign_folds(labels, keys, num_folds=num_folds, seed=settings.seed + r) for r in range(num_repeats)]),
        num_classes,
    )
    penalties = None if settings.penalty == "auto" else (float(settings.penalty),)
    options: dict[str, Any] = {
        "class_weights": compute_class_weights(labels, num_classes, settings),
        "rng": np.random.default_rng(settings.seed),
        "on_progress": progress,
    }
    if settings.head == "svm":
        from headstart.heads.svm import SVM_PENALTIES, select_svm  # scikit-learn takes long to load

        # Its fits are slow, so the layers are chosen by logistic regression, and only the penalty by its own.
        chosen = select_head(*problem, candidates=candidates, **options)
        return select_svm(*problem, candidates=[chosen.head.layers], penalties=penalties or SVM_PENALTIES, **options)
    return select_head(*problem, candidates=candidates, penalties=penalties or PENALTIES, **options)


def _say_few_groups(records: Sequence[ImageRecord], keys: Sequence[str], num_classes: int) -> str:
    """Names a picture of each such class, because the names of the classes are not known here."""
    members = [[i for i, record in enumerate(records) if record.label == k] for k in range(num_classes)]
    examples = [show_path(records[m[0]].path) for m in members if m and len({keys[i] for i in m}) < 2]
    return (
        f"All training pictures of a class are in one group, or are the same picture: those of the class of "
        f"{', '.join(examples) or 'no picture'}. Cross-validation needs at least 2 groups per class, so that one can "
        "test the other. Add pictures, or use smaller groups."
    )


def evaluate_head(
    head: Head,
    records: Sequence[ImageRecord],
    classes: tuple[str, ...],
    extractor: Extractor,
    cache: FeatureCache,
) -> Evaluation:
    """Rows of pictures whose features are cached."""
    probs = compute_probs(head, [record.sha256 for record in records], extractor, cache)
    return make_evaluation(classes, records, probs)


def fit_head_familiarity(
    records: Sequence[ImageRecord], head: Head, extractor: Extractor, cache: FeatureCache, settings: TrainSettings
) -> Familiarity:
    """How the pictures that the head was fitted on lie around each other, by folds of their own."""
    recipe = cache.get_recipe(extractor.recipe_key, extractor.backbone.name)
    labels = np.array([record.label for record in records], np.int64)
    keys = [get_split_key(record) for record in records]
    num_folds = max(2, min(settings.num_folds, len(set(keys))))
    return familiarity.fit_head_familiarity(
        head.layers,
        lambda indices: cache.read_features(recipe, [records[index].sha256 for index in indices]),
        extractor.layout,
        labels,
        # Not by class: one that lies in a single fold may be unfamiliar to the others.
        assign_folds(np.zeros_like(labels), keys, num_folds=num_folds, seed=settings.seed),
        np.random.default_rng(settings.seed),
    )


def read_features(
    pictures: Sequence[str], layers: Sequence[PooledLayer], extractor: Extractor, cache: FeatureCache
) -> np.ndarray:
    """float32 (N, D): pooled layers side by side, of pictures (by SHA-256) whose features are cached."""
    recipe = cache.get_recipe(extractor.recipe_key, extractor.backbone.name)
    width = sum(extractor.layout.count_features(pooled) for pooled in layers)
    features = np.empty((len(pictures), width), np.float32)
    for start in range(0, len(pictures), _ROWS_PER_READ):
        rows = cache.read_features(recipe, pictures[start : start + _ROWS_PER_READ])
        blocks = [extractor.layout.read_block(rows, pooled) for pooled in layers]
        features[start : start + len(rows)] = np.concatenate(blocks, axis=1)
    return features


def compute_probs(head: Head, pictures: Sequence[str], extractor: Extractor, cache: FeatureCache) -> np.ndarray:
    """float32 (N, K) of pictures (by SHA-256) whose features are cached."""
    recipe = cache.get_recipe(extractor.recipe_key, extractor.backbone.name)
    chunks = []
    for start in range(0, len(pictures), _ROWS_PER_READ):
        rows = cache.read_features(recipe, pictures[start : start + _ROWS_PER_READ])
        logits = head.compute_logits(rows, extractor.layout)
        chunks.append(apply_temperature(logits, head.temperature).astype(np.float32))
    return np.concatenate(chunks)


def make_evaluation(classes: tuple[str, ...], records: Sequence[ImageRecord], probs: np.ndarray) -> Evaluation:
    return Evaluation(
        classes=classes,
        paths=tuple(record.path for record in records),
        sha256=tuple(record.sha256 for record in records),
        labels=np.array([record.label for record in records], np.int64),
        probs=probs,
    )
