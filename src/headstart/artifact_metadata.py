"""What a classifier file says about itself: the entries, their meaning, and the checks on them."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from headstart.errors import ArtifactError, suggest
from headstart.onnx_rules import quote, shorten

FORMAT_VERSION = 2
MAX_LABEL_CHARS = 200
MAX_METADATA_ENTRIES = 100

ADVICE = "headstart opens only files that it could have saved itself (docs/file-format.md). Train or save it again."


@dataclass(frozen=True, slots=True)
class ArtifactMetadata:
    """What a classifier file says about itself. The dict parts are plain JSON; docs/file-format.md lists their keys.

    `labels[i]` names `probabilities[i]`. `familiarity` is None where the file has no output of that name; a file of
    `format_version` 1 never has one. `format_version` is 0, and the dict parts are empty, for a foreign ONNX file that
    was read with `allow_unsigned`; what is made anew gets the newest.
    """

    labels: tuple[str, ...]
    preprocess: dict[str, Any]
    backbone: dict[str, Any]
    head: dict[str, Any]
    settings: dict[str, Any]
    data: dict[str, Any]
    evaluation: dict[str, Any] | None
    created_with: str
    familiarity: dict[str, Any] | None = None
    format_version: int = FORMAT_VERSION


def format_entries(metadata: ArtifactMetadata) -> Iterator[tuple[str, str]]:
    """Keys and values for metadata_props, without the hash. Raises ArtifactError for what JSON cannot hold."""
    yield "headstart.format", str(metadata.format_version)
    yield "headstart.labels", _dump_json("labels", list(metadata.labels))
    for name in (*_OBJECT_CHECKS, "evaluation", *(("familiarity",) if metadata.format_version > 1 else ())):
        yield f"headstart.{name}", _dump_json(name, getattr(metadata, name))
    yield "headstart.created_with", metadata.created_with


def _dump_json(name: str, value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"headstart.{name} cannot be written as JSON: {error}. Use plain values.") from error


def collect_entries(model: SimpleNamespace, allow_unsigned: bool) -> tuple[dict[str, str], list[str]]:
    """headstart's entries without their prefix. Raises ArtifactError when the file is of another format."""
    entries: dict[str, str] = {}
    problems = []
    if len(model.metadata_props) > MAX_METADATA_ENTRIES:
        raise ArtifactError(
            f"It has {len(model.metadata_props):,} metadata entries, over {MAX_METADATA_ENTRIES}. {ADVICE}"
        )
    for entry in model.metadata_props:
        key, value = entry.key or "", entry.value or ""
        name = key.removeprefix("headstart.")
        if name in entries and name != key:
            problems.append(f"The metadata entry {quote(key)} is given twice.")
        elif name in _ENTRY_NAMES and name != key:
            entries[name] = value
        elif name != key or not allow_unsigned:
            problems.append(f"The metadata entry {quote(key)} is unknown.{suggest(key[:60], _ALL_KEYS)}")
    if "format" not in entries:
        if not allow_unsigned:
            raise ArtifactError(
                "This may be an ONNX file, but headstart did not save it: it has no headstart.format entry. "
                "To use a foreign file with the same input and output, add --allow-unsigned."
            )
        return entries, problems
    if entries["format"] not in _KNOWN_FORMATS:
        if re.fullmatch(r"[0-9]{1,6}", entries["format"]) and int(entries["format"]) > FORMAT_VERSION:
            raise ArtifactError(
                f"The file has format {entries['format']}; this headstart reads formats 1 to {FORMAT_VERSION}. "
                "It was made by a newer headstart: upgrade with pip install --upgrade headstart."
            )
        raise ArtifactError(f"headstart.format is {quote(entries['format'])}; expected '1' or '2'. {ADVICE}")
    expected = [name for name in _ENTRY_NAMES if name != "familiarity" or entries["format"] != "1"]
    if "familiarity" in entries and "familiarity" not in expected:
        problems.append("The metadata entry 'headstart.familiarity' is unknown in format 1.")
    missing = [f"headstart.{name}" for name in expected if name not in entries and name != "sha256"]
    if missing and not allow_unsigned:
        problems.append(f"It has no metadata entry {', '.join(missing)}.")
    return entries, problems


def parse_metadata(
    entries: Mapping[str, str], num_classes: int | None, has_familiarity: bool, problems: list[str]
) -> ArtifactMetadata:
    """Check every entry that is there; one that is missing gets an empty value.

    Raises ArtifactError with the `problems` found before and those found here.
    """
    parts: dict[str, Any] = {}
    for name in ("labels", *_OBJECT_CHECKS, "evaluation", "familiarity"):
        if name in entries:
            try:
                parts[name] = _load_json(entries[name])
            except ValueError as error:
                problems.append(f"headstart.{name} is not JSON: {shorten(str(error))}.")
            except RecursionError:
                problems.append(f"headstart.{name} is not JSON: it is nested too deeply.")
    if "labels" in parts:
        problems += _check_labels(parts["labels"], num_classes)
    for name, checks in _OBJECT_CHECKS.items():
        if name in parts:
            problems += _check_object(name, parts[name], checks, _OPTIONAL_CHECKS.get(name, {}))
    if not isinstance(parts.get("evaluation"), dict | None):
        problems.append(f"headstart.evaluation is {_show_json(parts['evaluation'])}; expected an object or null.")
    if parts.get("familiarity") is not None:
        problems += _check_object("familiarity", parts["familiarity"], _FAMILIARITY_CHECKS, {})
    is_told = "familiarity" in entries or entries.get("format") == "1"
    if is_told and num_classes is not None and has_familiarity != (parts.get("familiarity") is not None):
        problems.append(
            f"It has {'an' if has_familiarity else 'no'} output familiarity, and headstart.familiarity "
            f"{'does not describe it' if has_familiarity else 'describes one'}."
        )
    created_with = entries.get("created_with", "")
    if "created_with" in entries and not (created_with.isprintable() and 1 <= len(created_with) <= 200):
        problems.append("headstart.created_with is not 1 to 200 printable characters.")
    raise_problems(problems)
    return ArtifactMetadata(
        labels=tuple(parts.get("labels", map(str, range(num_classes or 0)))),
        **{name: parts.get(name, {}) for name in _OBJECT_CHECKS},
        evaluation=parts.get("evaluation"),
        created_with=created_with,
        familiarity=parts.get("familiarity"),
        format_version=int(entries.get("format", "0")),
    )


def _load_json(text: str) -> Any:
    """JSON of one meaning: no NaN or infinity, no key twice. Raises ValueError or RecursionError."""

    def refuse_constant(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    def read_float(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError("a number is too large")
        return value

    def read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("an object has a key twice")
        return found

    return json.loads(text, parse_constant=refuse_constant, parse_float=read_float, object_pairs_hook=read_object)


def _check_labels(labels: Any, num_classes: int | None) -> Iterator[str]:
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        yield f"headstart.labels is {_show_json(labels)}; expected a list of texts."
        return
    if num_classes is not None and len(labels) != num_classes:
        yield f"headstart.labels has {len(labels)} labels; the output has {num_classes} classes."
    for label, count in Counter(labels).items():
        if count > 1:
            yield f"headstart.labels has {quote(label)} {count} times; expected different labels."
        if not 1 <= len(label) <= MAX_LABEL_CHARS:
            yield f"The label {quote(label)} has {len(label)} characters; expected 1 to {MAX_LABEL_CHARS}."
        if any(unicodedata.category(char) == "Cc" for char in label):
            yield f"The label {quote(label)} holds control characters."


_Check = tuple[str, Callable[[Any], bool]]  # what is expected, in words and as a test


def _is_number(value: Any) -> bool:
    # An int beyond the range of a float would overflow in isfinite.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _whole(low: int, high: int | None = None) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= low and (high is None or value <= high)


def _three(low: float, high: float) -> Callable[[Any], bool]:
    """Three numbers, one a colour channel, above or at `low`."""
    return lambda value: (
        isinstance(value, list) and len(value) == 3 and all(_is_number(each) and low <= each <= high for each in value)
    )


def _is_layer(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and type(value[1]) is int
        and value[1] >= 1
    )


def _all(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_right, value))


def _one_of(*values: str) -> _Check:
    return " or ".join(map(repr, values)), lambda value: value in values


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 1000


_OBJECT_CHECKS: dict[str, dict[str, _Check]] = {
    "preprocess": {
        "input_size_px": ("a whole number from 8 to 4096", _whole(8, 4096)),
        "crop_frac": ("a number above 0 and at most 1", lambda value: _is_number(value) and 0 < value <= 1),
        "interpolation": ("'cubic' or 'linear'", lambda value: value in ("cubic", "linear")),
        "mean": ("three numbers from -255 to 255", _three(-255, 255)),
        "std": ("three numbers from 0.001 to 255", _three(0.001, 255)),
        "exif": ("'applied'", lambda value: value == "applied"),
        "alpha": ("'white'", lambda value: value == "white"),
        "decoder_version": ("a whole number from 1", _whole(1)),
    },
    "backbone": {
        "name": ("a text", _is_text),
        "sha256": (
            "64 hexadecimal digits",
            lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
        ),
        "licence": ("a text", _is_text),
        "source": ("a text", _is_text),
    },
    "head": {
        "layers": ("a list of [layer name, grid from 1]", lambda value: bool(value) and _all(_is_layer)(value)),
        "penalty": ("a number from 0, or null", lambda value: value is None or (_is_number(value) and value >= 0)),
        "temperature": ("a number above 0", lambda value: _is_number(value) and value > 0),
    },
    "settings": {"seed": ("a whole number from 0", _whole(0))},
    "data": {
        "fingerprint": ("a text", _is_text),
        "num_train": ("a whole number from 0", _whole(0)),
        "num_test": ("a whole number from 0", _whole(0)),
    },
}
# Earlier files of the format lack these.
_OPTIONAL_CHECKS: dict[str, dict[str, _Check]] = {
    "preprocess": {"crop": _one_of("centre", "after-resize", "squash")},
    "head": {
        "kind": _one_of("linear", "svm", "dense"),
        "pooling": _one_of("average", "max", "flatten"),
        "hidden": ("a list of whole numbers from 1", _all(_whole(1))),
        "dropout": (
            "a list of numbers from 0 to below 1",
            _all(lambda value: _is_number(value) and 0 <= value < 1),
        ),
        "activation": _one_of("softmax", "sigmoid"),
    },
}
_FAMILIARITY_CHECKS: dict[str, _Check] = {
    "layer": ("[layer name, grid from 1]", _is_layer),
    "num_components": ("a whole number from 1", _whole(1)),
    "num_images": ("a whole number from 1", _whole(1)),
    "shares": ("a list of numbers from 0 to 1", _all(lambda value: _is_number(value) and 0 <= value <= 1)),
    "distances": ("a list of numbers", _all(_is_number)),
    "tail_width": ("a number above 0", lambda value: _is_number(value) and value > 0),
}
# Preprocessing decides what the pixels mean: a key that is not understood must not be ignored.
_CLOSED_OBJECTS = ("preprocess",)
_ENTRY_NAMES = ("format", "labels", *_OBJECT_CHECKS, "evaluation", "familiarity", "created_with", "sha256")
_KNOWN_FORMATS = tuple(map(str, range(1, FORMAT_VERSION + 1)))
_ALL_KEYS = tuple(f"headstart.{name}" for name in _ENTRY_NAMES)


def _check_object(
    name: str, value: Any, required: Mapping[str, _Check], optional: Mapping[str, _Check]
) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"headstart.{name} is {_show_json(value)}; expected an object."
        return
    checks = {**required, **optional}
    for key, (expected, is_right) in checks.items():
        if key not in value:
            if key in optional:
                continue
            yield f"headstart.{name} has no {key}; expected {expected}."
        elif not is_right(value[key]):
            yield f"headstart.{name}: {key} is {_show_json(value[key])}; expected {expected}."
    if name in _CLOSED_OBJECTS:
        unknown = sorted(set(value) - set(checks))
        for key in unknown[:10]:
            yield f"headstart.{name} has the unknown key {quote(key)}.{suggest(key[:60], checks)}"


def _show_json(value: Any) -> str:
    if isinstance(value, list | dict):  # perhaps nested too deep to be shown
        return f"a list of {len(value)}" if isinstance(value, list) else f"an object with {len(value)} keys"
    return shorten(json.dumps(value))


def raise_problems(problems: list[str]) -> None:
    found = list(dict.fromkeys(problems))
    if len(found) == 1:
        raise ArtifactError(f"{found[0]} {ADVICE}")
    if found:
        shown = found[:10] + ([f"and {len(found) - 10} more"] if len(found) > 10 else [])
        raise ArtifactError(f"{len(found)} problems:\n" + "\n".join(f"  {text}" for text in shown) + f"\n{ADVICE}")
