"""Train a dense head on cached features of the frozen network."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart._files import compute_sha256
from headstart.calibration import apply_temperature, fit_temperature
from headstart.config import FitSettings, TrainSettings
from headstart.dataset import ImageRecord
from headstart.feature_cache import FeatureCache
from headstart.features import Extractor, Picture
from headstart.finetuning.augmentation import find_preset
from headstart.finetuning.checkpoints import start_folder
from headstart.finetuning.history import EpochRow, plot_history
from headstart.finetuning.loop import Part, fit_top
from headstart.finetuning.model import HeadModule, TopModel, draw_dense_head
from headstart.finetuning.rows import CachedRows
from headstart.heads.from_file import Head
from headstart.parallel import Progress
from headstart.splits import assign_folds, get_split_key


@dataclass(frozen=True)
class Parameters:
    """How many numbers training changed, and how many of the network it did not; None where that is not known."""

    trained: int
    frozen: int | None


@dataclass(frozen=True, eq=False)
class FitRecord:
    """The course of a training, and what it says of the pictures that were put aside to stop it.

    `validation` numbers them among the training pictures, `validation_probs` float32 (M, K) are those of the head.
    """

    head: Head
    history: tuple[EpochRow, ...]
    best_epoch: int
    settings: FitSettings
    parameters: Parameters
    validation: np.ndarray
    validation_probs: np.ndarray


def split_off_validation(
    records: Sequence[ImageRecord], validation_frac: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the records to train on, and of those to validate on: about that share of every class.

    It follows from the pictures' contents, so it is the same wherever it is asked for. Raises DataError for classes
    that cannot be divided.
    """
    labels = np.array([record.label for record in records], np.int64)
    keys = [get_split_key(record) for record in records]
    folds = assign_folds(labels, keys, num_folds=max(2, round(1 / validation_frac)), seed=seed)
    return np.flatnonzero(folds != 0), np.flatnonzero(folds == 0)


def describe_run(
    kind: str, records: Sequence[ImageRecord], settings: Any, fit: FitSettings, **more: Any
) -> dict[str, Any]:
    """What decides the course of a training, for `start_folder`; epochs can be raised later."""
    # Split and group decide which pictures are put aside.
    pictures = "\n".join(sorted(f"{each.sha256} {each.label} {each.split} {each.group}" for each in records))
    lasting = {name: value for name, value in asdict(fit).items() if name not in ("epochs", "patience")}
    return {
        "kind": kind,
        "pictures": compute_sha256(pictures.encode("utf-8", "surrogatepass")),
        "settings": settings,
        "fit": lasting,
        "torch": torch.__version__,
        **more,
    }


def calibrate_head(
    module: HeadModule, validation: Sequence[ImageRecord], extractor: Extractor, cache: FeatureCache
) -> tuple[Head, np.ndarray]:
    """The trained head with the temperature that suits the validation pictures, whose features are cached.

    And their logits (M, K) before it.
    """
    recipe = cache.get_recipe(extractor.recipe_key, extractor.name)
    rows = cache.read_features(recipe, [record.sha256 for record in validation])
    logits = module.to_head().compute_logits(rows, extractor.layout)
    labels = np.array([record.label for record in validation], np.int64)
    return module.to_head(fit_temperature(logits, labels)), logits


def fit_dense_head(
    records: Sequence[ImageRecord],
    num_classes: int,
    extractor: Extractor,
    cache: FeatureCache,
    settings: TrainSettings,
    fit: FitSettings,
    folder: Path | None,
    progress: Progress,
) -> FitRecord:
    """Train on cached features; `folder` keeps checkpoints and history (None keeps none).

    `extractor.layout` holds the one layer that the head reads. Raises DataError, ConfigError for a folder of another
    training.
    """
    chosen, held_out = split_off_validation(records, fit.validation_frac, fit.seed)
    labels = np.array([record.label for record in records], np.int64)
    [pooled] = extractor.layout.blocks
    head = draw_dense_head(
        (pooled,),
        extractor.layout.channels[0],
        settings.pooling,
        settings.hidden,
        settings.dropout,
        settings.activation,
        num_classes,
        np.random.default_rng(fit.seed),
    )
    pictures = [Picture(record.sha256, record.path) for record in records]
    train = CachedRows(
        extractor,
        [pictures[i] for i in chosen],
        cache,
        find_preset(fit.augment),
        fit.num_views,
        fit.seed,
    )
    validation = CachedRows(extractor, [pictures[i] for i in held_out], cache)
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "training"
        run = describe_run("dense head", records, asdict(settings), fit, features=extractor.recipe_key)
        start_folder(place, run)
        train.compute(lambda done, total: progress("computing views", done, total))
        model = TopModel(None, HeadModule(head))
        parts = Part(train, labels[chosen]), Part(validation, labels[held_out])
        result = fit_top(model, *parts, num_classes, fit, place, progress)
        plot_history(
            result.history,
            place / "history.png",
            title=f"Dense head on {extractor.name}",
            best_epoch=result.best_epoch,
            num_validation=len(held_out),
        )
    trained, logits = calibrate_head(model.head, [records[i] for i in held_out], extractor, cache)
    frozen = extractor.backbone.get_layer(pooled.layer).num_params
    return FitRecord(
        head=trained,
        history=result.history,
        best_epoch=result.best_epoch,
        settings=fit,
        parameters=Parameters(head.num_params, frozen),
        validation=held_out,
        validation_probs=apply_temperature(logits, trained.temperature).astype(np.float32),
    )
