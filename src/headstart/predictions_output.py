"""Predictions as a table, CSV, JSON lines or Parquet, written as they come."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from headstart._files import show_path, write_atomic
from headstart.errors import ImageError, MissingDependencyError

if TYPE_CHECKING:
    from headstart.prediction import Classifier, Prediction

FORMATS = ("table", "csv", "jsonl", "parquet")


def write_predictions(
    classifier: Classifier,
    paths: Sequence[str],
    format: str,
    output: Path | None,
    top: int = 1,
    unknown_below: float = 0.01,
) -> int:
    """Predict `paths` and write a line for each to `output` (whole or not at all) or to standard output.

    Returns how many could not be predicted; they have a line too, with the reason. A table shows the `top` classes, and
    marks pictures whose familiarity is below `unknown_below`, a share from 0 to 1.
    Raises MissingDependencyError for Parquet without pyarrow.
    """
    num_failed = 0

    def follow() -> Iterator[tuple[str, Prediction | ImageError]]:
        nonlocal num_failed
        for path, outcome in zip(paths, classifier.predict_each(paths), strict=True):
            num_failed += isinstance(outcome, ImageError)
            yield path, outcome

    if format == "parquet":
        assert output is not None
        write_atomic(output, lambda file: _write_parquet(file, classifier.classes, follow()))
        return num_failed
    if format == "csv":
        lines = _format_csv(classifier.classes, follow())
    else:
        lines = (
            _format_jsonl(follow(), top) if format == "jsonl" else _format_table(follow(), paths, top, unknown_below)
        )
    if output is None:
        for line in lines:
            sys.stdout.buffer.write(line.encode("utf-8", "backslashreplace") + b"\n")
            sys.stdout.buffer.flush()
    else:
        write_atomic(output, lambda file: file.writelines(line.encode() + b"\n" for line in lines))
    return num_failed


def _format_table(
    outcomes: Iterator[tuple[str, Prediction | ImageError]], paths: Sequence[str], top: int, unknown_below: float
) -> Iterator[str]:
    width = min(60, max(len(show_path(path)) for path in paths))
    for path, outcome in outcomes:
        if isinstance(outcome, ImageError):
            shown = f"{outcome.code}: {outcome.reason}"
        else:
            shown = "   ".join(f"{show_path(label)} {100 * prob:5.1f} %" for label, prob in outcome.get_top(top))
            if outcome.familiarity is not None:
                shown += f"   familiarity {100 * outcome.familiarity:5.1f} %"
                shown += "   none of these?" if outcome.is_unknown(unknown_below) else ""
        yield f"{show_path(path):<{width}}  {shown}"


def _format_csv(classes: Sequence[str], outcomes: Iterator[tuple[str, Prediction | ImageError]]) -> Iterator[str]:
    from headstart.csv_text import escape_text, quote_field

    names = [f"probability_{name}" for name in classes]
    columns = ("path", "predicted", "probability", *names, "familiarity", "error")
    yield ",".join(quote_field(escape_text(name)) for name in columns)
    for path, outcome in outcomes:
        if isinstance(outcome, ImageError):
            fields = ["", "", *("" for _ in classes), "", f"{outcome.code}: {outcome.reason}"]
        else:
            probs = outcome.probs.astype(str).tolist()
            familiarity = "" if outcome.familiarity is None else f"{outcome.familiarity:.6g}"
            fields = [outcome.label, str(outcome.probs.max()), *probs, familiarity, ""]
        yield ",".join(quote_field(escape_text(field)) for field in (path, *fields))


def _format_jsonl(outcomes: Iterator[tuple[str, Prediction | ImageError]], top: int) -> Iterator[str]:
    for path, outcome in outcomes:
        if isinstance(outcome, ImageError):
            row: dict[str, object] = {"path": path, "error": {"code": outcome.code, "reason": outcome.reason}}
        else:
            best = {label: round(prob, 6) for label, prob in outcome.get_top(max(top, 1))}
            row = {"path": path, "predicted": outcome.label, "probability": round(outcome.probability, 6), "top": best}
            if outcome.familiarity is not None:
                row["familiarity"] = float(f"{outcome.familiarity:.6g}")
        yield json.dumps(row)


def _write_parquet(
    file: BinaryIO, classes: Sequence[str], outcomes: Iterator[tuple[str, Prediction | ImageError]]
) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError("Parquet needs pyarrow: pip install 'headstart[parquet]'") from error
    from headstart.csv_text import escape_text

    names, labels, probs, familiarities, errors = [], [], [], [], []
    for path, outcome in outcomes:
        failure = outcome if isinstance(outcome, ImageError) else None
        names.append(escape_text(path))
        errors.append(f"{failure.code}: {failure.reason}" if failure else None)
        labels.append(None if isinstance(outcome, ImageError) else outcome.label)
        familiarities.append(None if isinstance(outcome, ImageError) else outcome.familiarity)
        probs.append(np.full(len(classes), np.nan, np.float32) if isinstance(outcome, ImageError) else outcome.probs)
    columns = {"path": names, "predicted": pyarrow.array(labels, pyarrow.string())}
    for number, name in enumerate(classes):
        columns[f"probability_{name}"] = np.array([row[number] for row in probs], np.float32)
    columns["familiarity"] = pyarrow.array(familiarities, pyarrow.float32())
    columns["error"] = pyarrow.array(errors, pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
