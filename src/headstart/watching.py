"""Folders that fill: new pictures once they are written completely, and an output to which their rows are added."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from headstart._files import say_os_error, show_path
from headstart.dataset import Problem, list_images
from headstart.errors import ConfigError, DataError, HeadstartError
from headstart.predict_run import GONE, Stamp, read_stamp

_SETTLED_S = 2.0


def check_watched(folders: Sequence[str]) -> None:
    """Before any work. Raises ConfigError for what is no folder, HeadstartError for what cannot be read."""
    for folder in folders:
        if not os.path.isdir(folder):
            raise ConfigError(f"--watch needs folders, and {show_path(folder)} is none. Name a folder that is there.")
        try:
            os.scandir(folder).close()
        except OSError as error:
            raise HeadstartError(f"{show_path(folder)} cannot be read: {say_os_error(error)}.") from None


def watch_folders(
    folders: Sequence[str],
    known: dict[str, Stamp],
    *,
    follow_links: bool = False,
    seconds: float | None = None,
    poll_s: float = 1.0,
    on_problems: Callable[[Sequence[Problem]], None] = lambda problems: None,
) -> Iterator[tuple[list[str], list[Stamp]]]:
    """Paths and stamps of pictures that are new or have changed, sorted, a list for each look that finds some.

    `known` has the stamps of those that are done by absolute path, and is kept up to date. A picture counts as
    written when two looks, `poll_s` or more apart, find the same stamp, and that is at least 2 s old. Ends after
    `seconds`, or never. Folders are looked at again and again: notices of the system differ between systems, and do
    not come from network drives.
    """
    end = None if seconds is None else time.monotonic() + seconds
    seen: dict[str, Stamp] = {}
    while True:
        began = time.monotonic()
        try:
            paths, problems = list_images(list(folders), follow_links=follow_links)
        except DataError:  # no picture yet
            paths, problems = [], []
        on_problems(problems)
        new: dict[str, Stamp] = {}
        for path in paths:
            stamp = read_stamp(path)
            if stamp not in (GONE, known.get(os.path.abspath(path))):
                new[path] = stamp
        ready = [path for path, stamp in new.items() if seen.get(path) == stamp and _is_settled(stamp)]
        seen = new
        if ready:
            known.update((os.path.abspath(path), new[path]) for path in ready)
            yield ready, [new[path] for path in ready]
        # A tree that takes long to walk is walked less often.
        pause_s = max(poll_s, 4 * (time.monotonic() - began)) if not ready else poll_s
        if end is not None:
            pause_s = min(pause_s, end - time.monotonic())
            if pause_s <= 0:
                return
        time.sleep(pause_s)


def _is_settled(stamp: Stamp) -> bool:
    age_s = time.time() - stamp[1] / 1e9
    return not 0 <= age_s < _SETTLED_S  # in the future: another machine's clock


@contextmanager
def open_appended(
    output: Path, header: str | None, last_line: str | None, *, is_new: bool
) -> Iterator[Callable[[str], None]]:
    """A function that adds a line to `output` at once, for as long as the context lasts.

    With `is_new` the file is begun anew. Otherwise a last line that is cut, as after a kill, is removed, and
    `last_line` is added where it is not the last. Raises HeadstartError when it cannot be written.
    """

    def write(line: str) -> None:
        try:
            data = line.encode() + b"\n"
            while data:
                data = data[file.write(data) :]
        except OSError as error:
            raise _say(output, error) from error

    try:
        is_new = is_new or not output.exists()
        file = open(output, "w+b" if is_new else "r+b", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise _say(output, error) from error
    with file:
        known = b"\n" + (last_line or "").encode() + b"\n"
        tail = b"" if is_new else _cut_to_whole_lines(file, len(known))
        if not file.tell() and header is not None:
            write(header)
        if last_line is not None and not is_new and not tail.endswith(known):
            write(last_line)
        yield write


def _cut_to_whole_lines(file: FileIO, num_wanted: int) -> bytes:
    """Cut a file after its last line end and stand there; the `num_wanted` bytes before, or more."""
    size = file.seek(0, os.SEEK_END)
    step = 2**16 + 2 * num_wanted
    while True:
        start = max(0, size - step)
        file.seek(start)
        whole, newline, _ = file.read(size - start).rpartition(b"\n")
        if newline or start == 0:
            file.truncate(start + len(whole) + len(newline))
            file.seek(0, os.SEEK_END)
            return b"\n" * (start == 0) + whole + newline
        step *= 2


def _say(output: Path, error: OSError) -> HeadstartError:
    return HeadstartError(
        f"Cannot write {show_path(str(output))}: {say_os_error(error)}. What was written before is kept. Make room "
        "there or check its permissions, and give the same command again."
    )
