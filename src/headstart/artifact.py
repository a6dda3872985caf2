"""The classifier file: one .onnx that holds preprocessing, network, head and what is known about them.

The rules of the format stand in docs/file-format.md. What would be refused when read is never written.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headstart._files import show_path, write_atomic
from headstart.artifact_metadata import (
    ADVICE,
    FORMAT_VERSION,
    ArtifactMetadata,
    collect_entries,
    format_entries,
    parse_metadata,
)
from headstart.errors import ArtifactError, suggest
from headstart.onnx_reader import read_model
from headstart.onnx_rules import check_model, check_signature

if TYPE_CHECKING:
    import onnx
    import onnxruntime

__all__ = [
    "FORMAT_VERSION",
    "ArtifactMetadata",
    "build_artifact",
    "create_session",
    "parse_artifact",
    "read_artifact",
    "save_artifact",
]

MAX_FILE_BYTES = 2**31 - 1
RUN_LIMIT_S = 20.0

_HASH_KEY = "headstart.sha256"
# The hash is the last entry of metadata_props (field 14) and the end of the file. It covers the file with that value
# empty, byte for byte, so that no change anywhere goes unseen.
_EMPTY_HASH_ENTRY = b"\x72\x14\x0a\x10" + _HASH_KEY.encode() + b"\x12\x00"
_HASH_ENTRY_START = b"\x72\x54\x0a\x10" + _HASH_KEY.encode() + b"\x12\x40"
_HASH_ENTRY_BYTES = len(_HASH_ENTRY_START) + 64


def build_artifact(model: onnx.ModelProto, metadata: ArtifactMetadata) -> bytes:
    """The bytes of a classifier file, checked as if they were read but not run; the last 64 are their SHA-256 in hex.

    `model` is not changed; its own metadata_props are not kept. The same model and metadata give the same bytes.
    Raises ArtifactError when the file would be refused on reading.
    """
    data = _serialize(model, metadata)
    parse_artifact(data)
    return data


def save_artifact(path: str | os.PathLike[str], model: onnx.ModelProto, metadata: ArtifactMetadata) -> str:
    """Write `model` with `metadata` to `path`, whole or not at all, and return the SHA-256 stored in the file.

    Raises ArtifactError when the file would be refused on reading, HeadstartError when it cannot be written.
    """
    try:
        data = build_artifact(model, metadata)
        create_session(data)
    except ArtifactError as error:
        raise ArtifactError(f"{show_path(os.fspath(path))} was not written. {error}") from error
    write_atomic(path, data)
    return data[-64:].decode("ascii")


def read_artifact(path: str | os.PathLike[str], *, allow_unsigned: bool = False) -> tuple[ArtifactMetadata, bytes]:
    """Read and check a classifier file: its metadata, and the bytes for `create_session`.

    Raises ArtifactError that names the file. `allow_unsigned` is explained at `parse_artifact`.
    """
    try:
        return parse_artifact(_read_file(Path(path)), allow_unsigned=allow_unsigned)
    except ArtifactError as error:
        raise ArtifactError(f"{show_path(os.fspath(path))}: {error}") from error


def parse_artifact(data: bytes, *, allow_unsigned: bool = False) -> tuple[ArtifactMetadata, bytes]:
    """Check the bytes of a classifier file; returns its metadata and `data` itself.

    Nothing of the graph is run; `create_session` does that. With `allow_unsigned` the hash may be missing or wrong and
    headstart's own entries may be missing, so that a foreign ONNX file of the same signature can be used; its labels
    are then "0", "1", .... All other rules hold. Raises ArtifactError.
    """
    _refuse_other_kinds(data)
    if not allow_unsigned and _has_hash_entry(data):
        _check_hash(data)
    model = read_model(data)
    entries, problems = collect_entries(model, allow_unsigned)
    problems += check_model(model)
    num_classes, has_familiarity = check_signature(model, problems)
    if not allow_unsigned and not _has_hash_entry(data):
        problems.append(f"Its last metadata entry is not {_HASH_KEY}: it was edited, or saved by another tool.")
    return parse_metadata(entries, num_classes, has_familiarity, problems), data


def create_session(model_bytes: bytes, *, num_threads: int = 1) -> onnxruntime.InferenceSession:
    """A session over checked bytes (from `parse_artifact`), run once on a black picture before it is returned.

    It uses `num_threads` for one picture and prints nothing. Raises ArtifactError when ONNX Runtime refuses the graph,
    when the run takes more than RUN_LIMIT_S, or when what it gives are not probabilities and a familiarity.
    """
    # With this variable set, the model file could bring session options of its own.
    os.environ.pop("ORT_LOAD_CONFIG_FROM_MODEL", None)
    import onnxruntime

    from headstart.execution import open_session

    run_options = onnxruntime.RunOptions()
    run_options.log_severity_level = 4
    timer = threading.Timer(RUN_LIMIT_S, setattr, (run_options, "terminate", True))
    timer.daemon = True
    try:
        session = open_session(model_bytes, num_threads)
        timer.start()
        names = [output.name for output in session.get_outputs()]
        found = dict(
            zip(names, session.run(None, {"image": np.zeros((32, 32, 3), np.uint8)}, run_options), strict=True)
        )
    except Exception as error:  # ONNX Runtime's own classes share no base
        detail = show_path(str(error).strip().partition("\n")[0][:300])
        if run_options.terminate:
            detail = f"one picture takes more than {RUN_LIMIT_S:g} s"
        raise ArtifactError(f"ONNX Runtime cannot run this graph: {detail}. {ADVICE}") from error
    finally:
        timer.cancel()
    probs, expected = found["probabilities"], session.get_outputs()[names.index("probabilities")].shape
    if list(probs.shape) != expected or not np.isfinite(probs).all() or abs(float(probs.sum()) - 1) > 1e-3:
        raise ArtifactError(
            f"A black picture gives {_show_values(probs)}; expected {expected} with finite values and sum 1. {ADVICE}"
        )
    familiarity = found.get("familiarity")
    if familiarity is not None and (familiarity.shape != (1,) or not 0 <= familiarity[0] <= 1):
        raise ArtifactError(
            f"A black picture gives the familiarity {familiarity.tolist()}; expected a number from 0 to 1. {ADVICE}"
        )
    return session


# Writing


def _serialize(model: onnx.ModelProto, metadata: ArtifactMetadata) -> bytes:
    if model.ByteSize() >= MAX_FILE_BYTES:
        raise ArtifactError("The model is larger than 2 GiB, the limit of one ONNX file. Choose a smaller backbone.")
    copy = type(model)()
    copy.CopyFrom(model)
    del copy.metadata_props[:]
    for key, value in format_entries(metadata):
        copy.metadata_props.add(key=key, value=value)
    body = copy.SerializeToString(deterministic=True)
    digest = hashlib.sha256(body + _EMPTY_HASH_ENTRY).hexdigest()
    return bytes(body + _HASH_ENTRY_START + digest.encode("ascii"))


# Reading the file


def _read_file(path: Path) -> bytes:
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        near = suggest(path.name, (other.name for other in path.parent.glob("*.onnx")))
        raise ArtifactError(
            f"There is no such file.{near} Give the path of a classifier that headstart saved."
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ArtifactError(f"The file cannot be opened: {reason}. Check the path and its permissions.") from error
    try:
        facts = os.fstat(descriptor)
        if stat.S_ISDIR(facts.st_mode):
            raise ArtifactError("This is a folder. A classifier is one .onnx file: give the path of that file.")
        if not stat.S_ISREG(facts.st_mode):
            raise ArtifactError("This is not a regular file. A classifier is one .onnx file on disk.")
        if facts.st_size > MAX_FILE_BYTES:
            raise ArtifactError(f"The file has {facts.st_size:,} bytes. A classifier file has less than 2 GiB.")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ArtifactError(f"The file cannot be read: {error.strerror}. Check the disk or copy it again.") from error
    finally:
        os.close(descriptor)


def _refuse_other_kinds(data: bytes) -> None:
    if not data:
        raise ArtifactError("The file is empty. Copy it again from where it was saved, or train again.")
    if len(data) > MAX_FILE_BYTES:
        raise ArtifactError(f"The file has {len(data):,} bytes. A classifier file has less than 2 GiB.")
    kind = _sniff_kind(data)
    if kind in _RUNS_CODE:
        raise ArtifactError(
            f"This is {kind}; it can run code when opened. headstart does not open such files. "
            "Give the .onnx file that headstart saved."
        )
    if kind:
        raise ArtifactError(f"This is {kind}, not a classifier file. Give the .onnx file that headstart saved.")


_PICKLE = "a Python pickle (.pkl, .joblib or an old PyTorch file)"
_PYTORCH = "a PyTorch file (a ZIP archive with a pickle inside)"
_KERAS = "a Keras file (.keras)"
_HDF5 = "an HDF5 file (.h5, as Keras and others write it)"
_RUNS_CODE = (_PICKLE, _PYTORCH, _KERAS, _HDF5)


def _sniff_kind(data: bytes) -> str:
    """What a file of another kind is, or an empty string. ONNX itself has no magic number."""
    head = data[:512]
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _PICKLE
    if head.startswith(b"PK\x03\x04"):
        names = data[:4096] + data[-65536:]  # the first members, and the archive's directory
        if b"data.pkl" in names:
            return _PYTORCH
        return _KERAS if b"model.weights.h5" in names else "a ZIP archive"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return _HDF5
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= len(data) - 8:
        return "a safetensors file (weights without a network)"
    if head[4:8] in (b"TFL3", b"ORTM"):
        return "a TensorFlow Lite model" if head[4:8] == b"TFL3" else "a model in ONNX Runtime's own format (.ort)"
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")):
        return "a picture"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf")):
        return "a compressed file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (fetch the file itself with git lfs pull)"
    # Printable ASCII only: protobuf starts with a control character.
    if all(32 <= byte < 127 or byte in b"\t\n\r" for byte in head) or head.startswith(b"\xef\xbb\xbf"):
        return "HTML text" if head.lstrip().lower().startswith((b"<!doctype html", b"<html")) else "text"
    return ""


def _has_hash_entry(data: bytes) -> bool:
    return data[-_HASH_ENTRY_BYTES:-64] == _HASH_ENTRY_START


def _check_hash(data: bytes) -> None:
    digest = hashlib.sha256(memoryview(data)[:-_HASH_ENTRY_BYTES])
    digest.update(_EMPTY_HASH_ENTRY)
    if digest.hexdigest().encode("ascii") != data[-64:]:
        raise ArtifactError(
            "The file is damaged, or was edited after it was saved: its SHA-256 is not the one stored in it. "
            "Copy it again from where it was saved, or train again."
        )


def _show_values(values: np.ndarray) -> str:
    return f"shape {list(values.shape)} with sum {float(values.sum()):.4g}"
