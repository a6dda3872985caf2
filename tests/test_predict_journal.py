"""The journal of predictions: what comes back, also from a file that was cut anywhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.errors import ConfigError, HeadstartError, ImageError
from headstart.predict_journal import Entry, Journal
from headstart.prediction import Prediction

CLASSES = ("cat", "dog", "emu")
SETTINGS: dict[str, Any] = {"classifier": "ab" * 32}


def make_entry(number: int, path: str | None = None) -> Entry:
    path = path or f"/p/{number}.png"
    probs = np.random.default_rng(number).dirichlet([1, 1, 1]).astype(np.float32)
    return Entry(path, 100 + number, 10**18 + number, Prediction(path, CLASSES, probs, number / 7), f"cat/{number}.png")


def describe(entry: Entry) -> tuple[Any, ...]:
    outcome = entry.outcome
    said: tuple[Any, ...] = (
        (outcome.code, outcome.reason, outcome.path)
        if isinstance(outcome, ImageError)
        else (outcome.name, outcome.classes, outcome.probs.dtype, outcome.probs.tobytes(), outcome.familiarity)
    )
    return (entry.path, entry.size_bytes, entry.mtime_ns, entry.place, *said)


def read(path: Path, **options: Any) -> list[tuple[Any, ...]]:
    with Journal(path, SETTINGS, CLASSES, **options) as journal:
        return [describe(entry) for _, entry in journal.read_all()]


def fill(path: Path, entries: list[Entry]) -> None:
    with Journal(path, SETTINGS, CLASSES) as journal:
        for entry in entries:
            journal.append(entry)


def test_entries_come_back(tmp_path: Path) -> None:
    path = tmp_path / "j"
    odd = "/p/caf\udce9 \n\u202e[red].png"
    probs = np.array([np.nextafter(np.float32(0.1), np.float32(1)), 0.9, 0], np.float32)
    entries = [
        make_entry(0),
        Entry(odd, 0, -1, ImageError("truncated", "the file\nends", odd)),
        Entry("/p/1.png", 2**40, 2**62, Prediction("/p/1.png", CLASSES, probs, None)),
        make_entry(1, "/p/0.png"),
    ]
    with Journal(path, SETTINGS, CLASSES) as journal:
        assert journal.is_new
        offsets = [journal.append(entry) for entry in entries]
        assert [describe(journal.read(offset)) for offset in reversed(offsets)] == [
            describe(entry) for entry in reversed(entries)
        ]
        assert [offset for offset, _ in journal.read_all()] == offsets
    assert read(path) == [describe(entry) for entry in entries]
    assert path.read_bytes().isascii()


def test_a_journal_cut_anywhere_keeps_what_is_whole_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j"
    entries = [make_entry(number) for number in range(3)]
    fill(path, entries)
    whole = path.read_bytes()
    ends = [position + 1 for position, byte in enumerate(whole) if byte == 10]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        # A line that misses its end only is whole.
        kept = [describe(entry) for entry, end in zip(entries, ends[1:], strict=True) if end - 1 <= size]
        if size == ends[0] - 1:
            continue  # see the next test
        fill(path, [make_entry(9)])
        assert read(path) == [*kept, describe(make_entry(9))], size


def test_a_journal_killed_in_its_first_write_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "j"
    fill(path, [])
    header = path.read_bytes()
    path.write_bytes(header[:-1])
    fill(path, [make_entry(1)])
    assert path.read_bytes().startswith(header)
    assert read(path) == [describe(make_entry(1))]


def test_what_is_no_entry_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "j"
    fill(path, [make_entry(0)])
    with open(path, "ab") as file:
        file.write(bytes(50) + b'\n[1]\n{"path": 3}\n"x"\n' + b"[" * 100_000 + b"\n")
    fill(path, [make_entry(1)])
    assert read(path) == [describe(make_entry(0)), describe(make_entry(1))]
    with Journal(path, SETTINGS, CLASSES[:2]) as journal:
        assert [*journal.read_all()] == []  # as many probabilities as other classes


def test_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "j"
    fill(path, [make_entry(0)])
    other = {"classifier": "cd" * 32}
    with pytest.raises(ConfigError, match=r"j is of an unfinished run with another classifier\. Give the same"):
        Journal(path, other, CLASSES)
    assert len(read(path)) == 1
    with Journal(path, SETTINGS, CLASSES) as journal:
        journal.complete(1)
    size = path.stat().st_size
    with Journal(path, SETTINGS, CLASSES) as journal:
        assert journal.is_complete
        assert not journal.is_new
        journal.complete(1)
    assert path.stat().st_size == size, "nothing new, nothing written"
    with Journal(path, other, CLASSES) as journal:
        assert journal.is_new
        assert journal.replaced
        assert not journal.is_complete
        assert [*journal.read_all()] == []


def test_an_entry_after_the_end_makes_a_journal_unfinished(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, SETTINGS, CLASSES) as journal:
        journal.complete(0)
        journal.append(make_entry(0))
    with pytest.raises(ConfigError, match="unfinished"):
        Journal(path, {"classifier": "cd" * 32}, CLASSES)


def test_restart(tmp_path: Path) -> None:
    path = tmp_path / "j"
    fill(path, [make_entry(0)])
    assert read(path, restart=True) == []
    fill(path, [make_entry(0)])
    with pytest.raises(ConfigError, match="^not here$"):
        Journal(path, SETTINGS, CLASSES, restart=True, obstacle="not here")
    assert len(read(path, obstacle="not here")) == 1, "one that goes on is not begun"


@pytest.mark.parametrize("data", [b"notes\n", b"notes", b'{"a": 1}\n', b"\n", b'{"headstart_predictions": 2}\n'])
def test_another_file_is_never_replaced(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(data)
    for restart in (False, True):
        with pytest.raises(ConfigError, match="is not a journal of predictions, so it is not replaced"):
            Journal(path, SETTINGS, CLASSES, restart=restart)
    assert path.read_bytes() == data


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, SETTINGS, CLASSES), pytest.raises(ConfigError, match="is in use: another headstart predict"):
        Journal(path, SETTINGS, CLASSES)
    fill(path, [])


def test_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=r"Cannot use the journal .*no such file or directory"):
        Journal(tmp_path / "none" / "j", SETTINGS, CLASSES)
