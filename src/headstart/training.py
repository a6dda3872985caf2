"""The recipe: pictures with labels in, an evaluated classifier out. Each stage is called once, in reading order."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart import __version__
from headstart.artifact import ArtifactMetadata, build_artifact
from headstart.backbone_choice import DEFAULT_BUDGET_S, Trial, choose_backbone
from headstart.backbones.catalog import Backbone, is_known_backbone, say_unknown_backbone
from headstart.backbones.listing import list_at_hand
from headstart.backbones.loading import load_backbone
from headstart.config import FitSettings, TrainSettings, apply_preset, make_settings
from headstart.data_check import (
    DataReport,
    check_classes,
)
from headstart.dataset import ImageDataset, scan_dataset
from headstart.decode import DECODER_VERSION
from headstart.errors import ConfigError, raise_all
from headstart.evaluation import Evaluation
from headstart.feature_cache import FeatureCache
from headstart.features import (
    Extractor,
    FeatureLayout,
)
from headstart.heads.cached import evaluate_head, fit_head, fit_head_familiarity, make_evaluation, make_layout
from headstart.heads.linear import LinearHead, build_classifier
from headstart.heads.selection import Selection
from headstart.onnx_rules import MAX_TENSOR_VALUES
from headstart.parallel import Progress
from headstart.prediction import Classifier
from headstart.preparation import compute_fingerprint, extract_dataset, prepare_dataset, stand_in_linear
from headstart.review import Decision

if TYPE_CHECKING:
    from headstart.finetuning.dense_training import FitRecord, Parameters
    from headstart.heads.dense import DenseHead

_LARGE_FIGURES = ("per_class", "confusion_matrix", "classes")


@dataclass(frozen=True)
class TrainingRecord:
    """What a training leaves besides the classifier.

    A head is either chosen by cross-validation (`selection`) or trained with early stopping (`fit`). `evaluations`
    maps `test` and `validation`, as far as the data have them, to rows per picture; `out_of_fold` holds the training
    pictures that were predicted by a fit that did not see them: all by cross-validation, else those put aside.
    """

    report: DataReport
    head: LinearHead | DenseHead
    selection: Selection | None
    fit: FitRecord | None
    evaluations: dict[str, Evaluation]
    out_of_fold: Evaluation
    num_forward: int
    settings: TrainSettings
    extractor: Extractor | None = field(default=None, repr=False, compare=False)
    """What computed the features, so that a report need not make it again."""
    trials: tuple[Trial, ...] = ()
    """What became of each backbone, the chosen one first, where there was a choice."""

    @property
    def parameters(self) -> Parameters | None:
        """Of a dense head: how many numbers were trained, and how many of the network were not."""
        return self.fit.parameters if self.fit else None

    @property
    def evaluation(self) -> Evaluation | None:
        """The rows that nothing was chosen by: of the test part, else of the validation part."""
        return self.evaluations.get("test", self.evaluations.get("validation"))


def train(
    source: Any,
    *,
    labels: Any = None,
    splits: Any = None,
    groups: Any = None,
    pattern: str | None = None,
    exclude: Sequence[str] = (),
    follow_links: bool = False,
    on_progress: Progress | None = None,
    fit: FitSettings | None = None,
    folder: Path | None = None,
    budget_s: float | None = None,
    decisions: Sequence[Decision] = (),
    preset: str | None = None,
    **settings: Any,
) -> Classifier:
    """Train a classifier on the pictures of `source` and evaluate it on the part that was put aside.

    `source` and the arguments up to `follow_links` are those of `scan_dataset`; `settings` those of TrainSettings. A
    dense head is trained as `fit` says; `folder` keeps its checkpoints and history, so that a stopped training goes on.
    `backbone` may also be "auto", to choose from those whose weights are on this machine, or several names with commas
    between them: they are tried first, in a time that leaves enough of `budget_s` for the training (default 60).
    `preset` "fast" or "best" stands for a backbone and an input size: less time, or more time and more accuracy.
    `decisions` of a review change labels or leave pictures out, here and not in the source.
    Pictures that cannot be used are left out and listed in the classifier's `training.report`. Raises ConfigError for
    settings, DataError for the data as a whole.
    """
    rivals, settings = _take_rivals(apply_preset(preset, settings), budget_s)
    chosen = make_settings(settings)
    _check_kind(chosen, fit)
    progress = on_progress or (lambda stage, done, total: None)
    progress("finding pictures", 0, 0)
    dataset = scan_dataset(
        source, labels=labels, splits=splits, groups=groups, pattern=pattern, exclude=exclude, follow_links=follow_links
    )
    dataset = prepare_dataset(dataset, chosen, progress, decisions)
    check_classes(dataset)  # a class that is too small is told before any network runs
    trials: tuple[Trial, ...] = ()
    if rivals:
        trials = _try_backbones(rivals, dataset, chosen, budget_s or DEFAULT_BUDGET_S, progress)
        chosen = replace(chosen, backbone=trials[0].backbone)
    backbone = load_backbone(chosen.backbone, chosen.input_size_px, chosen.weights)
    extractor = Extractor(backbone, layout=make_layout(backbone, chosen))
    if chosen.head == "dense":
        _check_dense(chosen, extractor.layout, len(dataset.classes))
    with FeatureCache() as cache:
        report, extraction = extract_dataset(dataset, extractor, cache, progress)
        dataset = report.dataset
        parts = {name: [record for record in dataset.records if record.split == name] for name in _SPLITS}
        selection, trained = None, None
        if chosen.head == "dense":
            from headstart.finetuning.dense_training import fit_dense_head

            trained = fit_dense_head(
                parts["train"], len(dataset.classes), extractor, cache, chosen, fit or FitSettings(), folder, progress
            )
            head: LinearHead | DenseHead = trained.head
            records = [parts["train"][index] for index in trained.validation]
            out_of_fold = make_evaluation(dataset.classes, records, trained.validation_probs)
        else:
            selection = fit_head(parts["train"], len(dataset.classes), extractor, cache, chosen, progress)
            head = selection.head
            out_of_fold = make_evaluation(dataset.classes, parts["train"], selection.out_of_fold_probs)
        progress("evaluating", 0, 0)
        evaluations = {
            name: evaluate_head(head, parts[name], dataset.classes, extractor, cache)
            for name in ("validation", "test")
            if parts[name]
        }
        familiarity = fit_head_familiarity(parts["train"], head, extractor, cache, chosen)
    record = TrainingRecord(
        report, head, selection, trained, evaluations, out_of_fold, extraction.num_forward, chosen, extractor, trials
    )
    progress("checking the classifier", 0, 0)
    metadata = replace(make_metadata(dataset, extractor.backbone, record), familiarity=familiarity.to_json())
    data = build_artifact(build_classifier(extractor.backbone, head, familiarity), metadata)
    return Classifier(metadata, data, training=record)


def _take_rivals(settings: dict[str, Any], budget_s: float | None) -> tuple[list[str], dict[str, Any]]:
    """The backbones to choose from, none where one is named, and the settings without them. Raises ConfigError."""
    text = settings.get("backbone")
    is_choice = isinstance(text, str) and (text == "auto" or "," in text)
    if budget_s is not None and not is_choice:
        raise ConfigError("A budget is for choosing a backbone. Use it with backbone 'auto', or with several names.")
    if not is_choice:
        return [], settings
    if budget_s is not None and not budget_s > 0:
        raise ConfigError(f"The budget is {budget_s!r} s. Expected a number above 0.")
    if settings.get("weights") is not None:
        raise ConfigError("`weights` is for one backbone. Name that backbone, or leave the weights out.")
    names = list_at_hand() if text == "auto" else [name.strip() for name in str(text).split(",")]
    raise_all(ConfigError, [say_unknown_backbone(name) for name in names if not is_known_backbone(name)])
    return names, {name: value for name, value in settings.items() if name != "backbone"}


def _try_backbones(
    names: Sequence[str], dataset: ImageDataset, settings: TrainSettings, budget_s: float, progress: Progress
) -> tuple[Trial, ...]:
    if settings.head == "dense":  # compared by what a linear head makes of the same networks
        settings = stand_in_linear(settings)
    records = [record for record in dataset.records if record.split == "train"]
    with FeatureCache() as cache:
        return choose_backbone(
            names, records, len(dataset.classes), settings, cache, budget_s, len(dataset.records), progress
        )


def _check_kind(settings: TrainSettings, fit: FitSettings | None) -> None:
    if settings.head != "dense":
        if fit is not None:
            raise ConfigError(f"A {settings.head} head is not trained in epochs. Leave `fit` out, or use head 'dense'.")
        return
    from headstart.errors import require_torch

    require_torch("A dense head")
    if fit is not None:
        from headstart.finetuning.augmentation import find_preset

        find_preset(fit.augment)


def _check_dense(settings: TrainSettings, layout: FeatureLayout, num_classes: int) -> None:
    """Before any network runs. Raises ConfigError for a head that could not be saved."""
    problems = []
    if settings.activation == "sigmoid" and num_classes != 2:
        problems.append(f"activation is 'sigmoid', which is for 2 classes; there are {num_classes}. Use 'softmax'.")
    sizes = [layout.channels[0] if settings.pooling == "max" else layout.num_features, *settings.hidden, num_classes]
    for before, after in itertools.pairwise(sizes):
        if before * after > MAX_TENSOR_VALUES:
            problems.append(
                f"A dense layer from {before:,} to {after:,} values has {before * after:,} weights. A classifier file "
                f"takes at most {MAX_TENSOR_VALUES:,}. Use fewer units, or pooling 'average'."
            )
    raise_all(ConfigError, problems)


_SPLITS = ("train", "validation", "test")


def make_metadata(dataset: ImageDataset, backbone: Backbone, record: TrainingRecord) -> ArtifactMetadata:
    """What the file says about itself: nothing in it depends on when or where the training ran."""
    head, evaluation = record.head, record.evaluation
    figures = evaluation.compute_figures(record.settings.seed) if evaluation else None
    counts = Counter(r.split for r in dataset.records)
    return ArtifactMetadata(
        labels=dataset.classes,
        preprocess={
            **backbone.preprocess.to_json(),
            "exif": "applied",
            "alpha": "white",
            "decoder_version": DECODER_VERSION,
        },
        backbone={
            "name": backbone.name,
            "sha256": backbone.sha256,
            "licence": backbone.licence,
            "source": backbone.source,
        },
        head=head.to_json(),
        settings=_describe_settings(record),
        data={
            "fingerprint": compute_fingerprint(dataset),
            **{f"num_{name}": counts[name] for name in _SPLITS},
            "num_train_per_class": np.bincount(
                [r.label for r in dataset.records if r.split == "train"], minlength=len(dataset.classes)
            ).tolist(),
        },
        evaluation=figures and {name: value for name, value in figures.items() if name not in _LARGE_FIGURES},
        created_with=f"headstart {__version__}",
    )


def _describe_settings(record: TrainingRecord) -> dict[str, Any]:
    """Those that had a say: nothing of dense heads for others, and nothing that was left open."""
    idle = ("penalty",) if record.fit else ("pooling", "hidden", "dropout", "activation")
    settings = {name: each for name, each in asdict(record.settings).items() if each is not None and name not in idle}
    if record.settings.weights is not None:
        settings["weights"] = Path(record.settings.weights).name  # where it lies is nobody's business
    return {**settings, **({"fit": asdict(record.fit.settings)} if record.fit else {})}
