"""Weights files read without running any code of theirs."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from headstart._files import show_path
from headstart.errors import BackboneError
from headstart.formats import sniff_format

_NUM_LISTED = 10

# What the first bytes say of files that are taken for weights, as regular expressions.
_NOT_WEIGHTS = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file behind it. Fetch that with `git lfs pull`"),
    (rb"\s*<", "a web page, perhaps the error page of a download. Download the file again"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file as Keras writes it (.h5). Weights of PyTorch are needed"),
    (rb"(?s).{257}ustar", "a tar archive. Unpack it and give the file inside"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed file. Unpack it and give the file inside"),
)
# Where training scripts put the state dict; averaged weights before the raw ones, as timm does. Of DINO's pair the
# teacher is the network that is published, so `student` is not read.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "net", "teacher", "encoder")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file of safetensors or of `torch.save`, whichever it is by its content.

    It is taken out of what training scripts wrap round it, and prefixes that most names carry (`module.`) are taken
    off. Tensors may be memory-mapped: do not change the file while they are in use. Nothing in the file is executed.
    Raises BackboneError for anything but finite dense tensors by name.
    """
    path = Path(path)
    shown = show_path(str(path))
    try:
        content = _load_file(path, shown)
    except (BackboneError, OSError) as error:
        if isinstance(error, BackboneError):
            raise
        raise BackboneError(f"{shown} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # damaged files raise nearly everything, MemoryError among it
        if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise BackboneError(
                f"{shown} asks for {asked[1]}, which is no tensor. Nothing of the file was run. Use a file that holds "
                "tensors only: .safetensors, or torch.save(model.state_dict(), FILE)."
            ) from error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BackboneError(f"{shown} is damaged, cut short or no weights file: {reason}") from error
    state = _strip_prefixes(_take_state_dict(content, shown))
    _check_tensors(state, shown)
    return state


def _load_file(path: Path, shown: str) -> Any:
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        raise BackboneError(f"{shown} is empty.")
    for pattern, what in _NOT_WEIGHTS:
        if re.match(pattern, head):
            raise BackboneError(f"{shown} is {what}.")
    if head[8:9] == b"{":
        return safetensors.torch.load_file(path)
    if head[:4] == b"PK\x03\x04":
        _check_zip(path, shown)
    elif head[:1] != b"\x80":
        raise BackboneError(
            f"{shown} is no weights file: its first bytes say {sniff_format(head)}. Expected .safetensors, or .pth "
            "as torch.save writes it."
        )
    # torch.load goes by the extension `.safetensors` of a path, and maps memory of a path only.
    mapped = head[:2] == b"PK" and path.suffix.lower() != ".safetensors"
    # timm's training script saves its arguments beside the weights.
    with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)


def _check_zip(path: Path, shown: str) -> None:
    with zipfile.ZipFile(path) as archive:
        names = [name.rpartition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names:
        raise BackboneError(
            f"{shown} is a TorchScript program. Save its state dict: torch.save(model.state_dict(), FILE)."
        )
    if "data.pkl" not in names:
        kind = "a Keras file" if "model.weights.h5" in names else "a ZIP archive that torch.save did not write"
        raise BackboneError(f"{shown} is {kind}. Expected .safetensors, or .pth as torch.save writes it.")


def _take_state_dict(content: Any, shown: str) -> dict[str, torch.Tensor]:
    for _ in range(len(_WRAPPERS)):  # a dictionary may hold itself
        if isinstance(content, Mapping):
            inner = (content.get(key) for key in _WRAPPERS)
            content = next((value for value in inner if isinstance(value, Mapping)), content)
    found = content if isinstance(content, Mapping) else {}
    state = {key: value.detach() for key, value in found.items() if isinstance(key, str) and torch.is_tensor(value)}
    if not state:
        keys = ", ".join(repr(key)[:40] for key in list(found)[:_NUM_LISTED])
        held = f"a dictionary with the keys {keys}" if found else f"of type {type(content).__name__}"
        raise BackboneError(f"{shown} holds no tensors by name: what is in it is {held}.")
    return state


def _strip_prefixes(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for _ in range(len(_PREFIXES)):
        for prefix in _PREFIXES:
            if 2 * sum(name.startswith(prefix) for name in state) > len(state):
                stripped = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
                state = stripped if len(stripped) == len(state) else state
    return state


def _check_tensors(state: dict[str, torch.Tensor], shown: str) -> None:
    bad = []
    for name, tensor in state.items():
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        # A stride of 0 repeats an element: a small file could claim any amount of memory.
        if not dense or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            bad.append(f"{name} is no plain tensor")
        elif (
            tensor.is_floating_point()
            and not tensor.to(torch.promote_types(tensor.dtype, torch.float32)).isfinite().all()
        ):
            bad.append(f"{name} holds NaN or infinity")
    if bad:
        more = f" and {len(bad) - _NUM_LISTED} more" if len(bad) > _NUM_LISTED else ""
        raise BackboneError(f"{shown} cannot be used: {', '.join(bad[:_NUM_LISTED])}{more}.")
