"""The journal of predictions: a line of JSON for each picture that is done, so that a run that was killed goes on.

A line is written as soon as its picture is done. A kill leaves whole lines and at most one that is cut, which reading
ignores; the lines that count are the last ones of each picture.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart._files import say_os_error, show_path
from headstart.errors import ConfigError, HeadstartError, ImageError
from headstart.prediction import Prediction

_KIND = "headstart_predictions"
_VERSION = 1
_COMPLETE = re.compile(rb'\n\{"complete": \d+\}\n$')


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture that is done: its absolute path, size and time of change before it was read, and the outcome.

    `place` is where it was sorted to, relative to the folder for that.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    outcome: Prediction | ImageError
    place: str | None = None


class Journal:
    """Entries in a file. Only one process at a time has it open.

    `settings` are what all entries have in common, such as the classifier's SHA-256. A journal of other settings is
    replaced where it is complete or `restart` is true. `is_new` tells whether it was begun now, `replaced` whether
    another one was given up for it, `is_complete` whether all was done when it was opened. `obstacle` is why none may
    be begun, where that is so.

    Raises ConfigError for a file that is no journal, is in use or is unfinished with other settings, HeadstartError
    when it cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        classes: Sequence[str],
        *,
        restart: bool = False,
        obstacle: str | None = None,
    ) -> None:
        self.path = path
        self.classes = tuple(classes)
        if obstacle and not path.exists():  # no empty file is left behind
            raise ConfigError(obstacle)
        try:
            self._writer = open(path, "ab", buffering=0)  # noqa: SIM115
            try:
                self._reader = open(path, "rb")  # noqa: SIM115
                _lock(self._writer.fileno(), path)
                self._begin(dict(settings), restart, obstacle)
            except BaseException:
                self.close()
                raise
        except (OSError, ValueError) as error:
            raise self._say(error) from error

    def _begin(self, settings: dict[str, Any], restart: bool, obstacle: str | None) -> None:
        header = json.dumps({_KIND: _VERSION, "settings": settings}).encode("ascii") + b"\n"
        first = self._reader.readline()
        self.is_new = header.startswith(first) and first != header  # nothing yet, or killed in its first write
        found = None if self.is_new else _read_settings(first)
        if found is None and not self.is_new:
            raise ConfigError(
                f"{show_path(str(self.path))} exists and is not a journal of predictions, so it is not replaced. "
                "Choose another --output, or move it away."
            )
        self.replaced = found is not None and (found != settings or restart)
        if obstacle and (self.is_new or self.replaced):
            raise ConfigError(obstacle)
        if found and self.replaced and not restart and not self._ends_complete():
            changed = [name for name in settings if found.get(name) != settings[name]]
            raise ConfigError(
                f"{show_path(str(self.path))} is of an unfinished run with another {', '.join(changed)}. "
                "Give the same again to go on with it, --restart to begin anew, or another --output."
            )
        self.is_new |= self.replaced
        if self.is_new:
            self._writer.truncate(0)
            self._is_cut = False
            self._write(header)
        self.is_complete = self._ends_complete()
        self._is_cut = self._read_tail(1) != b"\n"

    def _read_tail(self, count: int) -> bytes:
        size = self._reader.seek(0, os.SEEK_END)
        self._reader.seek(max(0, size - count))
        return self._reader.read()

    def _ends_complete(self) -> bool:
        return _COMPLETE.search(self._read_tail(60)) is not None

    def read_all(self) -> Iterator[tuple[int, Entry]]:
        """Every entry with its offset in bytes, the oldest first."""
        offset = 0
        self._reader.seek(0)
        for line in self._reader:
            if (entry := self._decode(line)) is not None:
                yield offset, entry
            offset += len(line)

    def read(self, offset: int) -> Entry:
        """The entry at an offset that `append` or `read_all` gave."""
        self._reader.seek(offset)
        entry = self._decode(self._reader.readline())
        if entry is None:
            raise HeadstartError(f"{show_path(str(self.path))} was changed during the run. Give the command again.")
        return entry

    def _decode(self, line: bytes) -> Entry | None:
        """None for what is no entry: the header, the mark of the end, a line that is cut."""
        try:
            found = json.loads(line)
            path = found["path"]
            outcome: Prediction | ImageError
            if "error" in found:
                code, reason = found["error"]
                outcome = ImageError(code, reason, path)
            else:
                probs = np.frombuffer(base64.b64decode(found["probs"]), "<f4").astype(np.float32, copy=False)
                if len(probs) != len(self.classes):
                    return None
                outcome = Prediction(path, self.classes, probs, found["familiarity"])
            return Entry(path, found["size_bytes"], found["mtime_ns"], outcome, found.get("place"))
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def append(self, entry: Entry) -> int:
        """Write an entry, and return its offset."""
        found: dict[str, Any] = {"path": entry.path, "size_bytes": entry.size_bytes, "mtime_ns": entry.mtime_ns}
        if isinstance(entry.outcome, ImageError):
            found["error"] = [entry.outcome.code, entry.outcome.reason]
        else:
            found["predicted"] = entry.outcome.label  # for people who look into the file
            found["probs"] = base64.b64encode(entry.outcome.probs.astype("<f4").tobytes()).decode("ascii")
            found["familiarity"] = entry.outcome.familiarity
        if entry.place is not None:
            found["place"] = entry.place
        # ASCII, with escapes for the rest: any path comes back as it was, also bytes that are not UTF-8.
        return self._write(json.dumps(found).encode("ascii") + b"\n")

    def complete(self, count: int) -> None:
        """Mark the end: all `count` pictures are done, and what was to be written of them is."""
        if not self._ends_complete():
            self._write(b'{"complete": %d}\n' % count)

    def _write(self, data: bytes) -> int:
        try:
            offset = self._writer.seek(0, os.SEEK_END)
            if self._is_cut:  # a line that is cut must not swallow this one
                data = b"\n" + data
                offset += 1
            self._is_cut = True
            while data:
                data = data[self._writer.write(data) :]
            self._is_cut = False
        except OSError as error:
            raise self._say(error) from error
        return offset

    def _say(self, error: OSError | ValueError) -> HeadstartError:
        return HeadstartError(
            f"Cannot use the journal {show_path(str(self.path))}: {say_os_error(error)}. What is in it is kept. "
            "Make room there or check its permissions, and give the same command again."
        )

    def close(self, *, remove: bool = False) -> None:
        for name in ("_reader", "_writer"):
            if hasattr(self, name):
                getattr(self, name).close()
        if remove:
            with suppress(OSError):
                self.path.unlink()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_settings(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
        settings = found["settings"] if found[_KIND] == _VERSION else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None


def _lock(descriptor: int, path: Path) -> None:
    """Held until the file is closed, at the latest by the end of the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"{show_path(str(path))} is in use: another headstart predict writes there. Wait for it, or name another "
            "place."
        ) from None
    except OSError:  # a file system that knows no locks
        return
