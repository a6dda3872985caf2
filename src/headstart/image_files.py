"""The bytes of picture files: read whole, within limits, never waiting for what is no file."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from headstart._files import say_os_error
from headstart.errors import ImageError


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What a file may cost: checked before it is read, and before memory for its pixels is taken."""

    max_file_bytes: int = 64 * 2**20
    max_pixels: int = 64_000_000
    max_side_px: int = 32_768


DEFAULT_LIMITS = DecodeLimits()


def read_image_file(path: str | os.PathLike[str], limits: DecodeLimits = DEFAULT_LIMITS) -> bytes:
    """The bytes of a regular file (or of a link to one), never waiting for a pipe or a device.

    Raises ImageError `not-a-regular-file`, `broken-link`, `unreadable`, `empty`, `too-large`, `changed-while-reading`.
    """
    name = os.fspath(path)
    try:
        before = os.stat(name)
        _check_file(before, limits, name)
        # The file may have been replaced since: O_NONBLOCK keeps a pipe from holding us, fstat looks again.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(name, flags)
        try:
            opened = os.fstat(descriptor)
            _check_file(opened, limits, name)
            data = _read_up_to(descriptor, opened.st_size + 1)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        if os.path.islink(name):
            raise ImageError("broken-link", "the link leads to nothing", name) from None
        raise ImageError("unreadable", "there is no such file", name) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if os.path.islink(name) and not os.path.exists(name):
            raise ImageError("broken-link", "the link leads to nothing", name) from None
        raise ImageError("unreadable", say_os_error(error), name) from None
    if len(data) != before.st_size or (before.st_ino, before.st_mtime_ns) != (after.st_ino, after.st_mtime_ns):
        raise ImageError("changed-while-reading", "the file changed while it was read (run again)", name)
    return data


def _read_up_to(descriptor: int, count: int) -> bytes:
    # A single read of a local file brings all of it; asking for much more than that would take and return the memory.
    data = os.read(descriptor, count)
    parts = [data]
    while data and (count := count - len(data)) > 1:
        data = os.read(descriptor, count)
        parts.append(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _check_file(found: os.stat_result, limits: DecodeLimits, name: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ImageError("not-a-regular-file", "this is a folder, pipe, socket or device, not a file", name)
    check_length(found.st_size, limits, name)


def check_length(num_bytes: int, limits: DecodeLimits, name: str | None = None) -> None:
    if num_bytes == 0:
        raise ImageError("empty", "the file is empty", name)
    if num_bytes > limits.max_file_bytes:
        shown = f"{num_bytes / 2**20:.1f} MB (limit {limits.max_file_bytes / 2**20:g} MB)"
        raise ImageError("too-large", shown, name)
