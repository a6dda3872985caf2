"""Files that matter: written whole or not at all, hashed, and the folder that holds the cache."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from headstart.errors import HeadstartError


def write_atomic(path: str | os.PathLike[str], write: bytes | Callable[[BinaryIO], None]) -> None:
    """Replace `path` by a complete file, or leave it as it was.

    A sibling is written, flushed to disk and renamed over the target, then the folder is flushed, so that a crash or
    a power cut shows the old file or the new one. Raises HeadstartError, which says whether it was written.
    """
    target = Path(path)
    # The name does not depend on the target's, which may already be as long as a name can be.
    sibling = target.parent / f".headstart-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        descriptor = os.open(sibling, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if callable(write):
                    write(file)
                else:
                    file.write(write)
                file.flush()
                os.fsync(file.fileno())
            sibling.chmod(0o666 & ~_umask())
            os.replace(sibling, target)
        except BaseException:
            sibling.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise HeadstartError(
            f"Cannot write {show_path(str(target))}: {getattr(error, 'strerror', None) or error}. Nothing was changed. "
            "Choose another place with --output, or make room there."
        ) from error
    try:
        sync_folder(target.parent)
    except OSError as error:
        raise HeadstartError(
            f"{show_path(str(target))} was written, but may not survive a power cut: {error.strerror or error}."
        ) from error


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


def sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder to flush it
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def compute_sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def compute_file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 in hex of a file, read in pieces. Raises OSError."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def get_cache_folder() -> Path:
    """`HEADSTART_CACHE`, or the platform's folder for caches. It need not exist yet."""
    if chosen := os.environ.get("HEADSTART_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "headstart" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "headstart"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headstart"


def show_path(path: str) -> str:
    """A path for people: control characters, direction overrides and bytes that are not text as \\x escapes."""
    shown = []
    for char in path:
        if "\udc80" <= char <= "\udcff":
            shown.append(f"\\x{ord(char) - 0xDC00:02x}")
        elif char.isprintable():
            shown.append(char)
        else:
            shown.append(char.encode("unicode_escape").decode("ascii"))
    return "".join(shown)


def say_os_error(error: OSError | ValueError) -> str:
    """The system's words, to stand after a colon: `permission denied`."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text[:1].lower() + text[1:]
