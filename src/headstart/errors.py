"""Everything headstart raises on purpose. A message says what is wrong and where, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.util import find_spec


class HeadstartError(Exception):
    """Base of all errors that a user can cause and a user can mend."""


class ConfigError(HeadstartError):
    """A setting or an argument is unknown, out of range or contradicts another."""


class DataError(HeadstartError):
    """The pictures or labels as a whole cannot be used."""


class ImageError(HeadstartError):
    """One picture cannot be used.

    `code` is stable and short (`truncated`, `not-an-image`, ...); `reason` is the sentence behind it.
    """

    def __init__(self, code: str, reason: str, path: str | None = None) -> None:
        self.code = code
        self.reason = reason
        self.path = path
        super().__init__(f"{path}: {code}: {reason}" if path else f"{code}: {reason}")

    def at(self, path: str) -> ImageError:
        """The same verdict, naming the file it is about."""
        return ImageError(self.code, self.reason, path)


class BackboneError(HeadstartError):
    """A backbone is unknown, its weights are missing or are not the expected ones."""


class ArtifactError(HeadstartError):
    """A classifier file is damaged, edited, or not one."""


class MissingDependencyError(HeadstartError):
    """An optional package is needed for what was asked."""


def require_torch(purpose: str) -> None:
    """Raise MissingDependencyError where the extra torch is not installed; `purpose` is what needs it."""
    missing = [package for package in ("torch", "torchvision", "timm") if find_spec(package) is None]
    if missing:
        raise MissingDependencyError(
            f"{purpose} needs {', '.join(missing)}. Install the extra: pip install 'headstart[torch]'"
        )


def raise_all(kind: type[HeadstartError], problems: Iterable[str]) -> None:
    """Raise one `kind` that lists every problem; return when there is none."""
    found = list(problems)
    if len(found) == 1:
        raise kind(found[0])
    if found:
        raise kind(f"{len(found)} problems:\n" + "\n".join(f"  {text}" for text in found))


def suggest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest known name, or an empty string."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""
