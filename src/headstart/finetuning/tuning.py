"""Fine-tune a classifier's network, and keep the result only where a paired test says that it is better."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart._files import compute_sha256, show_path
from headstart.artifact import ArtifactMetadata
from headstart.backbones.catalog import RANDOM_WEIGHTS, Backbone
from headstart.backbones.loading import load_backbone
from headstart.backbones.onnx_export import export_backbone
from headstart.backbones.torch_network import TorchNetwork, load_network
from headstart.config import FitSettings, TrainSettings, make_fit_settings
from headstart.data_check import check_classes
from headstart.dataset import ImageDataset, ImageRecord
from headstart.errors import ConfigError
from headstart.evaluation import Evaluation
from headstart.familiarity import MAX_IMAGES, Familiarity, choose_layer, fit_familiarity
from headstart.feature_cache import FeatureCache
from headstart.features import Extractor, FeatureLayout, Picture, extract_features
from headstart.finetuning.augmentation import find_preset
from headstart.finetuning.checkpoints import start_folder
from headstart.finetuning.cut import WHOLE, CutNetwork, copy_back, cut_network, make_runner
from headstart.finetuning.dense_training import Parameters, calibrate_head, describe_run, split_off_validation
from headstart.finetuning.flip_check import check_flip
from headstart.finetuning.history import plot_history
from headstart.finetuning.layer_table import LayerRow, list_layers
from headstart.finetuning.loop import Part, fit_top
from headstart.finetuning.model import HeadModule, TopModel
from headstart.finetuning.outcome import TuningRecord, compare, make_classifier
from headstart.finetuning.rows import CachedRows, PixelRows, Rows
from headstart.graph import PooledLayer
from headstart.heads.cached import evaluate_head, fit_head, make_layout, read_features
from headstart.heads.dense import DenseHead
from headstart.heads.from_file import Head, read_head
from headstart.parallel import Progress
from headstart.pictures import load_picture
from headstart.prediction import Classifier
from headstart.preparation import compute_fingerprint, extract_dataset, prepare_dataset, read_settings
from headstart.review import Decision

_FLIP_PICTURES = 300


def tune(
    frozen: Classifier,
    dataset: ImageDataset,
    from_layer: str,
    weights: str | None,
    folder: Path | None,
    progress: Progress,
    settings: dict[str, Any],
    decisions: Sequence[Decision] = (),
) -> Classifier:
    """What `headstart.finetune` does, whose arguments these are, with the pictures found and torch at hand."""
    train_settings = _read_settings(frozen.metadata, weights)
    dataset = _prepare(dataset, train_settings, frozen.classes, progress, decisions)
    backbone = _load_backbone(train_settings, frozen.metadata)
    with FeatureCache() as cache, ExitStack() as stack:
        extractor = Extractor(backbone, layout=make_layout(backbone, train_settings))
        report, extraction = extract_dataset(dataset, extractor, cache, progress)
        dataset = report.dataset
        train, validation, held_out = _divide(dataset.records, frozen.metadata, settings)
        fit = choose_fit_settings(len(train), frozen.metadata, settings)
        own_head = read_head(frozen.metadata, frozen.data)
        start = _get_start(own_head, train_settings, train, len(dataset.classes), extractor, cache, progress)
        notes = _list_notes(frozen, dataset, validation, fit)

        progress("cutting the network", 0, 0)
        network = load_network(train_settings.backbone, train_settings.input_size_px, train_settings.weights)
        from_layer = choose_from_layer(network, start.layers, len(train)) if from_layer == "auto" else from_layer
        cut = cut_network(network, WHOLE if from_layer == WHOLE else network.find_entry(from_layer), start.layers)
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "training"
        more = {"from": from_layer, "weights": network.sha256, "head": _digest_head(own_head)}
        # A folder of another training is refused before the frozen part runs over all views.
        start_folder(place, describe_run("fine-tuning", [*train, *validation], asdict(train_settings), fit, **more))
        top = TopModel(cut, HeadModule(_make_logistic(start), _measure_scale(start, train, extractor, cache)))
        parts = _make_parts(cut, train, validation, fit, cache, progress)
        result = fit_top(top, *parts, len(dataset.classes), fit, place, progress)
        plot_history(
            result.history,
            place / "history.png",
            title=f"{train_settings.backbone}, trained from {from_layer}",
            best_epoch=result.best_epoch,
            num_validation=len(validation),
        )

        progress("exporting the network", 0, 0)
        copy_back(cut, {name: tensor for name, tensor in result.weights.items() if "network." in name})
        tuned_backbone = _export(network)
        tuned_extractor = Extractor(tuned_backbone, layout=_make_head_layout(tuned_backbone, start.layers))
        judged = [*validation, *(record for part in held_out.values() for record in part)]
        extract_features(
            [Picture(record.sha256, record.path) for record in judged],
            tuned_extractor,
            cache,
            lambda done, total: progress("evaluating", done, total),
        )
        tuned_head, _ = calibrate_head(top.head, validation, tuned_extractor, cache)

        def evaluate(head: Head, runner: Extractor, part: Sequence[ImageRecord]) -> Evaluation:
            return evaluate_head(head, part, dataset.classes, runner, cache)

        record = TuningRecord(
            report=report,
            comparison=compare(
                evaluate(start, extractor, validation), evaluate(tuned_head, tuned_extractor, validation)
            ),
            frozen={name: evaluate(own_head, extractor, part) for name, part in held_out.items()},
            tuned={name: evaluate(tuned_head, tuned_extractor, part) for name, part in held_out.items()},
            history=result.history,
            best_epoch=result.best_epoch,
            parameters=_count_parameters(top, network),
            settings=train_settings,
            fit_settings=fit,
            from_layer=from_layer,
            notes=notes,
            num_forward=extraction.num_forward,
            layers=_list_layers(cut),
        )
        familiarity = None
        if record.comparison.is_tuned_kept:
            familiarity = _fit_familiarity(tuned_head, train, validation, tuned_extractor, cache, fit.seed, progress)
    return make_classifier(frozen, tuned_backbone, tuned_head, familiarity, record)


def _fit_familiarity(
    head: Head,
    train: Sequence[ImageRecord],
    validation: Sequence[ImageRecord],
    extractor: Extractor,
    cache: FeatureCache,
    seed: int,
    progress: Progress,
) -> Familiarity:
    """The network has seen the training pictures, so how far good ones lie is measured on the validation pictures."""
    rng = np.random.default_rng(seed)
    chosen = [train[index] for index in sorted(rng.permutation(len(train))[:MAX_IMAGES])]
    extract_features(
        [Picture(record.sha256, record.path) for record in chosen],
        extractor,
        cache,
        lambda done, total: progress("measuring familiarity", done, total),
    )
    layer = choose_layer(head.layers, extractor.layout)
    features, unseen = (
        read_features([record.sha256 for record in part], [layer], extractor, cache) for part in (chosen, validation)
    )
    labels = np.array([record.label for record in chosen], np.int64)
    return fit_familiarity(features, labels, np.zeros_like(labels), layer, rng, unseen)


def _prepare(
    dataset: ImageDataset,
    settings: TrainSettings,
    classes: tuple[str, ...],
    progress: Progress,
    decisions: Sequence[Decision],
) -> ImageDataset:
    """The pictures divided as the training divided them. Raises ConfigError where their classes are others."""
    dataset = prepare_dataset(dataset, settings, progress, decisions)
    check_classes(dataset)
    if dataset.classes != classes:
        raise ConfigError(
            f"The pictures have the classes {', '.join(map(show_path, dataset.classes))}; the classifier knows "
            f"{', '.join(map(show_path, classes))}. Fine-tune it on the classes that it was trained on."
        )
    return dataset


def _load_backbone(settings: TrainSettings, metadata: ArtifactMetadata) -> Backbone:
    """The very network that the classifier was made with. Raises ConfigError where the weights are others."""
    backbone = load_backbone(settings.backbone, settings.input_size_px, settings.weights)
    if backbone.sha256 != metadata.backbone["sha256"]:
        raise ConfigError(
            f"The weights of {backbone.name} are not those that the classifier was made with (SHA-256 "
            f"{backbone.sha256[:16]}..., in the file {metadata.backbone['sha256'][:16]}...). "
            "Give the same weights with --weights."
        )
    return backbone


def _list_notes(
    frozen: Classifier, dataset: ImageDataset, validation: Sequence[ImageRecord], fit: FitSettings
) -> tuple[str, ...]:
    notes = []
    if compute_fingerprint(dataset) != frozen.metadata.data["fingerprint"]:
        notes.append("The pictures are not exactly those that the classifier was trained on.")
    if warning := _check_flip(frozen, validation, fit):
        notes.append(warning)
    return tuple(notes)


def choose_fit_settings(num_images: int, metadata: ArtifactMetadata, given: dict[str, Any]) -> FitSettings:
    """FitSettings as they are given, over defaults that suit `num_images` training pictures.

    Where the classifier's head was trained with early stopping, its validation pictures stay what they were.
    """
    earlier = metadata.settings.get("fit", {})
    defaults: dict[str, Any] = {
        "optimizer": "adamw",
        "learning_rate": 3e-4,
        "weight_decay": 0.02,
        "epochs": 6 if num_images >= 3000 else 10,
        "patience": 3,
        "augment": "light",
        "label_smoothing": 0.05,
        "warmup_frac": 0.1,
        "schedule": "cosine",
        "layer_decay": 0.8,
        "ema": True,
        "seed": metadata.settings.get("seed", 0),
    }
    fit = make_fit_settings(given, **defaults)
    return replace(fit, **{name: earlier[name] for name in ("validation_frac", "seed") if name in earlier})


def choose_from_layer(network: TorchNetwork, layers: Sequence[PooledLayer], num_images: int) -> str:
    """The layer from which on training pays with so many pictures: the fewer there are, the nearer to the top.

    With 3000 and more the whole network is trained, with 500 its upper half, with fewer its last quarter; in any case
    the last of the head's `layers`, because what stands above it would change nothing.
    """
    if num_images >= 3000:
        return WHOLE
    names = [layer.name for layer in network.layers if layer.part in ("map", "patches")]
    index = len(names) // 2 if num_images >= 500 else len(names) * 3 // 4
    # What is no map, such as a class token, comes from the top.
    last = max(names.index(each.layer) if each.layer in names else len(names) - 1 for each in layers)
    return names[min(index, last)]


def _read_settings(metadata: ArtifactMetadata, weights: str | None) -> TrainSettings:
    """The settings that the classifier was trained with. Raises ConfigError for a file that does not say them."""
    settings = read_settings(metadata)
    if "finetune" in metadata.settings and metadata.settings["finetune"]["kept"] == "tuned":
        raise ConfigError(
            "This classifier is fine-tuned already. Fine-tune the one that headstart train made; to train longer, give "
            "the same command again with more --epochs."
        )
    if settings.weights in (None, RANDOM_WEIGHTS):
        return settings
    if weights is None:
        raise ConfigError(
            f"The network's weights came from the file {show_path(settings.weights)}. Give it with --weights."
        )
    return replace(settings, weights=weights)


def _divide(
    records: Sequence[ImageRecord], metadata: ArtifactMetadata, given: dict[str, Any]
) -> tuple[list[ImageRecord], list[ImageRecord], dict[str, list[ImageRecord]]]:
    """Training pictures, those to stop and compare by, and the parts that nothing is chosen by.

    The data's validation part is used for choosing only where there is a test part besides; else a share of the
    training pictures is.
    """
    parts = {name: [record for record in records if record.split == name] for name in ("train", "validation", "test")}
    head_was_fitted = "fit" in metadata.settings
    if parts["validation"] and parts["test"] and not head_was_fitted:
        return parts["train"], parts["validation"], {"test": parts["test"]}
    fit = choose_fit_settings(len(parts["train"]), metadata, given)
    chosen, validation = split_off_validation(parts["train"], fit.validation_frac, fit.seed)
    held_out = {name: parts[name] for name in ("test", "validation") if parts[name]}
    return [parts["train"][i] for i in chosen], [parts["train"][i] for i in validation], held_out


def _get_start(
    head: Head,
    settings: TrainSettings,
    train: Sequence[ImageRecord],
    num_classes: int,
    extractor: Extractor,
    cache: FeatureCache,
    progress: Progress,
) -> Head:
    """The head to start from, which has not seen the validation pictures: a linear one is fitted again without them."""
    if isinstance(head, DenseHead):
        return head
    again = replace(settings, penalty=head.penalty)
    return fit_head(train, num_classes, extractor, cache, again, progress, candidates=[head.layers]).head


def _make_logistic(head: Head) -> Head:
    """The same probabilities at temperature 1, where cross-entropy takes up; a dense head was trained there already."""
    if isinstance(head, DenseHead):
        return head
    coef, intercept = head.coef / head.temperature, head.intercept / head.temperature
    return replace(head, coef=coef, intercept=intercept, temperature=1.0, kind="linear")


def _digest_head(head: Head) -> str:
    weights = head.weights if isinstance(head, DenseHead) else ((head.coef, head.intercept),)
    return compute_sha256(b"".join(array.tobytes() for pair in weights for array in pair))


def _measure_scale(
    head: Head, train: Sequence[ImageRecord], extractor: Extractor, cache: FeatureCache
) -> np.ndarray | None:
    """1 / standard deviation (D,) of a linear head's features, so that one learning rate suits all of them."""
    if isinstance(head, DenseHead):
        return None
    recipe = cache.get_recipe(extractor.recipe_key, extractor.name)
    chosen = train[:: max(1, len(train) // 1000)]  # spread over the classes: the records come class after class
    rows = cache.read_features(recipe, [record.sha256 for record in chosen])
    features = np.concatenate([extractor.layout.read_block(rows, pooled) for pooled in head.layers], axis=1)
    spread = features.std(axis=0)
    # Values that hardly vary would be blown up by what little noise they have.
    floor = np.median(spread) * 0.1
    return np.asarray(1 / np.maximum(spread, floor if floor > 0 else 1), np.float32)


def _make_parts(
    cut: CutNetwork,
    train: Sequence[ImageRecord],
    validation: Sequence[ImageRecord],
    fit: FitSettings,
    cache: FeatureCache,
    progress: Progress,
) -> tuple[Part, Part]:
    augmentation = find_preset(fit.augment)
    pictures = [[Picture(record.sha256, record.path) for record in part] for part in (train, validation)]
    rows: list[Rows]
    if cut.entry == WHOLE:
        spec = cut.network.preprocess
        rows = [PixelRows(pictures[0], spec, augmentation, fit.seed), PixelRows(pictures[1], spec)]
    else:
        runner = make_runner(cut)
        cached = [
            CachedRows(runner, pictures[0], cache, augmentation, fit.num_views, fit.seed),
            CachedRows(runner, pictures[1], cache),
        ]
        for each in cached:
            each.compute(lambda done, total: progress("running the frozen part", done, total))
        rows = [*cached]
    first, second = (np.array([record.label for record in part], np.int64) for part in (train, validation))
    return Part(rows[0], first), Part(rows[1], second)


def _list_layers(cut: CutNetwork) -> tuple[LayerRow, ...]:
    trained = [name.partition("network.")[2] for name, _ in cut.above.named_parameters()]
    side = cut.network.preprocess.input_size_px
    return tuple(list_layers(cut.network.module, torch.zeros(1, 3, side, side), trained))


def _check_flip(frozen: Classifier, validation: Sequence[ImageRecord], fit: FitSettings) -> str | None:
    if not find_preset(fit.augment).horizontal_flip:
        return None
    # Spread over the classes: the records come class after class.
    chosen = validation[:: max(1, len(validation) // _FLIP_PICTURES)]
    pictures = ((load_picture(record.path, record.sha256).pixels, record.label) for record in chosen)
    return check_flip(frozen.run, pictures, frozen.classes).warning


def _export(network: TorchNetwork) -> Backbone:
    """The fine-tuned network; its digest is that of its tensors."""
    digest = hashlib.sha256(network.sha256.encode())
    for name, tensor in network.module.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    network.module.to(memory_format=torch.contiguous_format)
    network.set_inplace(False)  # the graph gives out every layer
    return replace(export_backbone(network), sha256=digest.hexdigest())


def _make_head_layout(backbone: Backbone, layers: Sequence[PooledLayer]) -> FeatureLayout:
    return FeatureLayout(tuple(layers), tuple(backbone.get_layer(pooled.layer).channels for pooled in layers))


def _count_parameters(top: TopModel, network: TorchNetwork) -> Parameters:
    above = sum(param.numel() for param in top.above.parameters()) if top.above is not None else 0
    layers = [network.get_layer(pooled.layer).layer for pooled in top.cut.head_layers] if top.cut else []
    used = max((layer.num_params or 0 for layer in layers), default=network.num_params)
    return Parameters(above + sum(param.numel() for param in top.head.parameters()), max(0, used - above))
