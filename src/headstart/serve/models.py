"""The classifiers that are served, by name; a file that is replaced is taken up without losing a request."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headstart._files import show_path
from headstart.errors import ArtifactError, ConfigError, raise_all
from headstart.prediction import Classifier, load
from headstart.serve.refusals import Refusal

logger = logging.getLogger(__name__)

MODEL_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """One classifier as it was loaded; `version` counts its loads up from "1"."""

    name: str
    version: str
    classifier: Classifier
    path: Path


class ModelStore:
    """Classifier files by name. They are opened by `load`; until then `get` refuses with 503.

    `files` are paths, or `NAME=FILE`. Raises ConfigError for bad and double names.
    """

    def __init__(self, files: Sequence[str | Path], *, allow_unsigned: bool = False) -> None:
        self._paths = name_models(files)
        self._allow_unsigned = allow_unsigned
        self._models: dict[str, ServedModel] = {}
        self._seen: dict[str, tuple[int, int, int]] = {}  # the files as they are, used or given up
        self._unusable: dict[str, tuple[tuple[int, int, int], str]] = {}  # how it looked, and why not
        self._lock = threading.Lock()

    @property
    def is_loaded(self) -> bool:
        return len(self._models) == len(self._paths)

    @property
    def models(self) -> list[ServedModel]:
        """In the order of the command line; empty while loading."""
        return list(self._models.values())

    def get(self, name: str | None = None, version: str | None = None) -> ServedModel:
        """The model of that name, the first one for None. Raises Refusal: 404 unknown, 503 while loading."""
        models = self._models
        if not models:
            raise Refusal(503, "loading", "the classifiers are being loaded", {"Retry-After": "1"})
        model = next(iter(models.values())) if name is None else models.get(name)
        if model is None:
            raise Refusal(404, "unknown-model", f"there is no model of this name; there is {', '.join(models)}")
        if version is not None and version != model.version:
            raise Refusal(404, "unknown-version", f"{model.name} has no such version; it has {model.version}")
        return model

    def load(self) -> None:
        """Open all files. Raises ArtifactError that lists those that cannot be used."""
        problems, models = [], {}
        for name, path in self._paths.items():
            self._seen[name] = _look_at(path)
            try:
                models[name] = ServedModel(name, "1", load(path, allow_unsigned=self._allow_unsigned), path)
            except ArtifactError as error:
                problems.append(str(error))
        raise_all(ArtifactError, problems)
        self._models = models

    def reload(self) -> list[ServedModel]:
        """Open the files that changed and put them in the place of the old; requests under way keep what they have.

        Returns those that were replaced. A file that cannot be used, such as one that is still being written, changes
        nothing; it is logged once it no longer changes.
        """
        with self._lock:
            replaced = [model for model in (self._reload_one(name) for name in self._paths) if model]
            if replaced:
                self._models = self._models | {model.name: model for model in replaced}
        return replaced

    def _reload_one(self, name: str) -> ServedModel | None:
        path, old = self._paths[name], self._models[name]
        look = _look_at(path)
        if look == self._seen[name]:
            return None
        if look == self._unusable.get(name, (None, ""))[0]:
            logger.warning("%s stays at version %s: %s", name, old.version, self._unusable[name][1])
            self._seen[name] = look
            return None
        try:
            new = load(path, allow_unsigned=self._allow_unsigned)
        except ArtifactError as error:
            self._unusable[name] = (look, str(error))
            return None
        if _look_at(path) != look:  # replaced once more; the next time finds out
            return None
        self._seen[name] = look
        if new.data == old.classifier.data:
            return None
        model = ServedModel(name, str(int(old.version) + 1), new, path)
        logger.info("%s is now version %s", name, model.version)
        return model


def name_models(files: Sequence[str | Path]) -> Mapping[str, Path]:
    """Name to file: the file's stem, or what stands before `=`. Raises ConfigError that lists all bad names."""
    paths: dict[str, Path] = {}
    problems = []
    for file in files:
        name, is_named, path = str(file).partition("=")
        if not is_named or Path(file).exists():
            name, path = Path(file).stem, str(file)
        if not MODEL_NAME.fullmatch(name):
            problems.append(
                f"{show_path(name)} cannot be a model's name in a URL: letters, digits, . _ - and at most 64 of them. "
                f"Give another: NAME={show_path(path)}"
            )
        elif name in paths:
            problems.append(f"Two files are called {name}. Give one another name: NAME={show_path(path)}")
        else:
            paths[name] = Path(path)
    raise_all(ConfigError, problems)
    return paths


def _look_at(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return status.st_ino, status.st_mtime_ns, status.st_size
