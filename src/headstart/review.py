"""Decisions on labels: a journal beside the classifier, which the next training applies. No picture is touched.

The journal, MODEL.review.jsonl, is a line of JSON for each decision or undo, appended and flushed to disk at once, so
that a kill leaves whole lines and at most one that is cut, which reading ignores and reports.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headstart._files import say_os_error, show_path, sync_folder
from headstart.csv_text import unescape_text
from headstart.dataset import ImageDataset, ImageRecord, Problem
from headstart.errors import DataError, HeadstartError, raise_all, suggest
from headstart.tables import raise_bad_rows

DECISIONS = ("keep", "relabel", "leave-out")
_COLUMNS = ("path", "sha256", "label", "decision", "new_label")
_NAMES = {"keep": "kept", "relabel": "relabelled", "leave-out": "left out"}


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to become of a picture's label: `decision` is one of DECISIONS; `new_label` goes with "relabel" only.

    `sha256` of the file and the class name `label` say which picture with which label was judged; `path` is where it
    was seen. `time` is UTC in ISO form, or empty until the decision is written.
    """

    sha256: str
    path: str
    label: str
    decision: str
    new_label: str | None = None
    time: str = ""


@dataclass(frozen=True, slots=True)
class Journal:
    """Decisions that were not taken back, in the order they were taken, and what could not be read."""

    decisions: tuple[Decision, ...] = ()
    problems: tuple[Problem, ...] = ()


def find_journal(target: Path) -> Path:
    """Where decisions for the classifier `target` are kept, whether or not the file exists."""
    return target.with_suffix(".review.jsonl")


def read_decisions(path: str | os.PathLike[str]) -> Journal:
    """The journal at `path`, empty where there is none. Lines that are cut are ignored and listed as warnings.

    Raises DataError when the file cannot be read, and for whole lines that are no decisions, all at once.
    """
    shown = show_path(os.fspath(path))
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return Journal()
    except (OSError, ValueError) as error:
        raise DataError(f"{shown} cannot be read: {say_os_error(error)}.") from None
    decisions: list[Decision] = []
    problems: list[Problem] = []
    bad: list[str] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            text = f"line {number} is not whole, as after a crash, and is ignored"
            problems.append(Problem("cut-line", text, os.fspath(path), "warning"))
            continue
        if fault := _find_fault(entry, ("undo", *DECISIONS)):
            bad.append(f"line {number}: {fault}")
        elif entry["decision"] != "undo":
            decisions.append(Decision(**{name: entry.get(name) for name in Decision.__slots__}))
        elif (last := _find_last(decisions, entry["sha256"])) is not None:
            del decisions[last]
    raise_all(DataError, [f"{shown} is not a journal of decisions: {text}. Mend or remove the line." for text in bad])
    return Journal(tuple(decisions), tuple(problems))


def _find_fault(entry: Any, kinds: Sequence[str]) -> str | None:
    """What is wrong with a line of the journal or of a table, if anything."""
    if not isinstance(entry, dict):
        return "expected an object"
    for name in ("sha256", "path", "label", "decision", "time"):
        if not isinstance(entry.get(name), str):
            return f"{name} is {entry.get(name)!r}, expected a text"
    if not re.fullmatch("[0-9a-f]{64}", entry["sha256"]):
        return f"sha256 is {entry['sha256']!r}, expected 64 hexadecimal digits"
    if entry["decision"] not in kinds:
        return f"decision is {entry['decision']!r}, expected one of {', '.join(kinds)}"
    new = entry.get("new_label")
    if entry["decision"] != "relabel":
        return None if new is None else f"new_label is {new!r}, which goes with relabel only"
    if not isinstance(new, str) or new in ("", entry["label"]):
        return f"new_label is {new!r}, expected another class than the label"
    return None


def _find_last(decisions: Sequence[Decision], *names: str) -> int | None:
    """The last decision on a picture, by SHA-256 or path; on any picture where no name is given."""
    for index in reversed(range(len(decisions))):
        decision = decisions[index]
        if not names or {decision.sha256, decision.path, show_path(decision.path)} & set(names):
            return index
    return None


def append_decisions(path: str | os.PathLike[str], decisions: Iterable[Decision]) -> None:
    """Add decisions to the journal at `path`; they are on disk when this returns.

    A later decision on a picture replaces an earlier one. Raises DataError that lists
    what is not a decision (nothing is written then), HeadstartError when the file cannot be written.
    """
    entries = [asdict(decision) for decision in decisions]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    faults = [_find_fault(entry, DECISIONS) for entry in entries]
    raise_all(DataError, [f"Decision {number}: {text}." for number, text in enumerate(faults, start=1) if text])
    _append(Path(path), [{**entry, "time": entry["time"] or now} for entry in entries])


def undo(path: str | os.PathLike[str], picture: str | None = None) -> Decision:
    """Take back the last decision, or the last on `picture` (path or SHA-256), and return it.

    The journal gets a line more; an earlier decision on the same picture counts again. Raises DataError when there is
    nothing to take back.
    """
    decisions = read_decisions(path).decisions
    last = _find_last(decisions, *([] if picture is None else [picture]))
    if last is None:
        about = "" if picture is None else f" on {show_path(picture)}"
        raise DataError(f"{show_path(os.fspath(path))} holds no decision{about} that could be taken back.")
    entry = {"decision": "undo", "new_label": None, "time": datetime.now(UTC).isoformat(timespec="seconds")}
    _append(Path(path), [asdict(decisions[last]) | entry])
    return decisions[last]


def _append(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    # ASCII, with escapes for the rest: any text comes back as it was, also bytes that are not UTF-8.
    data = b"".join(json.dumps(entry).encode("ascii") + b"\n" for entry in entries)
    is_new = not path.exists()
    try:
        with open(path, "ab+", buffering=0) as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a line that is cut must not swallow this one
                    data = b"\n" + data
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        if is_new:
            sync_folder(path.parent)
    except (OSError, ValueError) as error:
        raise HeadstartError(
            f"The decision cannot be written to {show_path(str(path))}: {say_os_error(error)}. Make room there, or "
            "check its permissions."
        ) from error


def import_decisions(path: str | os.PathLike[str], classes: Sequence[str] | None = None) -> tuple[Decision, ...]:
    """Decisions from the CSV that the report page downloads: path,sha256,label,decision,new_label.

    Texts are escaped as in an evaluation's CSV. `classes` are the names that a new label may be. Raises DataError that
    lists everything wrong with the table.
    """
    shown = show_path(os.fspath(path))
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{shown} is not UTF-8 text. Export the decisions again, or save the table as UTF-8.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{shown} cannot be read: {say_os_error(error)}.") from None
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)  # spreadsheets change it
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, restkey="rest")
    found: dict[tuple[str, str], Decision] = {}
    bad: list[str] = []
    line = 1
    try:
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{shown} has no column {', '.join(missing)}. Expected {','.join(_COLUMNS)}.")
        line = reader.line_num + 1
        for row in reader:
            where, line = f"line {line}", reader.line_num + 1
            if "rest" in row or None in row.values():
                bad.append(f"{where}: not as many fields as the header has")
                continue
            entry: dict[str, Any] = {name: unescape_text(row[name]) for name in _COLUMNS} | {"time": ""}
            entry["new_label"] = entry["new_label"] or None
            if fault := _find_fault(entry, DECISIONS):
                bad.append(f"{where}: {fault}")
                continue
            decision = Decision(**entry)
            if classes is not None and decision.new_label is not None and decision.new_label not in classes:
                hint = show_path(suggest(decision.new_label, classes))
                bad.append(f"{where}: new_label is {decision.new_label!r}, which is no class.{hint}")
            elif (before := found.setdefault((decision.sha256, decision.label), decision)) != decision:
                bad.append(f"{where}: another decision on the same picture stands above, {before.decision}")
    except csv.Error as error:
        bad.append(f"line {line}: {error}")
    raise_bad_rows(shown, bad)
    return tuple(found.values())


def apply_decisions(dataset: ImageDataset, decisions: Sequence[Decision]) -> ImageDataset:
    """The dataset with its labels as decided; needs hashed records and comes before `resolve_duplicates`.

    Of the decisions on a picture, in the order given, those hold whose label is the picture's or one that an earlier
    of them gave it; the last that holds counts. Left out pictures become a problem each, decisions that hold for no
    picture are ignored, and notes count both. A new label that is no class is a warning, and changes nothing.
    """
    by_picture: defaultdict[str, list[Decision]] = defaultdict(list)
    for decision in decisions:
        by_picture[decision.sha256].append(decision)
    numbers = {name: number for number, name in enumerate(dataset.classes)}
    records: list[ImageRecord] = []
    problems: list[Problem] = []
    holding: set[Decision] = set()
    counts: Counter[str] = Counter()
    for record in dataset.records:
        given = label = dataset.classes[record.label]
        seen, last = {label}, None
        for decision in by_picture.get(record.sha256, ()):
            if decision.label not in seen:
                continue
            holding.add(decision)
            if decision.new_label is not None and decision.new_label not in numbers:
                problems.append(_say_unknown_class(decision, record.path, dataset.classes))
                continue
            last, label = decision, decision.new_label or decision.label
            seen.add(label)
        if last is not None and last.decision == "leave-out":
            day = f", {last.time[:10]}" if last.time else ""
            problems.append(Problem("left-out-by-review", f"left out by a decision of the review{day}", record.path))
            counts["left out"] += 1
            continue
        records.append(replace(record, label=numbers[label]))
        if last is not None:
            counts["relabelled" if label != given else "kept"] += 1
    if total := counts.total():
        each = ", ".join(f"{counts[name]:,} {name}" for name in _NAMES.values() if counts[name])
        problems.append(Problem("review-applied", f"{_count(total)} applied: {each}", None, "note"))
    if ignored := [decision for decision in decisions if decision not in holding]:
        text = (
            f"{_count(len(ignored))} ignored: no picture here has these bytes and this label any more; the first was "
            f"{show_path(ignored[0].path)}"
        )
        problems.append(Problem("review-without-picture", text, None, "note"))
    return replace(dataset, records=tuple(records), problems=(*dataset.problems, *problems))


def _count(number: int) -> str:
    return f"{number:,} {'decision' if number == 1 else 'decisions'} of the review"


def _say_unknown_class(decision: Decision, path: str, classes: Sequence[str]) -> Problem:
    new = decision.new_label or ""
    text = f"the review gives it the label '{show_path(new)}', which is no class.{show_path(suggest(new, classes))}"
    return Problem("unknown-class", text, path, "warning")


def find_settled(decisions: Sequence[Decision]) -> frozenset[tuple[str, str]]:
    """(SHA-256, class name) of the labels that a person has confirmed or given: not to be suspected again."""
    last = {decision.sha256: decision for decision in decisions}
    return frozenset(
        (each.sha256, each.new_label or each.label) for each in last.values() if each.decision != "leave-out"
    )
