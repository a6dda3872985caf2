"""Pictures sorted into a folder for each class, as links or copies. Nothing that stands there is ever replaced."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from headstart._files import say_os_error, show_path
from headstart.errors import ConfigError, HeadstartError, ImageError
from headstart.predictions_output import UNKNOWN, UNSURE, Doubts

if TYPE_CHECKING:
    from headstart.predict_journal import Entry
    from headstart.prediction import Prediction

JOURNAL_NAME = ".headstart-predictions.jsonl"
_COPY_NAME = ".headstart-copy.tmp"
_MAX_NAME_BYTES = 240  # file systems end at 255
_TIME_STEP_NS = 2 * 10**9  # the coarsest that a file system keeps
# Windows opens devices by these names, whatever the extension.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)


def name_folders(names: Sequence[str]) -> list[str]:
    """A folder name for each name, in that order: one plain component, different also where case does not count.

    What some file system refuses or reads as part of a path becomes an underscore.
    """
    folders: list[str] = []
    taken: set[str] = set()
    for name in names:
        plain = "".join(char if char.isprintable() and char not in '<>:"/\\|?*' else "_" for char in name)
        plain = _shorten(re.sub(r"^[. ]+|[. ]+$", "_", plain), "") or "_"
        if _DEVICES.fullmatch(plain):
            plain += "_"
        folder, number = plain, 1
        while (key := unicodedata.normalize("NFKC", folder).casefold()) in taken:
            number += 1
            folder = f"{plain} ({number})"
        taken.add(key)
        folders.append(folder)
    return folders


def _shorten(stem: str, ending: str) -> str:
    while len(os.fsencode(stem + ending)) > _MAX_NAME_BYTES:
        stem = stem[:-1]
    return stem + ending


class Sorter:
    """Puts pictures below `folder`: by the predicted class, or apart as `unsure` or `none of these`.

    The journal remembers each picture's place before the picture is put there, so that after a kill at most the last
    one is missing. Raises HeadstartError where a link or copy cannot be made.
    """

    def __init__(self, folder: Path, classes: Sequence[str], doubts: Doubts, *, copy: bool = False) -> None:
        self.folder = folder
        self._doubts = doubts
        self._copy = copy
        kinds = [UNKNOWN, UNSURE, *classes]
        self._folders = name_folders(kinds)
        self.renamed = [(a, b) for a, b in zip(kinds, self._folders, strict=True) if a != b]
        self._class_folders = dict(zip(kinds[2:], self._folders[2:], strict=True))
        self._numbers: dict[str, int] = {}
        self._made: set[str] = set()

    def choose_place(self, path: str, outcome: Prediction | ImageError) -> str | None:
        """Where the picture is to stand: a free name. None for a picture that was not predicted."""
        if isinstance(outcome, ImageError):
            return None
        doubt = self._doubts.judge(outcome)
        folder = self._folders[[UNKNOWN, UNSURE].index(doubt)] if doubt else self._class_folders[outcome.label]
        stem, ending = os.path.splitext(os.path.basename(path))
        name = _shorten(stem, ending)
        key = f"{folder}/{name}"
        number = self._numbers.get(key, 1)
        while os.path.lexists(self.folder / folder / name):
            number += 1
            name = _shorten(stem, f" ({number}){ending}")
        if number > 1:
            self._numbers[key] = number
        return f"{folder}/{name}"

    def put(self, entry: Entry) -> None:
        """Make the link or copy of an entry that has a place, unless it is there already."""
        if entry.place is None or self._is_own(entry):
            return
        target = self._open_folder(entry.place)
        try:
            if self._copy:
                self._copy_to(entry, target)
            else:
                os.symlink(entry.path, target)
        except OSError as error:
            if not os.path.lexists(entry.path):  # gone since it was predicted
                return
            advice = (
                "Check the disk and permissions"
                if self._copy
                else "Where links are not possible, add --copy for copies"
            )
            raise HeadstartError(
                f"Cannot sort {show_path(entry.path)} into {show_path(str(target))}: {say_os_error(error)}. {advice}; "
                "the same command then goes on."
            ) from error

    def _copy_to(self, entry: Entry, target: Path) -> None:
        temporary = self.folder / _COPY_NAME
        try:
            with suppress(FileNotFoundError):
                temporary.unlink()
            shutil.copyfile(entry.path, temporary)
            os.utime(temporary, ns=(entry.mtime_ns, entry.mtime_ns))
            try:
                os.link(temporary, target)  # unlike a rename, this never replaces
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                if os.path.lexists(target):
                    raise FileExistsError(17, "File exists", str(target)) from None
                os.rename(temporary, target)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()

    def is_taken(self, entry: Entry) -> bool:
        """Whether something else stands where the entry is to be put."""
        return entry.place is not None and os.path.lexists(self.folder / entry.place) and not self._is_own(entry)

    def take_away(self, entry: Entry) -> None:
        """Remove the link or copy of an entry that no longer holds; what was changed or moved since is left alone."""
        if entry.place is not None and self._is_own(entry):
            with suppress(FileNotFoundError):
                (self.folder / entry.place).unlink()

    def _is_own(self, entry: Entry) -> bool:
        assert entry.place is not None
        target = self._open_folder(entry.place)
        try:
            if not self._copy:
                return os.readlink(target) == entry.path
            found = os.lstat(target)
        except OSError:
            return False
        return abs(found.st_mtime_ns - entry.mtime_ns) <= _TIME_STEP_NS

    def _open_folder(self, place: str) -> Path:
        """The full path of a place, whose folder is made where it is missing and is no link."""
        folder, _, name = place.partition("/")
        if folder not in self._folders or not name or os.path.basename(name) != name or name in (".", ".."):
            raise ConfigError(
                f"{show_path(str(self.folder / JOURNAL_NAME))} names the place {show_path(place)}, which is none of "
                "this classifier's folders. Sort into another folder."
            )
        parent = self.folder / folder
        if folder not in self._made:
            parent.mkdir(exist_ok=True)
            if parent.is_symlink():
                raise ConfigError(f"{show_path(str(parent))} is a link, and nothing is written through it. Remove it.")
            self._made.add(folder)
        return parent / name


def check_sort_folder(folder: Path, sources: Sequence[str]) -> None:
    """Before any work: neither inside what is sorted nor around it, and a folder or nothing yet. Raises ConfigError."""
    shown = show_path(str(folder))
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise ConfigError(f"--sort-into {shown} is a file. Name a folder.")
        if not folder.absolute().parent.is_dir():
            raise ConfigError(
                f"The folder {show_path(str(folder.parent))} does not exist. Make it first, or choose another "
                "--sort-into."
            )
    real = os.path.realpath(folder)
    for source in sources:
        other = os.path.realpath(source)
        if os.path.isdir(other) and os.path.commonpath([real, other]) in (real, other):
            raise ConfigError(
                f"--sort-into {shown} and {show_path(source)} lie one inside the other, so that sorted pictures would "
                "be sorted again. Name a folder outside."
            )


def is_unused(folder: Path) -> bool:
    """Whether nothing stands in a folder but what a journal needs."""
    return not folder.is_dir() or not set(os.listdir(folder)) - {JOURNAL_NAME, _COPY_NAME}
