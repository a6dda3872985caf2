"""The sections on how the classifier came about, and on how far its probabilities can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headstart.backbone_choice import Trial
from headstart.evaluation import Evaluation
from headstart.evaluation_plots import describe_confidence, describe_reliability
from headstart.heads.linear import describe_layers
from headstart.heads.selection import CandidateScore
from headstart.insight.subject import Subject
from headstart.report.content import Section, Table
from headstart.stats import format_percent


def describe_trust(evaluation: Evaluation, figures: Mapping[str, Any]) -> Section:
    claimed, right = format_percent(figures["mean_confidence"]), format_percent(figures["accuracy"]["value"])
    error, chance = format_percent(figures["ece"]["value"]), figures["ece_if_calibrated"]
    text = (
        f"On average it claims {claimed} % and is right in {right} %. Claims and truth are {error} points apart (the "
        "calibration error); with probabilities that are exactly right it would be between "
        f"{format_percent(chance['low'])} and {format_percent(chance['high'])} on as many pictures, by chance."
    )
    plots = (describe_reliability(evaluation, dict(figures)), describe_confidence(evaluation))
    return Section("calibration", "How far to trust a probability", (text,), plots=plots)


def describe_trials(trials: Sequence[Trial]) -> Section:
    """What became of each backbone."""
    rows = tuple(
        (
            trial.backbone,
            f"{trial.num_images:,}" if trial.num_images else "",
            "" if trial.accuracy is None else format_percent(trial.accuracy),
            "" if trial.log_loss is None else f"{trial.log_loss:.3f}",
            "" if trial.ms_per_picture is None else f"{trial.ms_per_picture:.1f}",
            f"{trial.seconds:.1f}",
            trial.outcome,
        )
        for trial in trials
    )
    columns = ("Backbone", "Pictures", "Accuracy %", "Log loss", "Ms per picture", "Seconds in all", "Outcome")
    text = "Tried on growing parts of the training pictures; figures are cross-validated on as many as each saw."
    return Section("backbones", "Backbones tried", (text,), (Table(columns, rows, (1, 2, 3, 4, 5), marked=0),))


def describe_choice(subject: Subject) -> Section:
    def tell(score: CandidateScore) -> tuple[str, ...]:
        return (
            describe_layers(score.layers),
            f"{score.num_features:,}",
            format_percent(score.accuracy),
            f"{score.log_loss:.3f}",
            f"{score.num_images:,}",
            "last round" if score.is_finalist else "quick round",
        )

    scores = subject.scores
    marked = next((n for n, s in enumerate(scores) if s.is_finalist and s.layers == subject.head.layers), None)
    columns = ("Layers and pooling", "Features", "Accuracy %", "Log loss", "Pictures", "Reached")
    text = (
        f"Chosen from {len(scores)} by cross-validation on the training pictures. The top layer, or else the simplest "
        "one, stays unless another is better by more than one standard error. The quick round is least squares on few "
        "numbers: its figures say which are worth the last round, and are not to be compared with those of the last."
    )
    table = Table(columns, tuple(map(tell, scores)), (1, 2, 3, 4), marked)
    return Section("layers", "Layers and pooling", (text,), (table,))
