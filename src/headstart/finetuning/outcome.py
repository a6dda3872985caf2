"""What comes of a fine-tuning: which of the two networks is kept, why, and the classifier that says so."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx

from headstart.artifact import FORMAT_VERSION, ArtifactMetadata, build_artifact
from headstart.backbones.catalog import Backbone
from headstart.config import FitSettings, TrainSettings
from headstart.data_check import DataReport
from headstart.evaluation import Evaluation
from headstart.familiarity import Familiarity
from headstart.finetuning.dense_training import Parameters
from headstart.finetuning.history import EpochRow
from headstart.finetuning.layer_table import LayerRow
from headstart.heads.from_file import Head
from headstart.heads.linear import build_classifier
from headstart.prediction import Classifier
from headstart.stats import mcnemar_exact

MAX_P_VALUE = 0.05
"""The fine-tuned network replaces the frozen one where the paired test gives less."""


@dataclass(frozen=True)
class Comparison:
    """Frozen and fine-tuned on the same validation pictures, which neither was fitted on.

    `p_value` is of McNemar's exact test. `is_tuned_kept` says which of the two the file holds, `reason` why.
    """

    num_images: int
    num_correct_frozen: int
    num_correct_tuned: int
    p_value: float
    is_tuned_kept: bool
    reason: str


@dataclass(frozen=True, eq=False)
class TuningRecord:
    """What a fine-tuning leaves besides the classifier.

    `frozen` and `tuned` are their rows on the part that nothing was chosen by, as far as the data have one;
    `evaluations` holds those of the one that was kept. `notes` are worth a person's attention.
    """

    report: DataReport
    comparison: Comparison
    frozen: dict[str, Evaluation]
    tuned: dict[str, Evaluation]
    history: tuple[EpochRow, ...]
    best_epoch: int
    parameters: Parameters
    settings: TrainSettings
    fit_settings: FitSettings
    from_layer: str
    notes: tuple[str, ...]
    num_forward: int
    layers: tuple[LayerRow, ...]

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        return self.tuned if self.comparison.is_tuned_kept else self.frozen

    @property
    def evaluation(self) -> Evaluation | None:
        return next(iter(self.evaluations.values()), None)


def compare(frozen: Evaluation, tuned: Evaluation) -> Comparison:
    """Whether the fine-tuned one may replace the frozen one, on the same pictures."""
    count, before, after = len(frozen.labels), int(frozen.correct.sum()), int(tuned.correct.sum())
    p_value = mcnemar_exact(frozen.correct, tuned.correct)
    is_better = after > before and p_value < MAX_P_VALUE
    shown = (
        f"{after:,} instead of {before:,} of {count:,} validation pictures are right (paired test: p = {p_value:.2g})"
    )
    if is_better:
        reason = f"Fine-tuned is better: {shown}."
    elif after > before:
        reason = f"The frozen one is kept: {shown}, which may be chance."
    else:
        reason = f"The frozen one is kept: fine-tuned is not better, {shown}."
    return Comparison(count, before, after, p_value, is_better, reason)


def make_classifier(
    frozen: Classifier, backbone: Backbone, head: Head, familiarity: Familiarity | None, record: TuningRecord
) -> Classifier:
    """The one that was kept: the tuned network with its head and familiarity, or the frozen one's graph as it is."""
    metadata = _make_metadata(frozen.metadata, backbone, head, record)
    if record.comparison.is_tuned_kept:
        graph = build_classifier(backbone, head, familiarity)
        told = familiarity.to_json() if familiarity else None
        metadata = replace(metadata, familiarity=told, format_version=FORMAT_VERSION)
    else:
        graph = onnx.load_model_from_string(frozen.data)
    return Classifier(metadata, build_artifact(graph, metadata), training=record)


def _make_metadata(frozen: ArtifactMetadata, backbone: Backbone, head: Head, record: TuningRecord) -> ArtifactMetadata:
    comparison = record.comparison
    kept = "tuned" if comparison.is_tuned_kept else "frozen"
    both = {
        name: {"n": len(each.labels), "num_correct": int(each.correct.sum())}
        for name, part in (("frozen", record.frozen), ("tuned", record.tuned))
        for each in [next(iter(part.values()), None)]
        if each is not None
    }
    tuning = {"kept": kept, "from": record.from_layer, **asdict(record.fit_settings)}
    evaluation = dict(frozen.evaluation or {})
    if comparison.is_tuned_kept and record.evaluation is not None:
        figures = record.evaluation.compute_figures(record.settings.seed)
        evaluation = {name: figures[name] for name in evaluation or figures if name in figures}
    evaluation["finetune"] = {**asdict(comparison), **both}
    changed: dict[str, Any] = {}
    if comparison.is_tuned_kept:
        changed["backbone"] = {**frozen.backbone, "sha256": backbone.sha256}
        changed["head"] = head.to_json()
    return replace(frozen, settings={**frozen.settings, "finetune": tuning}, evaluation=evaluation or None, **changed)
