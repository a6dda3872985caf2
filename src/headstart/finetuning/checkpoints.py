"""A training's folder: what it was started with, and its checkpoints `best` and `last`.

`run.json` describes the run. A checkpoint is NAME.json (its state, and the name and SHA-256 of its tensors) beside
NAME-DIGEST.safetensors. The tensors are written first, under a name of their own; then the JSON is replaced in one
step; then the tensors before them are removed. So a kill at any moment leaves the earlier checkpoint or the later one.
Every JSON carries its own SHA-256. One process at a time works in a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from headstart._files import compute_file_sha256, compute_sha256, say_os_error, show_path, sync_folder, write_atomic
from headstart.errors import ConfigError, DataError, HeadstartError

FORMAT_VERSION = 1

_FORMATS = {"run": {"run"}, "checkpoint": {"tensors", "tensors_sha256", "state"}}  # keys besides the common ones
_COMMON_KEYS = {"format", "version", "sha256"}
_RUN_FILE = "run.json"
_SAVING = ".headstart-saving"  # a folder, because safetensors puts a file of unknown name beside the one it writes
_LEFTOVERS = ".headstart-*"  # that folder, and the siblings that write_atomic makes
_OWN_FILES = (
    *(_RUN_FILE, "best.json", "last.json", "best-*.safetensors", "last-*.safetensors", "history.csv", "history.png"),
    *(_LEFTOVERS, ".DS_Store", "Thumbs.db", "desktop.ini"),
)
_ADVICE = "Delete the folder to train anew, or choose another with --output."
_MAX_LISTED = 10


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: tensors on the CPU, by name, and plain JSON."""

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


def check_folder(folder: Path, run: Mapping[str, Any], own_files: Sequence[str] = ()) -> None:
    """Raise ConfigError unless `folder` is new, empty, or belongs to this very run. Nothing is written.

    `run` is JSON: all that decides the training's course, except how long it lasts. The error names every value that
    differs, or the files that are not a training's; `own_files` are patterns of further names that are. Raises
    DataError when run.json is damaged.
    """
    shown = show_path(str(folder))
    if not os.path.lexists(folder):
        return
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ConfigError(
            f"{shown} cannot be used as a training's folder: {say_os_error(error)}. Choose another with --output."
        ) from None
    foreign = [name for name in names if not any(fnmatchcase(name, own) for own in (*_OWN_FILES, *own_files))]
    if foreign:
        raise ConfigError(
            f"{shown} holds files that are not a training's: {_list_few(foreign)}. Nothing in it was changed. "
            "Choose a new or an empty folder with --output."
        )
    if _RUN_FILE not in names:
        if any(name.endswith((".json", ".safetensors")) for name in names):
            raise ConfigError(f"{shown} holds checkpoints, but no {_RUN_FILE} that says of which training. {_ADVICE}")
        return
    before = _read_json(folder / _RUN_FILE, "run")["run"]
    now = json.loads(_dump_json(dict(run)))  # as it would have been read: lists for tuples
    differences = list(_find_differences(before, now))
    if differences:
        raise ConfigError(
            f"{shown} holds another training, so this one cannot continue it:\n"
            + "\n".join(f"  {text}" for text in differences)
            + "\nNothing in it was changed. Give the same values to continue it, delete the folder to train anew, or "
            "choose another with --output."
        )


def start_folder(folder: Path, run: Mapping[str, Any], own_files: Sequence[str] = ()) -> None:
    """`check_folder`, then make the folder and its run.json where they are missing. To be called before any work."""
    check_folder(folder, run, own_files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The folder {show_path(str(folder))} cannot be made: {say_os_error(error)}. Choose another with --output."
        ) from None
    _remove_leftovers(folder)
    if not (folder / _RUN_FILE).exists():
        _write_json(folder / _RUN_FILE, "run", {"run": dict(run)})


def save_checkpoint(folder: Path, name: str, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Replace the checkpoint `name` (`best` or `last`) in an existing folder, whole or not at all.

    Tensors may be on any device, views, or share memory; each is saved by itself, contiguous. `state` is plain JSON:
    tuples come back as lists. Raises DataError for a state that JSON cannot hold (nan is one) and where the JSON of
    the checkpoint before is damaged, HeadstartError when the files cannot be written.
    """
    _dump_json(dict(state))  # refused before the tensors are written
    saving, path = folder / _SAVING, folder / f"{name}.json"
    before = _read_json(path, "checkpoint")["tensors"] if path.exists() else None
    try:
        _remove_leftovers(folder)
        _remove_tensors(folder, name, keep=before)  # here too: else kills just after saves would gather files
        saving.mkdir()
        save_file(_separate(tensors), saving / "tensors")
        with open(saving / "tensors", "rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        tensor_file = f"{name}-{digest[:16]}.safetensors"
        os.replace(saving / "tensors", folder / tensor_file)
        saving.rmdir()
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(saving, ignore_errors=True)
        reason = say_os_error(error) if isinstance(error, OSError) else str(error)
        raise HeadstartError(
            f"The checkpoint '{name}' cannot be written into {show_path(str(folder))}: {reason}. The one before it is "
            "whole. Make room there; the same command then continues."
        ) from error
    content = {"tensors": tensor_file, "tensors_sha256": digest, "state": dict(state)}
    _write_json(path, "checkpoint", content)
    _remove_tensors(folder, name, keep=tensor_file)


def load_checkpoint(folder: Path, name: str) -> Checkpoint | None:
    """The checkpoint `name`, or None where there is none. Raises DataError, which says what is damaged."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    content = _read_json(path, "checkpoint")
    tensor_file, digest, state = content["tensors"], content["tensors_sha256"], content["state"]
    if not (isinstance(tensor_file, str) and re.fullmatch(_tensor_pattern(name), tensor_file)):
        raise _damage(path, f"it names {_show(tensor_file)} as its tensors")
    tensor_path = folder / tensor_file
    try:
        found = compute_file_sha256(tensor_path)
    except OSError as error:
        raise _damage(tensor_path, say_os_error(error)) from None
    if found != digest:
        raise _damage(tensor_path, f"its SHA-256 is not the one in {path.name}; it was changed or cut short")
    # Copies, because the loaded tensors are views of a file that the next save removes.
    tensors = {key: tensor.clone() for key, tensor in load_file(tensor_path).items()}
    return Checkpoint(tensors, state)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as tensors, named PARAMETER.KEY by the parameter's index, and JSON for all the rest."""
    packed = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in packed["state"].items():
        plain[str(index)] = {}
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                plain[str(index)][key] = value
    return tensors, {"state": plain, "groups": packed["param_groups"]}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]
) -> None:
    """Give `optimizer` the state that `pack_optimizer` took from one of the same kind, groups and parameters.

    Its next steps are bit-identical to those of the packed one. The tensors are copied. Raises DataError when the
    groups or shapes are others.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in plain["state"].items()}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        if int(index) >= len(params) or (tensor.dim() and tensor.shape != params[int(index)].shape):
            raise DataError(f"The saved optimizer does not fit: {_show(name)} has the shape {tuple(tensor.shape)}.")
        state[int(index)][key] = _copy_like(params[int(index)], tensor)
    # JSON has no tuples; what is one in this optimizer (Adam's betas) was one in the other.
    groups = [
        {key: tuple(value) if isinstance(live.get(key), tuple) else value for key, value in group.items()}
        for group, live in zip(plain["groups"], optimizer.param_groups, strict=False)
    ]
    try:
        if len(plain["groups"]) != len(optimizer.param_groups):
            raise ValueError(f"{len(plain['groups'])} parameter groups were saved")
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except ValueError as error:
        raise DataError(f"The saved optimizer does not fit: {error}.") from None


def _copy_like(param: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A copy; of a tensor per element, in the parameter's memory order, in which steps round as they did."""
    if tensor.shape != param.shape:
        return tensor.clone()
    return torch.empty_like(param, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors on the CPU of which no two share memory."""
    separate, storages = {}, set()
    for name, tensor in tensors.items():
        own = tensor.detach().to("cpu").contiguous()
        if own.untyped_storage().data_ptr() in storages:
            own = own.clone()
        storages.add(own.untyped_storage().data_ptr())
        separate[name] = own
    return separate


def _tensor_pattern(name: str) -> str:
    return re.escape(name) + r"-[0-9a-f]{16}\.safetensors"


def _remove_tensors(folder: Path, name: str, keep: str | None) -> None:
    for path in folder.iterdir():
        if re.fullmatch(_tensor_pattern(name), path.name) and path.name != keep:
            path.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """What a kill left of a save that was under way."""
    for path in folder.glob(_LEFTOVERS):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _write_json(path: Path, format_name: str, content: dict[str, Any]) -> None:
    content = {"format": f"headstart {format_name}", "version": FORMAT_VERSION, **content}
    content["sha256"] = compute_sha256(_dump_json(content).encode())
    write_atomic(path, json.dumps(content, indent=1).encode())


def _read_json(path: Path, format_name: str) -> dict[str, Any]:
    """A file of `_write_json`. Raises DataError for any other."""
    try:
        content = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise _damage(path, say_os_error(error)) from None
    except (ValueError, RecursionError):
        raise _damage(path, "it is not JSON") from None
    if not isinstance(content, dict) or content.get("format") != f"headstart {format_name}":
        raise _damage(path, f"it does not say 'headstart {format_name}'")
    if content.get("version") != FORMAT_VERSION:
        raise DataError(
            f"{show_path(str(path))} has format version {_show(content.get('version'))}; this headstart reads "
            f"{FORMAT_VERSION}. Continue with the headstart that made it. {_ADVICE}"
        )
    digest = content.pop("sha256", None)
    if digest != compute_sha256(_dump_json(content).encode()):
        raise _damage(path, "its content does not match its SHA-256; it was changed or cut short")
    if set(content) | {"sha256"} != _COMMON_KEYS | _FORMATS[format_name]:
        raise _damage(path, "it has other entries than this format")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _dump_json(content: Any) -> str:
    """One text for one content. Raises DataError for what JSON cannot hold."""
    try:
        return json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"A training's state cannot be written as JSON: {error}.") from None


def _damage(path: Path, reason: str) -> DataError:
    return DataError(
        f"The checkpoint in {show_path(str(path.parent))} is damaged: {show_path(path.name)}: {reason}. {_ADVICE}"
    )


def _find_differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            inner = f"{name}.{key}" if name else key
            if key not in now:
                yield f"{show_path(inner)} was {_show(before[key])}, is not given"
            elif key not in before:
                yield f"{show_path(inner)} was not given, is {_show(now[key])}"
            else:
                yield from _find_differences(before[key], now[key], inner)
    elif before != now:
        yield f"{show_path(name)} was {_show(before)}, is {_show(now)}"


def _show(value: Any) -> str:
    text = show_path(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 80 else text[:77] + "..."


def _list_few(names: Sequence[str]) -> str:
    rest = len(names) - _MAX_LISTED
    return ", ".join(show_path(name) for name in names[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
