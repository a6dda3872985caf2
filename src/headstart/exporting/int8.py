"""The classifier in 8 bits: fitted to pictures of its training, tested against the original on others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from headstart import __version__
from headstart._files import show_path, write_atomic
from headstart.artifact import build_artifact
from headstart.dataset import ImageDataset, ImageRecord
from headstart.errors import ConfigError, DataError, ImageError
from headstart.evaluation import Evaluation
from headstart.exporting.checking import Agreement, ExportRefused, compare_probs, predict_by_both
from headstart.exporting.quantization import check_quantizable, count_convs, measure_maps, quantize
from headstart.exporting.targets import check_file_target
from headstart.metrics import compute_losses
from headstart.parallel import Progress
from headstart.pictures import load_picture
from headstart.prediction import Classifier, match_classes, select_part
from headstart.preparation import prepare_dataset, read_settings
from headstart.review import Decision
from headstart.stats import format_percent, mcnemar_exact, paired_difference_interval, paired_log_loss_interval

NUM_CALIBRATION = 300
EXACT_SHARES = (0.1, 0.4)
"""Shares of the convolutions that stay in floats: where the first agrees too little, the next is tried."""
_LARGE_FIGURES = ("per_class", "confusion_matrix", "classes")


@dataclass(frozen=True, eq=False)
class Int8Export:
    """What became of a classifier in 8 bits, on the same labelled pictures before and after.

    `num_exact` of `num_convs` convolutions stayed in floats. Sizes are in bytes.
    """

    before: Evaluation
    after: Evaluation
    agreement: Agreement
    num_calibration: int
    num_exact: int
    num_convs: int
    size_before: int
    size_after: int

    @property
    def accuracies(self) -> tuple[float, float]:
        return float(self.before.correct.mean()), float(self.after.correct.mean())

    @property
    def loss(self) -> float:
        """Accuracy before minus accuracy after."""
        return (self._only_before - self._only_after) / len(self.before.labels)

    @property
    def loss_interval(self) -> tuple[float, float]:
        return paired_difference_interval(self._only_before, self._only_after, len(self.before.labels))

    @property
    def p_value(self) -> float:
        """Of McNemar's exact test."""
        return mcnemar_exact(self.before.correct, self.after.correct)

    @property
    def log_loss_change(self) -> tuple[float, float]:
        """The interval of the log loss after minus that before, in nats."""
        after, before = (compute_losses(each.labels, each.probs) for each in (self.after, self.before))
        return paired_log_loss_interval(after, before, self.after.probs, self.before.probs)

    @property
    def _only_before(self) -> int:
        return int((self.before.correct & ~self.after.correct).sum())

    @property
    def _only_after(self) -> int:
        return int((self.after.correct & ~self.before.correct).sum())


def export_int8(
    classifier: Classifier,
    path: str | os.PathLike[str],
    calibration: ImageDataset,
    *,
    test: ImageDataset | None = None,
    max_loss: float = 0.005,
    min_agreement: float = 0.99,
    decisions: Sequence[Decision] = (),
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Int8Export:
    """Write the classifier with its convolutions in 8 bits as a classifier file; `load` opens it.

    `calibration` are the scanned pictures of the training, which are divided as the training did it (`decisions` of a
    review included): up to `NUM_CALIBRATION` training pictures, drawn by the training's seed, fit the ranges, and the
    test pictures, else the validation pictures, tell what it costs. `test`, scanned and hashed, takes their place.

    Raises ExportRefused, and writes nothing, where the accuracy falls by more than `max_loss` or fewer than
    `min_agreement` of the pictures keep their class; both are fractions. Raises ConfigError for a network that cannot
    be put in 8 bits, DataError where there are no pictures for either.
    """
    for name, value in (("max_loss", max_loss), ("min_agreement", min_agreement)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} is {value}. Expected a fraction from 0 to 1.")
    target = Path(path)
    check_file_target(target, ".onnx", overwrite)
    model = onnx.load_model_from_string(classifier.data)
    check_quantizable(model)
    settings = read_settings(classifier.metadata)
    divided = prepare_dataset(calibration, settings, progress, decisions)
    if test is None:
        tested, classes = _take_test(divided), divided.classes
    else:
        tested, classes = select_part(test), test.classes
    label_of = match_classes([classes[label] for label in sorted({r.label for r in tested})], classifier.classes)
    rng = np.random.default_rng(settings.seed)
    fitted_on = _draw_calibration(divided, {record.sha256 for record in tested}, rng)
    size = classifier.metadata.preprocess["input_size_px"]

    def decode() -> Any:
        for done, record in enumerate(fitted_on, start=1):
            progress("measuring feature maps", done, len(fitted_on))
            try:
                yield load_picture(record.path, None, 2 * size).pixels
            except ImageError:  # the training left it out, too
                continue

    ranges = measure_maps(model, decode(), rng)
    labels = {record.path: label_of[classes[record.label]] for record in tested}
    digests = {record.path: record.sha256 for record in tested}
    num_convs = count_convs(model)
    for share in EXACT_SHARES:
        num_exact = round(share * num_convs)
        smaller = _build(classifier, quantize(model, ranges, num_exact), {})
        expected, found, paths, left_out = predict_by_both(classifier, partial(_run, smaller), list(labels), progress)
        outcome = Int8Export(
            before=_evaluate(classifier, paths, digests, labels, expected),
            after=_evaluate(classifier, paths, digests, labels, found),
            agreement=compare_probs(expected, found, left_out),
            num_calibration=len(fitted_on),
            num_exact=num_exact,
            num_convs=num_convs,
            size_before=len(classifier.data),
            size_after=len(smaller.data),
        )
        if outcome.loss <= max_loss and outcome.agreement.frac_same_class >= min_agreement:
            break
    _refuse_if_costly(outcome, max_loss, min_agreement)
    write_atomic(target, _describe(classifier, smaller, outcome).data)
    return outcome


def _take_test(divided: ImageDataset) -> list[ImageRecord]:
    records = [record for record in divided.records if record.split == "test"]
    records = records or [record for record in divided.records if record.split == "validation"]
    if not records:
        raise DataError(
            f"{show_path(divided.source)} has no test pictures: the training used them all. Give labelled pictures "
            "with --test-on."
        )
    return records


def _draw_calibration(divided: ImageDataset, tested: set[str], rng: np.random.Generator) -> list[ImageRecord]:
    known = [record for record in divided.records if record.split == "train" and record.sha256 not in tested]
    if not known:
        raise DataError(f"{show_path(divided.source)} has no training pictures besides those that are tested on.")
    chosen = rng.choice(len(known), min(NUM_CALIBRATION, len(known)), replace=False)
    return [known[index] for index in np.sort(chosen)]


def _build(classifier: Classifier, model: onnx.ModelProto, changes: dict[str, Any]) -> Classifier:
    metadata = replace(classifier.metadata, created_with=f"headstart {__version__}", **changes)
    return Classifier(metadata, build_artifact(model, metadata))


def _run(classifier: Classifier, path: str, pixels: np.ndarray) -> np.ndarray:
    return classifier.run(pixels)


def _evaluate(
    classifier: Classifier,
    paths: Sequence[str],
    digests: Mapping[str, str],
    labels: Mapping[str, int],
    probs: np.ndarray,
) -> Evaluation:
    numbers = np.array([labels[path] for path in paths], np.int64)
    return Evaluation(classifier.classes, tuple(paths), tuple(digests[path] for path in paths), numbers, probs)


def _refuse_if_costly(outcome: Int8Export, max_loss: float, min_agreement: float) -> None:
    agreement = outcome.agreement
    problems = []
    if outcome.loss > max_loss:
        low, high = outcome.loss_interval
        problems.append(
            f"the accuracy falls by {100 * outcome.loss:.2f} points (95 % interval {100 * low:.2f} to "
            f"{100 * high:.2f}), and {100 * max_loss:g} were allowed"
        )
    if agreement.frac_same_class < min_agreement:
        problems.append(
            f"{agreement.num_same_class:,} of {agreement.num_checked:,} pictures keep their class "
            f"({format_percent(agreement.frac_same_class)} %), and {100 * min_agreement:g} % were asked for"
        )
    if problems:
        raise ExportRefused(
            f"In 8 bits {'; '.join(problems)}. Nothing was written. Allow more with --max-loss and --min-agreement, or "
            "train with more pictures, so that fewer are in doubt."
        )


def _describe(classifier: Classifier, smaller: Classifier, outcome: Int8Export) -> Classifier:
    """The same with what was done among its settings, and the figures measured on it as its evaluation."""
    accuracy_before, accuracy_after = outcome.accuracies
    done = {
        "made_from_sha256": classifier.sha256,
        "num_calibration": outcome.num_calibration,
        "num_exact_convolutions": outcome.num_exact,
        "num_convolutions": outcome.num_convs,
        "num_tested": outcome.agreement.num_checked,
        "num_same_class": outcome.agreement.num_same_class,
        "accuracy_before": round(accuracy_before, 6),
        "accuracy_after": round(accuracy_after, 6),
    }
    figures = outcome.after.compute_figures(int(classifier.metadata.settings["seed"]))
    changes = {
        "settings": {**classifier.metadata.settings, "int8": done},
        "evaluation": {name: value for name, value in figures.items() if name not in _LARGE_FIGURES},
    }
    return _build(classifier, onnx.load_model_from_string(smaller.data), changes)
