"""Where an export goes: what may be replaced, and folders that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from headstart._files import show_path, sync_folder
from headstart.errors import ConfigError, HeadstartError


def check_file_target(target: Path, suffix: str, overwrite: bool) -> None:
    """Before any work. Raises ConfigError where the file cannot be written, or is there and `overwrite` is not set."""
    shown = show_path(str(target))
    if target.suffix.lower() != suffix:
        raise ConfigError(f"The output is {shown}. Expected a name that ends in {suffix}.")
    _check_parent(target)
    if target.is_dir():
        raise ConfigError(f"{shown} is a folder. Name a file to write.")
    if os.path.lexists(target) and not overwrite:
        raise ConfigError(f"{shown} exists, and is not replaced. Name another file, or add --overwrite.")


def check_folder_target(target: Path, names: set[str], overwrite: bool) -> None:
    """The same for a folder of `names`. One that holds anything else is never replaced."""
    shown = show_path(str(target))
    _check_parent(target)
    if not os.path.lexists(target):
        return
    if not target.is_dir() or target.is_symlink():
        raise ConfigError(f"{shown} is not a folder. Name a folder to write.")
    if others := sorted(set(os.listdir(target)) - names - {"__pycache__"}):  # Python's, of the scripts there
        raise ConfigError(
            f"{shown} holds {show_path(others[0])}, which is not of such an export, so it is not replaced. "
            "Name another folder."
        )
    if os.listdir(target) and not overwrite:
        raise ConfigError(f"{shown} exists, and is not replaced. Name another folder, or add --overwrite.")


def _check_parent(target: Path) -> None:
    shown = show_path(str(target.absolute().parent))
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"The folder {shown} does not exist. Make it first, or name another output.")
    if not os.access(target.absolute().parent, os.W_OK):
        raise ConfigError(f"The folder {shown} cannot be written to. Name another output.")


def write_folder(target: Path, contents: Mapping[str, bytes], overwrite: bool) -> None:
    """A folder of these files, whole or not at all, as far as `check_folder_target` allows it.

    A sibling is filled, flushed and renamed. One that is there before is first renamed aside, and put back where that
    fails. Raises HeadstartError.
    """
    check_folder_target(target, set(contents), overwrite)
    mark = f".headstart-{os.getpid()}-{secrets.token_hex(4)}"
    sibling, aside = (target.absolute().parent / f"{mark}.{kind}" for kind in ("tmp", "old"))
    try:
        try:
            sibling.mkdir()
            for name, data in contents.items():
                with open(sibling / name, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            sync_folder(sibling)
            try:
                if target.exists():
                    os.rename(target, aside)
                os.rename(sibling, target)
            finally:  # also after Ctrl-C
                if aside.exists() and not target.exists():
                    os.rename(aside, target)
        finally:
            shutil.rmtree(sibling, ignore_errors=True)
            if target.exists():
                shutil.rmtree(aside, ignore_errors=True)
        sync_folder(target.absolute().parent)
    except OSError as error:
        raise HeadstartError(
            f"Cannot write {show_path(str(target))}: {error.strerror or error}. "
            "Choose another place, or make room there."
        ) from error
