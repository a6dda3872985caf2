"""From a classifier and its pictures to a report: asks every question once and puts the answers in reading order."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnxruntime

from headstart import __version__
from headstart.backbone_choice import Trial
from headstart.backbones.catalog import CATALOG
from headstart.contact_sheet import choose_sheet
from headstart.data_check import DataReport
from headstart.dataset import ImageRecord
from headstart.errors import DataError
from headstart.evaluation import Evaluation
from headstart.features import Picture, get_top_layer
from headstart.finetuning.history import EpochRow, describe_history
from headstart.heads.cached import compute_class_weights, compute_probs
from headstart.heads.linear import LinearHead, describe_layers
from headstart.insight.advice import ClassError, Findings, advise
from headstart.insight.diagnosis import describe_learning_curve, diagnose
from headstart.insight.forecast import Forecast, forecast
from headstart.insight.imagenet_distance import FAR, measure_imagenet_distance
from headstart.insight.learning_curve import LearningCurve, compute_learning_curve
from headstart.insight.mismatch import Mismatch, Side, measure_mismatch
from headstart.insight.mismatch_section import describe_mismatch
from headstart.insight.near_copies import find_near_copies
from headstart.insight.near_copies_section import compare_without, describe_near_copies
from headstart.insight.neighbours import find_neighbours
from headstart.insight.subject import Subject
from headstart.insight.suspects import Suspects, describe_suspects, find_suspects
from headstart.parallel import Progress
from headstart.prediction import Classifier
from headstart.preparation import compute_fingerprint
from headstart.report.content import Gallery, Neighbour, Report, Section
from headstart.report.course import describe_choice, describe_trials, describe_trust
from headstart.report.galleries import MAX_EXPLAINED, explain_mistakes, list_unsure
from headstart.splits import get_split_key
from headstart.stats import format_percent, wilson_interval

_NUM_NEIGHBOURS = 4
_DISTANCE_ROWS = 500
# Training pictures whose features are held at a time, 50 MB: of more, neighbours are sought among an even share, and
# the contact sheet is drawn without features.
_MAX_HELD = 10_000
_MAX_NEAR_COPY_PICTURES = 50_000
# Pictures x features x classes up to which a learning curve takes about a second.
_QUICK_CURVE = 2e7


@dataclass(frozen=True, eq=False)
class Request:
    """What a report is asked to hold.

    `model` and `source` are the arguments of commands that it names. `thorough` adds what takes more than a second or
    two: near-copies and the comparison of training and test pictures. `history` are the epochs of a training.
    """

    model: str
    source: str
    thorough: bool = False
    target_accuracy: float | None = None
    history: Sequence[EpochRow] = ()
    best_epoch: int | None = None
    trials: tuple[Trial, ...] = ()
    settled: frozenset[tuple[str, str]] = frozenset()


@dataclass(eq=False)
class _Answers:
    """What was found out so far; None where it was not asked, or where there is too little to answer it."""

    suspects: Suspects | None = None
    curve: LearningCurve | None = None
    forecast: Forecast | None = None
    mismatch: Mismatch | None = None
    distance: float | None = None
    num_leaking: int = 0
    figures: dict[str, Any] | None = None
    top: np.ndarray | None = None  # of all training pictures, where they are few enough to be held
    sections: list[Section] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)


def build_report(subject: Subject, request: Request, progress: Progress) -> tuple[Report, Suspects | None]:
    """The report of a classifier and the pictures of its training, and the labels that look wrong."""
    figures = subject.evaluation.compute_figures(subject.settings.seed) if subject.evaluation else None
    train = subject.records["train"]
    answers = _Answers(figures=figures, top=subject.read_top(train) if len(train) <= _MAX_HELD else None)
    _add_mistakes(answers, subject, progress)
    _add_suspects(answers, subject, request)
    _add_course(answers, subject, request)
    if request.thorough or _is_quick(subject):
        _add_learning_curve(answers, subject, request, progress)
    if request.thorough:
        _add_near_copies(answers, subject, progress)
        _add_mismatch(answers, subject, progress)
    if subject.settings.weights is None and not subject.is_tuned:
        layout = subject.extractor.layout
        answers.distance = measure_imagenet_distance(subject.settings.backbone, _read_sample(subject), layout)
    classes = subject.classifier.classes
    report = Report(
        title=request.model,
        classes=classes,
        data=subject.data,
        evaluation=subject.evaluation,
        figures=figures,
        headline=_say_headline(subject),
        sheet=tuple(choose_sheet(train, classes, features=answers.top)),
        advice=advise(_collect_findings(answers, subject, request)),
        galleries=tuple(answers.galleries),
        sections=tuple(answers.sections),
        details=_list_details(subject.classifier),
    )
    return report, answers.suspects


def build_evaluation_report(
    classifier: Classifier, evaluation: Evaluation, data: DataReport, title: str, progress: Progress
) -> Report:
    """The report of an evaluation on pictures that the classifier was not trained with."""
    figures = evaluation.compute_figures()
    labels = dict(zip(evaluation.paths, evaluation.labels.tolist(), strict=True))
    evaluated = [replace(each, label=labels[each.path]) for each in data.dataset.records if each.path in labels]
    return Report(
        title=title,
        classes=classifier.classes,
        data=data,
        evaluation=evaluation,
        figures=figures,
        sheet=tuple(choose_sheet(evaluated, classifier.classes)),
        galleries=(explain_mistakes(classifier, evaluation, {}, progress), list_unsure(evaluation)),
        sections=(describe_trust(evaluation, figures),),
        details=_list_details(classifier),
    )


def build_sheet_report(data: DataReport) -> Report:
    """The pictures by class, and what is wrong with them."""
    dataset = data.dataset
    return Report(
        title=dataset.source,
        classes=dataset.classes,
        data=data,
        sheet=tuple(choose_sheet(dataset.records, dataset.classes, per_class=24)),
    )


# Single pictures


def _add_mistakes(answers: _Answers, subject: Subject, progress: Progress) -> None:
    if subject.evaluation is None or answers.figures is None:
        return
    evaluation, train = subject.evaluation, subject.records["train"]
    train = train[:: max(1, -(-len(train) // _MAX_HELD))]
    rows = evaluation.mistakes()[:MAX_EXPLAINED]
    near: dict[str, tuple[Neighbour, ...]] = {}
    if len(rows):
        tested = [subject.tested[row] for row in rows.tolist()]
        held = subject.read_top(train) if answers.top is None else answers.top
        found = find_neighbours(subject.read_top(tested), held, _NUM_NEIGHBOURS)
        for record, indices, similarities in zip(tested, *found, strict=True):
            near[record.sha256] = tuple(
                Neighbour(train[index].path, train[index].label, similarity)
                for index, similarity in zip(indices.tolist(), similarities.tolist(), strict=True)
            )
    answers.galleries.append(explain_mistakes(subject.classifier, evaluation, near, progress))
    answers.galleries.append(list_unsure(evaluation))
    answers.sections.append(describe_trust(evaluation, answers.figures))


def _add_suspects(answers: _Answers, subject: Subject, request: Request) -> None:
    if subject.out_of_fold is None:
        return
    answers.suspects = find_suspects(subject.out_of_fold, settled=request.settled)
    answers.galleries.append(describe_suspects(answers.suspects))


# Sections


def _add_course(answers: _Answers, subject: Subject, request: Request) -> None:
    if request.trials:
        answers.sections.append(describe_trials(request.trials))
    if subject.scores:
        answers.sections.append(describe_choice(subject))
    if request.history:
        plots = describe_history(request.history, best_epoch=request.best_epoch, num_validation=None)
        answers.sections.append(Section("training", "The course of the training", plots=tuple(plots)))


def describe_growth(subject: Subject, request: Request, progress: Progress) -> Section:
    """The learning curve with what it says. Raises DataError where there is none: for other heads, for few pictures."""
    if subject.is_tuned or not isinstance(subject.head, LinearHead):
        raise DataError(
            "A learning curve is drawn by fitting the head again on parts of the pictures. That tells nothing of a "
            "dense head, or of a network that was trained on them: draw it for a linear head."
        )
    answers = _Answers()
    _add_learning_curve(answers, subject, request, progress)
    section = answers.sections[0]
    if answers.curve is None:
        raise DataError(" ".join(section.paragraphs))
    return section


def _is_quick(subject: Subject) -> bool:
    num_features = sum(subject.extractor.layout.count_features(pooled) for pooled in subject.head.layers)
    return len(subject.records["train"]) * num_features * len(subject.classifier.classes) <= _QUICK_CURVE


def _add_learning_curve(answers: _Answers, subject: Subject, request: Request, progress: Progress) -> None:
    if subject.is_tuned or not isinstance(subject.head, LinearHead):
        return
    train = subject.records["train"]
    labels = np.array([record.label for record in train], np.int64)
    num_classes = len(subject.classifier.classes)
    layout = subject.extractor.layout
    rows = answers.top if subject.head.layers == get_top_layer(layout) else None
    try:
        answers.curve = compute_learning_curve(
            subject.open_rows(train, subject.head.layers) if rows is None else rows,
            labels,
            [get_split_key(record) for record in train],
            num_classes,
            penalty=subject.head.penalty,
            block_sizes=[layout.count_features(pooled) for pooled in subject.head.layers],
            class_weights=compute_class_weights(labels, num_classes, subject.settings),
            rng=np.random.default_rng(subject.settings.seed),
            on_progress=lambda done, total: progress("drawing the learning curve", done, total),
        )
    except DataError as error:
        answers.sections.append(Section("learning-curve", "Learning curve", (str(error),)))
        return
    answers.forecast = forecast(answers.curve, rng=np.random.default_rng(subject.settings.seed))
    diagnosis = diagnose(answers.curve, answers.forecast, request.target_accuracy)
    answers.sections.append(
        describe_learning_curve(answers.curve, answers.forecast, diagnosis, subject.classifier.classes)
    )


def _add_near_copies(answers: _Answers, subject: Subject, progress: Progress) -> None:
    records = [record for each in subject.records.values() for record in each]
    if len(records) > _MAX_NEAR_COPY_PICTURES:
        text = f"Not looked for: with more than {_MAX_NEAR_COPY_PICTURES:,} pictures it takes many minutes."
        answers.sections.append(Section("near-copies", "Near-copies", (text,)))
        return
    copies = find_near_copies(
        [Picture(record.sha256, record.path) for record in records],
        subject.open_rows(records),
        on_progress=lambda done, total: progress("looking for near-copies", done, total),
    )
    comparison = None
    if subject.evaluation is not None:
        tested = subject.tested[0].split or ""
        of_test = np.array([record.split == tested for record in records])
        copied = copies.find_copied([record.split for record in records], tested)[of_test]
        answers.num_leaking = int(copied.sum())
        comparison = compare_without(subject.evaluation, copied)
    answers.sections.append(describe_near_copies(copies, records, subject.classifier.classes, comparison))


def _add_mismatch(answers: _Answers, subject: Subject, progress: Progress) -> None:
    if subject.evaluation is None or subject.out_of_fold is None or subject.is_stand_in:
        return
    progress("comparing training and test pictures", 0, 0)
    predicted = set(subject.out_of_fold.paths)  # of a dense head only those put aside
    train = [record for record in subject.records["train"] if record.path in predicted]
    digests = [record.sha256 for record in train]
    answers.mismatch = measure_mismatch(
        _make_side(subject, train, subject.out_of_fold),
        _make_side(subject, subject.tested, subject.evaluation),
        compute_probs(subject.head, digests, subject.extractor, subject.cache),
        np.random.default_rng(subject.settings.seed),
    )
    answers.sections.append(describe_mismatch(answers.mismatch))


def _make_side(subject: Subject, records: list[ImageRecord], evaluation: Evaluation) -> Side:
    keys = [get_split_key(record) for record in records]
    return Side(evaluation.labels, evaluation.probs, subject.open_rows(records), keys, evaluation.paths)


# What stands above all


def _say_headline(subject: Subject) -> tuple[str, ...]:
    lines = []
    if subject.out_of_fold is not None:
        what = "A linear head in its place, cross" if subject.is_stand_in else "Cross"
        lines.append(_say_accuracy(f"{what}-validated on the training pictures", subject.out_of_fold))
    if compute_fingerprint(subject.data.dataset) != subject.classifier.metadata.data["fingerprint"]:
        lines.append("These are not exactly the pictures, labels and parts that the classifier was made with.")
    counts = [
        f"{len(records):,} {'training' if name == 'train' else name}"
        for name, records in subject.records.items()
        if records
    ]
    lines.append(
        f"{' and '.join(counts)} pictures of {len(subject.classifier.classes):,} classes. Backbone "
        f"{subject.settings.backbone}, layers {describe_layers(subject.head.layers)}."
    )
    return tuple(lines)


def _say_accuracy(what: str, evaluation: Evaluation) -> str:
    num_right, count = int(evaluation.correct.sum()), len(evaluation.labels)
    low, high = map(format_percent, wilson_interval(num_right, count))
    return f"{what}: {format_percent(num_right / count)} % (between {low} and {high}, {count:,} pictures)."


def _read_sample(subject: Subject) -> np.ndarray:
    """Rows, as they are cached, of training pictures spread over the classes."""
    train = subject.records["train"]
    chosen = train[:: max(1, len(train) // _DISTANCE_ROWS)]
    recipe = subject.cache.get_recipe(subject.extractor.recipe_key, subject.extractor.name)
    return subject.cache.read_features(recipe, [record.sha256 for record in chosen])


def _list_details(classifier: Classifier) -> dict[str, str]:
    told = classifier.metadata
    details = {f"setting: {name}": str(value) for name, value in told.settings.items()}
    if told.backbone:
        details["backbone"] = f"{told.backbone['name']} ({told.backbone['licence']}, {told.backbone['source']})"
        details["weights, SHA-256"] = told.backbone["sha256"]
        details["data fingerprint"] = str(told.data.get("fingerprint", ""))
    return {
        **details,
        "classifier, SHA-256": classifier.sha256,
        "made by": told.created_with or "another tool",
        "reported by": f"headstart {__version__}, ONNX Runtime {onnxruntime.__version__}, Python "
        f"{platform.python_version()}",
    }


def _collect_findings(answers: _Answers, subject: Subject, request: Request) -> Findings:
    evaluation, train = subject.evaluation, subject.records["train"]
    error = None
    if evaluation is not None:
        num_wrong, count = int((~evaluation.correct).sum()), len(evaluation.labels)
        error = (num_wrong / count, *wilson_interval(num_wrong, count))
    curve, expected, predicted = answers.curve, answers.forecast, subject.out_of_fold
    top = next((score for score in subject.scores if score.layers == get_top_layer(subject.extractor.layout)), None)
    chosen = next((score for score in subject.scores if score.layers == subject.head.layers), None)
    target = request.target_accuracy
    entry = CATALOG.get(subject.settings.backbone)
    return Findings(
        model=shlex.quote(request.model),
        source=shlex.quote(request.source),
        num_train=len(train),
        num_test=len(evaluation.labels) if evaluation else 0,
        error=error,
        train_error=(float(curve.train_error[-1]), float(curve.train_band[-1, 0]), float(curve.train_band[-1, 1]))
        if curve
        else None,
        out_of_fold_error=float((~predicted.correct).mean()) if predicted and not subject.is_stand_in else None,
        now=(expected.now.error, expected.now.low, expected.now.high) if expected else None,
        twice=(expected.then.error, expected.then.low, expected.then.high) if expected else None,
        target_error=None if target is None else 1 - target,
        worst_classes=_rank_classes(expected, subject.classifier.classes) if expected else (),
        imagenet_distance=answers.distance,
        top_gain=chosen.accuracy - top.accuracy if chosen and top else None,
        num_suspects=len(answers.suspects.items) if answers.suspects else 0,
        num_leaking=answers.num_leaking,
        mismatch=_say_mismatch(answers.mismatch) if answers.mismatch and answers.mismatch.is_mismatched else None,
        from_layer=_choose_from_layer(subject, answers.distance),
        backbone_to_tune=entry.float_name if entry and entry.is_int8 else None,
        is_tuned=subject.is_tuned,
    )


def _say_mismatch(mismatch: Mismatch) -> str:
    gap = mismatch.mismatch
    text = (
        f"Test pictures are {format_percent(gap.value)} points harder than unseen training pictures (between "
        f"{format_percent(gap.low)} and {format_percent(gap.high)})."
    )
    telling = [each for each in mismatch.properties if each.p_value < 0.05]
    if telling:
        first = telling[0]
        text += f" They differ most in {first.name} (median {first.median_train:.3g} and {first.median_test:.3g})."
    return text


def _rank_classes(expected: Forecast, classes: Sequence[str]) -> tuple[ClassError, ...]:
    """Those first that are expected to gain most."""
    errors = [
        ClassError(name, now.error, then.error)
        for name, now, then in zip(classes, expected.classes_now, expected.classes_then, strict=True)
        if np.isfinite(now.error)
    ]
    return tuple(sorted(errors, key=lambda each: (each.error_with_twice or 0) - each.error))


def _choose_from_layer(subject: Subject, distance: float | None) -> str:
    """The farther from ImageNet, the earlier; "auto" goes by the number of pictures."""
    if distance is None:
        return "auto"
    stages = [pooled.layer for pooled in subject.head.layers if pooled.layer.startswith("stage")]
    return min(["stage4", *stages]) if distance > FAR else "stage6"
