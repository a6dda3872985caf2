"""Rows of labelled pictures from CSV, Parquet or columns in memory, before anything is known of the files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from headstart._files import say_os_error, show_path
from headstart.errors import ConfigError, DataError, MissingDependencyError, raise_all

_COLUMN_NAMES = {
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img"),
    "label": ("label", "class", "class_name", "category", "target"),
    "split": ("split", "set", "subset", "partition"),
    "group": ("group", "group_id"),
}
_MAX_LISTED = 100  # bad rows in one message


@dataclass(frozen=True, slots=True)
class TableRow:
    """The cells of one picture as they stand; `where` says which row, for messages."""

    where: str
    path: object
    label: object
    split: object = None
    group: object = None


def to_list(values: Any, name: str) -> list[Any]:
    """A plain list from a list, tuple, NumPy array, or a column of pandas or polars."""
    for method in ("to_list", "tolist"):
        if hasattr(values, method):
            values = getattr(values, method)()
            break
    if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable) or hasattr(values, "columns"):
        raise ConfigError(f"`{name}` must be a list or one column, and is {type(values).__name__}.")
    return list(values)


def make_rows(paths: list[Any], labels: Any, splits: Any, groups: Any) -> list[TableRow]:
    """Rows from columns of the same length. Raises ConfigError that names every column of another."""
    if labels is None:
        raise ConfigError("A list of paths needs `labels`, one per path.")
    columns = {
        name: to_list(values, name) if values is not None else [None] * len(paths)
        for name, values in (("labels", labels), ("splits", splits), ("groups", groups))
    }
    raise_all(
        ConfigError,
        (
            f"There are {len(paths)} paths and {len(values)} {name}. There must be one for each path."
            for name, values in columns.items()
            if len(values) != len(paths)
        ),
    )
    return [
        TableRow(f"index {index}", *cells)
        for index, cells in enumerate(zip(paths, columns["labels"], columns["splits"], columns["groups"], strict=True))
    ]


def read_csv(path: str) -> list[TableRow]:
    """Rows of a UTF-8 file with commas, semicolons or tabs. Raises DataError that lists all malformed lines."""
    shown = show_path(path)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{shown} cannot be read: {say_os_error(error)}.") from None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{shown} is UTF-16 text. Save it as CSV in UTF-8.")
    # Bytes that are not UTF-8 survive in paths, where they may be right, and are refused in class names.
    text = data.decode("utf-8-sig", errors="surrogateescape")
    if not text.strip():
        raise DataError(f"{shown} is empty. Expected a header line with path and label.")
    header_line = next(line for line in text.splitlines() if line.strip())
    headers = {mark: next(csv.reader([header_line], delimiter=mark)) for mark in ",;\t"}
    delimiter = max(headers, key=lambda mark: (len(_find_columns(headers[mark])), len(headers[mark])))
    columns = _require_columns(headers[delimiter], shown)
    rows, bad = [], []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line, num_header = 1, None
    try:
        for cells in reader:
            first_line, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if num_header is None:
                num_header = len(cells)
            elif len(cells) != num_header:
                fields = "1 field" if len(cells) == 1 else f"{len(cells)} fields"
                bad.append(f"line {first_line}: {fields}, the header has {num_header}")
            else:
                values = {role: cells[index].strip() or None for role, index in columns.items()}
                rows.append(TableRow(f"line {first_line}", **values))
    except csv.Error as error:
        cause = "a quote is opened and never closed" if "unexpected end" in str(error) else str(error)
        bad.append(f"line {line}: {cause}")
    raise_bad_rows(shown, bad)
    return rows


def read_parquet(path: str) -> list[TableRow]:
    """Rows of a Parquet file. Raises DataError, and MissingDependencyError where pyarrow is not installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingDependencyError(
            "Reading .parquet files needs pyarrow. Install it with: pip install 'headstart[parquet]'"
        ) from None
    shown = show_path(path)
    try:
        names = pq.read_schema(path).names
        columns = _require_columns(names, shown)
        table = pq.read_table(path, columns=[names[index] for index in columns.values()])
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{shown} is not a Parquet file that can be read ({error}). Write it again, or give a CSV file."
        ) from None
    cells = {role: table.column(names[index]).to_pylist() for role, index in columns.items()}
    return [
        TableRow(f"row {number}", **dict(zip(cells, values, strict=True)))
        for number, values in enumerate(zip(*cells.values(), strict=True), start=1)
    ]


def _find_columns(header: Sequence[str]) -> dict[str, int]:
    """Role to column. Of several names for one role the first of `_COLUMN_NAMES` counts."""
    names = [name.strip().lower() for name in header]
    return {
        role: names.index(next(name for name in known if name in names))
        for role, known in _COLUMN_NAMES.items()
        if set(known) & set(names)
    }


def _require_columns(header: Sequence[str], shown: str) -> dict[str, int]:
    columns = _find_columns(header)
    missing = [role for role in ("path", "label") if role not in columns]
    if missing:
        names = ", ".join(repr(show_path(name.strip())) for name in header)
        raise DataError(
            f"{shown} has no column {' and no column '.join(missing)}. Its header has {names}. Expected 'path' and "
            "'label', and optionally 'split' and 'group'."
        )
    return columns


def raise_bad_rows(shown: str, bad: Sequence[str]) -> None:
    """Raise DataError that lists the first hundred of `bad`; return when there is none."""
    if bad:
        lines = [*bad[:_MAX_LISTED], *([f"and {len(bad) - _MAX_LISTED} more"] if len(bad) > _MAX_LISTED else [])]
        rows = "1 bad row" if len(bad) == 1 else f"{len(bad)} bad rows"
        raise DataError(f"{shown} has {rows}:\n" + "\n".join(f"  {line}" for line in lines))
