"""A saved evaluation: a folder with rows.csv (all), mistakes.csv (a view), rows.parquet (on request), evaluation.json.

evaluation.json, the figures, is written last and holds the SHA-256 of the others: a folder where it matches is whole.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from headstart._files import compute_sha256, write_atomic
from headstart.csv_text import escape_text, unescape_text
from headstart.errors import DataError, MissingDependencyError
from headstart.evaluation import Evaluation, format_header, make_json_ready

FORMAT = "headstart evaluation"
FORMAT_VERSION = 1


def save_evaluation(
    evaluation: Evaluation,
    folder: str | os.PathLike[str],
    *,
    extra: Mapping[str, Any] | None = None,
    parquet: bool = False,
    seed: int = 0,
) -> None:
    """Write evaluation.json, rows.csv, mistakes.csv and, with `parquet`, rows.parquet into `folder`.

    The folder is made, or an evaluation saved earlier is replaced. Any other folder that is not empty is refused
    (DataError) and left as it is. `extra` is kept in evaluation.json; nan and infinity in it become null. Raises
    MissingDependencyError when pyarrow is needed and absent. The same arguments give the same bytes.
    """
    place = Path(folder)
    replaced = find_own_files(place)
    files = {"rows.csv": evaluation.to_csv(), "mistakes.csv": evaluation.mistakes_to_csv()}
    if parquet:
        files["rows.parquet"] = _format_parquet(evaluation)
    summary = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "figures": evaluation.compute_figures(seed),
        "files": {name: {"bytes": len(data), "sha256": compute_sha256(data)} for name, data in files.items()},
        "extra": make_json_ready(extra or {}),
    }
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"Cannot make the folder {place}: {error.strerror}. Choose another place.") from error
    for name, data in files.items():
        write_atomic(place / name, data)
    for name in {"rows.parquet"} & replaced - files.keys():
        (place / name).unlink(missing_ok=True)  # it would show rows of the evaluation that is replaced
    write_atomic(place / "evaluation.json", _format_json(summary))


def load_evaluation(folder: str | os.PathLike[str]) -> Evaluation:
    """The evaluation that was saved in `folder`. Raises DataError when it is absent, incomplete or edited."""
    place = Path(folder)
    try:
        data = (place / "rows.csv").read_bytes()
        summary = _read_summary(place)
        expected = summary["files"]["rows.csv"]["sha256"]
        classes = tuple(map(str, summary["figures"]["classes"]))
    except OSError as error:
        raise DataError(
            f"Cannot read {error.filename}: {error.strerror}. Expected a folder that headstart evaluate has saved."
        ) from error
    except (KeyError, TypeError) as error:
        raise DataError(f"{place / 'evaluation.json'} is incomplete: {error}. Evaluate again.") from error
    if compute_sha256(data) != expected:
        raise DataError(
            f"{place / 'rows.csv'} does not belong to evaluation.json beside it: it was edited, damaged or only partly "
            "replaced. Evaluate again."
        )
    header, *lines = csv.reader(io.StringIO(data.decode(), newline=""))
    if header != format_header(classes):
        raise DataError(f"The columns of {place / 'rows.csv'} are not the classes of evaluation.json. Evaluate again.")
    numbers = {escape_text(name): k for k, name in enumerate(classes)}
    probs = np.fromiter(map(float, chain.from_iterable(line[4:-1] for line in lines)), np.float32)
    return Evaluation(
        classes=classes,
        paths=tuple(unescape_text(line[0]) for line in lines),
        sha256=tuple(unescape_text(line[1]) for line in lines),
        labels=np.array([numbers[line[2]] for line in lines], np.int64),
        probs=probs.reshape(len(lines), len(classes)),
    )


def _format_json(value: Any) -> bytes:
    return (_indent_json(value, "") + "\n").encode("utf-8", "backslashreplace")  # a lone surrogate becomes its escape


def _indent_json(value: Any, margin: str) -> str:
    """As json.dumps with an indent of 2, but a list of numbers on one line, so that a row of the matrix is a row."""
    inner = margin + "  "
    if isinstance(value, dict) and value:
        lines = [f"{inner}{_dump(name)}: {_indent_json(value[name], inner)}" for name in sorted(value)]
        return "{\n" + ",\n".join(lines) + f"\n{margin}}}"
    if isinstance(value, list) and not {type(item) for item in value} <= {int, float, type(None)}:
        lines = [inner + _indent_json(item, inner) for item in value]
        return "[\n" + ",\n".join(lines) + f"\n{margin}]"
    return _dump(value)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _format_parquet(evaluation: Evaluation) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(
            "rows.parquet needs pyarrow, which is not installed. Run: pip install 'headstart[parquet]'"
        ) from error
    names = np.array([escape_text(name) for name in evaluation.classes], object)
    columns = {
        "path": [escape_text(path) for path in evaluation.paths],
        "sha256": list(evaluation.sha256),
        "true": names[evaluation.labels],
        "predicted": names[evaluation.predicted],
        **{f"probability_{name}": evaluation.probs[:, k] for k, name in enumerate(names)},
        "correct": evaluation.correct,
    }
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def find_own_files(place: Path) -> set[str]:
    """The names of an evaluation saved in `place`; DataError unless it is one, or an empty folder, or absent."""
    try:
        if not place.exists() or not any(place.iterdir()):
            return set()
        return set(_read_summary(place).get("files", ()))
    except FileNotFoundError as error:
        raise DataError(
            f"The folder {place} holds files but no evaluation.json: it is not a saved evaluation, or saving one was "
            "interrupted. Nothing was changed. Choose another folder, or empty this one yourself."
        ) from error
    except OSError as error:
        raise DataError(f"Cannot use {place} as a folder: {error.strerror}. Choose another one.") from error


def _read_summary(place: Path) -> dict[str, Any]:
    path = place / "evaluation.json"
    try:
        summary = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}), so this folder is not a saved evaluation.") from error
    if not isinstance(summary, dict) or summary.get("format") != FORMAT:
        raise DataError(f"{path} was not written by headstart. Nothing was changed. Choose another folder.")
    if summary.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {summary.get('format_version')!r}; this headstart knows {FORMAT_VERSION}. "
            "Use the headstart that wrote it, or evaluate again."
        )
    return summary
