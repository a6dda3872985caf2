"""A competition's submission file: `id,label` with the probability of one class."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from headstart._files import show_path, write_atomic
from headstart.csv_text import escape_text, quote_field
from headstart.errors import ConfigError, DataError, ImageError, raise_all, suggest
from headstart.predictions_output import Row

_SHOWN = 10


def find_ids(paths: Sequence[str]) -> list[str]:
    """The ids of pictures: file names without folder and extension. Raises DataError where two are the same."""
    ids = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    if len(set(ids)) < len(ids):
        by_id = defaultdict(list)
        for each, path in zip(ids, paths, strict=True):
            by_id[each].append(path)
        twice = [(each, found) for each, found in by_id.items() if len(found) > 1]
        problems = [
            f"--submission takes names as ids, and {show_path(each)} is the id of {len(found)} pictures: "
            f"{show_path(found[0])} and {show_path(found[1])}. Name one folder, or rename them."
            for each, found in twice[:_SHOWN]
        ]
        if len(twice) > _SHOWN:
            problems.append(f"So it is with {len(twice) - _SHOWN:,} more ids.")
        raise_all(DataError, problems)
    return ids


def find_class(label: str, classes: Sequence[str]) -> int:
    """The number of a class. Raises ConfigError where the classifier has none of that name."""
    if label not in classes:
        known = ", ".join(show_path(name) for name in classes[:_SHOWN]) + (", ..." if len(classes) > _SHOWN else "")
        hint = show_path(suggest(label, classes))
        raise ConfigError(
            f"--submission is {show_path(label)}, which is no class of this classifier.{hint} Its classes: {known}."
        )
    return classes.index(label)


def write_submission(output: Path, ids: Sequence[str], rows: Iterable[Row], class_number: int) -> None:
    """Write `output`, whole or not at all: ids in natural order (2 before 10), probabilities as float32 says them.

    `rows` are in the order of `ids`. Raises DataError for pictures that were not predicted: a competition wants all.
    """
    probs: list[str] = []
    failed: list[str] = []
    for path, outcome in rows:
        if isinstance(outcome, ImageError):
            failed.append(f"\n  {show_path(path)}: {outcome.code}: {outcome.reason}")
        else:
            probs.append(str(outcome.probs[class_number]))
    if failed:
        shown = "".join(failed[:_SHOWN])
        more = f"\n  and {len(failed) - _SHOWN:,} more" if len(failed) > _SHOWN else ""
        raise DataError(
            f"{show_path(str(output))} is not written: a submission needs every picture, and {len(failed):,} of "
            f"{len(ids):,} could not be used:{shown}{more}\n"
            "Mend or remove them, and give the same command with --retry."
        )
    order = sorted(range(len(ids)), key=lambda number: _make_key(ids[number]))
    lines = [f"{quote_field(escape_text(ids[number]))},{probs[number]}\n".encode() for number in order]
    write_atomic(output, lambda file: file.writelines([b"id,label\n", *lines]))


def _make_key(text: str) -> list[str | int]:
    return [int(part) if number % 2 else part for number, part in enumerate(re.split("([0-9]+)", text))]
