"""Small drawn pictures whose class a network sees, the command line run in this process, and snapshots of folders."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import headstart
from headstart import cli

SIZE_PX = 48
SHAPES = ("checks", "circles", "stripes")


def draw_picture(shape: str, number: int) -> np.ndarray:
    """uint8 (48, 48, 3): the shape in two colours with some noise; `number` sets colours, size and noise."""
    rng = np.random.default_rng([SHAPES.index(shape), number])
    rows, columns = np.mgrid[:SIZE_PX, :SIZE_PX]
    step, shift = 5 + rng.integers(4), rng.integers(8)
    if shape == "circles":
        ink = np.hypot(rows - 24 - shift, columns - 24 + shift) % step < step / 2
    elif shape == "stripes":
        ink = (columns + shift) % step < step / 2
    else:
        ink = ((rows + shift) // step + (columns + shift) // step) % 2 == 0
    colours = np.where(ink[..., None], rng.integers(140, 256, 3), rng.integers(0, 110, 3))
    return (colours + rng.integers(-20, 21, (SIZE_PX, SIZE_PX, 3))).clip(0, 255).astype(np.uint8)


def write_picture(path: Path, shape: str, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_picture(shape, number)).save(path)
    return path


def write_shapes(folder: Path, count: int, shapes: Sequence[str] = SHAPES, first: int = 0) -> Path:
    """`folder`/<shape>/<number>.png with numbers from `first`; returns `folder`."""
    for shape in shapes:
        for number in range(first, first + count):
            write_picture(folder / shape / f"{number:02}.png", shape, number)
    return folder


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def out(self) -> str:
        return self.stdout.decode()

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def run_command(*arguments: object) -> Done:
    """`headstart ARGUMENTS` in this process: main() as the console script calls it."""
    before = sys.argv, sys.stdout, sys.stderr
    written = io.BytesIO(), io.BytesIO()
    streams = [io.TextIOWrapper(stream, encoding="utf-8", write_through=True) for stream in written]
    sys.argv = ["headstart", *map(str, arguments)]
    sys.stdout, sys.stderr = streams
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv, sys.stdout, sys.stderr = before
        logging.getLogger("headstart").handlers.clear()  # the command's handler holds the stream of this run
    return Done(code, written[0].getvalue(), written[1].getvalue().decode())


def run_python(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python with these arguments and environment variables; bytes that are not UTF-8 come as surrogates."""
    environment = {**os.environ, "PYTHONPATH": str(Path(headstart.__file__).parents[1]), **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, timeout=120, encoding="utf-8", errors="surrogateescape"
    )


# Root may write anywhere; without these two capabilities the permissions of files hold for it too.
_OBEY_PERMISSIONS = """
import ctypes, os, sys
if os.geteuid() == 0:
    assert ctypes.CDLL(None).prctl(24, 1, 0, 0, 0) == ctypes.CDLL(None).prctl(24, 2, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def run_obeying_permissions(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`run_python` as a user for whom read-only means read-only, also where the tests run as root."""
    if sys.platform != "linux":
        return run_python(*arguments, cwd=cwd, **variables)
    return run_python("-c", _OBEY_PERMISSIONS, *arguments, cwd=cwd, **variables)


def snapshot(*folders: Path) -> dict[str, tuple[object, ...]]:
    """Everything below the folders: kind, mode, time of change and bytes (or the target of a link) by path."""
    found: dict[str, tuple[object, ...]] = {}
    for folder in folders:
        for path in (folder, *sorted(folder.rglob("*"))):
            status = path.lstat()
            content: object = None
            if path.is_symlink():
                content = str(path.readlink())
            elif path.is_file():
                content = path.read_bytes()
            found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return found
