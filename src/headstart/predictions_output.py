"""Predictions as rows of a table, CSV, JSON lines or Parquet, and counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np

from headstart._files import show_path, write_atomic
from headstart.csv_text import escape_text, quote_field
from headstart.errors import ImageError, MissingDependencyError

if TYPE_CHECKING:
    from headstart.prediction import Prediction

FORMATS = ("table", "csv", "jsonl", "parquet")
UNSURE, UNKNOWN = "unsure", "none of these"
_ROWS_PER_GROUP = 8_192  # of Parquet: so many are in memory
_SHOWN_CLASSES = 20

Row: TypeAlias = "tuple[str, Prediction | ImageError]"
"""The path of a picture with what the classifier says of it, or with the reason why it says nothing."""


@dataclass(frozen=True, slots=True)
class Doubts:
    """What sets a prediction apart: a familiarity below `unknown_below`, else a top probability below `unsure_below`.

    Both are from 0 to 1. Where the classifier's file tells no familiarity, nothing is unknown.
    """

    unknown_below: float = 0.01
    unsure_below: float = 0.0

    def judge(self, prediction: Prediction) -> str:
        """UNKNOWN, UNSURE or an empty string."""
        if prediction.familiarity is not None and prediction.is_unknown(self.unknown_below):
            return UNKNOWN
        return UNSURE if prediction.probability < self.unsure_below else ""


@dataclass(frozen=True, slots=True)
class Layout:
    """How rows look: one of FORMATS, and how many classes a row of table or JSON lines names.

    A table's paths are padded to `width` characters.
    """

    format: str
    classes: Sequence[str]
    doubts: Doubts
    top: int = 1
    width: int = 0

    def make_header(self) -> str | None:
        """The line before all others, where there is one."""
        if self.format != "csv":
            return None
        names = [f"probability_{name}" for name in self.classes]
        columns = ("path", "predicted", "probability", *names, "familiarity", "error", "doubt")
        return ",".join(quote_field(escape_text(name)) for name in columns)

    def make_line(self, path: str, outcome: Prediction | ImageError) -> str:
        """The row of a picture in any format but Parquet, without a line end."""
        make = {"table": self._make_table, "csv": self._make_csv, "jsonl": self._make_jsonl}[self.format]
        return make(path, outcome)

    def _make_table(self, path: str, outcome: Prediction | ImageError) -> str:
        if isinstance(outcome, ImageError):
            shown = f"{outcome.code}: {outcome.reason}"
        else:
            shown = "   ".join(f"{show_path(label)} {100 * prob:5.1f} %" for label, prob in outcome.get_top(self.top))
            if outcome.familiarity is not None:
                shown += f"   familiarity {100 * outcome.familiarity:5.1f} %"
            if doubt := self.doubts.judge(outcome):
                shown += f"   {doubt}" + ("?" if doubt == UNKNOWN else "")
        return f"{show_path(path):<{self.width}}  {shown}"

    def _make_csv(self, path: str, outcome: Prediction | ImageError) -> str:
        if isinstance(outcome, ImageError):
            fields = ["", "", *("" for _ in self.classes), "", f"{outcome.code}: {outcome.reason}", ""]
        else:
            probs = outcome.probs.astype(str).tolist()
            familiarity = "" if outcome.familiarity is None else f"{outcome.familiarity:.6g}"
            doubt = self.doubts.judge(outcome)
            fields = [outcome.label, str(outcome.probs.max()), *probs, familiarity, "", doubt]
        return ",".join(quote_field(escape_text(field)) for field in (path, *fields))

    def _make_jsonl(self, path: str, outcome: Prediction | ImageError) -> str:
        if isinstance(outcome, ImageError):
            row: dict[str, object] = {"path": path, "error": {"code": outcome.code, "reason": outcome.reason}}
        else:
            best = {label: round(prob, 6) for label, prob in outcome.get_top(self.top)}
            row = {"path": path, "predicted": outcome.label, "probability": round(outcome.probability, 6), "top": best}
            if outcome.familiarity is not None:
                row["familiarity"] = float(f"{outcome.familiarity:.6g}")
            if doubt := self.doubts.judge(outcome):
                row["doubt"] = doubt
        return json.dumps(row)


def write_rows(output: Path, rows: Iterable[Row], layout: Layout) -> None:
    """Write `output` in the layout's format, whole or not at all. Rows go through memory a few at a time.

    Raises MissingDependencyError for Parquet without pyarrow, HeadstartError when it cannot be written.
    """
    if layout.format == "parquet":
        write_atomic(output, lambda file: _write_parquet(file, iter(rows), layout))
        return
    header = layout.make_header()

    def make_lines() -> Iterator[bytes]:
        if header is not None:
            yield header.encode() + b"\n"
        for path, outcome in rows:
            yield layout.make_line(path, outcome).encode() + b"\n"

    write_atomic(output, lambda file: file.writelines(make_lines()))


def _write_parquet(file: BinaryIO, rows: Iterator[Row], layout: Layout) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError("Parquet needs pyarrow: pip install 'headstart[parquet]'") from error
    text, number = pyarrow.string(), pyarrow.float32()
    schema = pyarrow.schema(
        [
            ("path", text),
            ("predicted", text),
            *((f"probability_{name}", number) for name in layout.classes),
            ("familiarity", number),
            ("error", text),
            ("doubt", text),
        ]
    )
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        # One group at least: a file without any has no columns for some readers.
        group = list(islice(rows, _ROWS_PER_GROUP))
        while True:
            probs = np.full((len(group), len(layout.classes)), np.nan, np.float32)
            others: list[tuple[str | float | None, ...]] = []
            for index, (path, outcome) in enumerate(group):
                if isinstance(outcome, ImageError):
                    others.append((escape_text(path), None, None, f"{outcome.code}: {outcome.reason}", None))
                else:
                    probs[index] = outcome.probs
                    doubt = layout.doubts.judge(outcome) or None
                    others.append((escape_text(path), outcome.label, outcome.familiarity, None, doubt))
            first, second, *last = zip(*others, strict=True) if others else [()] * 5
            columns = [first, second, *probs.T, *last]
            arrays = [pyarrow.array(column, each.type) for column, each in zip(columns, schema, strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
            if not (group := list(islice(rows, _ROWS_PER_GROUP))):
                return


@dataclass(slots=True)
class Tally:
    """How many pictures went where: each counts once, in a class, as a doubt or by the reason why it is not usable."""

    classes: Counter[str] = field(default_factory=Counter)
    doubts: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Prediction | ImageError, doubts: Doubts) -> None:
        if isinstance(outcome, ImageError):
            self.refused[outcome.code] += 1
        elif doubt := doubts.judge(outcome):
            self.doubts[doubt] += 1
        else:
            self.classes[outcome.label] += 1

    @property
    def num_failed(self) -> int:
        return self.refused.total()

    @property
    def num_pictures(self) -> int:
        return self.classes.total() + self.doubts.total() + self.num_failed

    def describe(self) -> Iterator[str]:
        """Lines for people: pictures of each class, the most frequent first, then those that are apart or refused."""
        lines = [(show_path(name), count, "") for name, count in self.classes.most_common(_SHOWN_CLASSES)]
        if rest := self.classes.most_common()[_SHOWN_CLASSES:]:
            lines.append((f"{len(rest)} more classes", sum(count for _, count in rest), ""))
        lines += [(f"({name})", count, "") for name, count in sorted(self.doubts.items())]
        if self.num_failed:
            reasons = ", ".join(f"{code} {count:,}" for code, count in self.refused.most_common())
            lines.append(("(not usable)", self.num_failed, f"   {reasons}"))
        width = max((len(name) for name, _, _ in lines), default=0)
        for name, count, note in lines:
            yield f"{name:<{width}}  {count:>9,}  {100 * count / self.num_pictures:5.1f} %{note}"
