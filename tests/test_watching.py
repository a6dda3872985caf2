"""Folders that fill, and an output that grows."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from headstart.dataset import Problem
from headstart.errors import ConfigError, HeadstartError
from headstart.predict_run import Stamp, read_stamp
from headstart.watching import check_watched, open_appended, watch_folders


def age(path: Path, seconds: float = 10) -> Path:
    when = time.time_ns() - int(seconds * 1e9)
    os.utime(path, ns=(when, when))
    return path


def make(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(data)
    return age(path)


def test_pictures_come_once_and_again_when_they_change(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    first = make(folder / "1.png")
    known: dict[str, Stamp] = {}
    looks = watch_folders([str(folder)], known, poll_s=0.01, seconds=30)
    assert next(looks) == ([str(first)], [read_stamp(str(first))])
    make(folder / "notes.txt")
    two = [make(folder / "sub" / "3.png"), make(folder / "2.png")]
    assert next(looks)[0] == sorted(map(str, two))
    age(first, 20)
    paths, stamps = next(looks)
    assert (paths, stamps) == ([str(first)], [read_stamp(str(first))])
    assert set(known) == {str(first), *map(str, two)}
    assert [*watch_folders([str(folder)], known, poll_s=0.01, seconds=0.05)] == []


def test_a_picture_that_is_still_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "1.png"
    path.write_bytes(b"x")
    begun = time.monotonic()
    looks = watch_folders([str(tmp_path)], {}, poll_s=0.02, seconds=30)
    with open(path, "ab") as file:
        file.write(b"more")
    (_, ((size, _),)) = next(looks)
    assert size == 5
    assert time.monotonic() - begun > 1.5, "its time of change was just now"


def test_two_looks_are_needed(tmp_path: Path) -> None:
    make(tmp_path / "1.png")
    assert [*watch_folders([str(tmp_path)], {}, poll_s=0.01, seconds=0)] == []


def test_empty_folders_are_waited_for_and_problems_told(tmp_path: Path) -> None:
    found: list[Problem] = []
    assert [*watch_folders([str(tmp_path)], {}, poll_s=0.01, seconds=0.05, on_problems=found.extend)] == []
    make(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to("nowhere")
    next(watch_folders([str(tmp_path)], {}, poll_s=0.01, on_problems=found.extend))
    assert {problem.code for problem in found} == {"broken-link"}


def test_what_can_be_watched(tmp_path: Path) -> None:
    check_watched([str(tmp_path)])
    for wrong in (make(tmp_path / "1.png"), tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"--watch needs folders, and .* is none"):
            check_watched([str(tmp_path), str(wrong)])


# The output


def append(target: Path, header: str | None, last_line: str | None, *lines: str) -> None:
    with open_appended(target, header, last_line, is_new=False) as add:
        for line in lines:
            add(line)


def test_rows_are_added_at_once(tmp_path: Path) -> None:
    target = tmp_path / "a.csv"
    target.write_text("other")
    with open_appended(target, "head", None, is_new=True) as add:
        assert target.read_text() == "head\n"
        add("é")
        assert target.read_text() == "head\né\n"
    append(target, "head", "é", "2")
    assert target.read_text() == "head\né\n2\n"
    append(target, "head", "3")
    assert target.read_text() == "head\né\n2\n3\n"


def test_an_output_cut_anywhere_goes_on(tmp_path: Path) -> None:
    """A kill cuts the last row only: the journal knows what it was."""
    target = tmp_path / "a.csv"
    for size in range(len("head\n1\n"), len("head\n1\n22\n") + 1):
        target.write_text("head\n1\n22\n"[:size])
        append(target, "head", "22", "3")
        assert target.read_text() == "head\n1\n22\n3\n"
    for size in range(len("head\n1")):
        target.write_text("head\n1\n"[:size])
        append(target, "head", "1")
        assert target.read_text() == "head\n1\n"


def test_an_output_with_long_lines_that_is_gone_or_not_writable(tmp_path: Path) -> None:
    target = tmp_path / "a.jsonl"
    long = "x" * 3 * 2**20
    target.write_text(f"{long}\n{long}")
    append(target, None, long)
    assert target.read_text() == f"{long}\n"
    target.unlink()
    append(target, "head", "1")
    assert target.read_text() == "head\n"
    with pytest.raises(HeadstartError, match="Cannot write"):
        append(tmp_path / "none" / "a", None, None)
