"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from headstart import _files
from headstart._files import show_path, write_atomic
from headstart.errors import HeadstartError


def test_a_file_is_replaced_whole_and_nothing_stays_behind(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    write_atomic(target, b"old")
    write_atomic(target, lambda file: file.writelines([b"n", b"ew"]))
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    write_atomic(target, b"old")

    def fail(file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(HeadstartError, match="No space left on device. Nothing was changed."):
        write_atomic(target, fail)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_path_that_cannot_be_one_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(HeadstartError, match=r"Cannot write .*a\\x00b/x: embedded null"):
        write_atomic(f"{tmp_path}/a\0b/x", b"")


def test_what_was_written_but_not_flushed_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(_files, "sync_folder", fail)
    with pytest.raises(HeadstartError, match="was written, but may not survive a power cut: Input/output error"):
        write_atomic(tmp_path / "x.bin", b"new")
    assert (tmp_path / "x.bin").read_bytes() == b"new"


def test_odd_names_are_shown_with_escapes() -> None:
    assert show_path("a\u202eb\nc\udce9") == "a\\u202eb\\nc\\xe9"
