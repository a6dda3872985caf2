"""Pretrained weights of timm's models: where they are on this machine, and how they come here."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import timm
import torch.hub
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from headstart._files import compute_file_sha256, get_cache_folder, show_path
from headstart.errors import BackboneError, suggest

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # in timm's order
_TIMEOUT_S = 10
# At least 8 digits: `vit.h.14-300e.pth.tar` names its epochs, not its digest.
_DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.")


def find_weights(name: str) -> Path | None:
    """The weights of a timm model on this machine, without network: `weights/` in our cache folder as
    NAME.safetensors or NAME.pth, then the hub's cache, then torch.hub's for models that have a plain address only.

    `name` is timm's full name, such as `vgg16.tv_in1k`. The file is not opened. Raises BackboneError for an unknown
    name.
    """
    config = _get_config(name)
    for extension in (".safetensors", ".pth"):
        file = _get_place(name, extension)
        if file.is_file():
            return file
    if config.hf_hub_id:
        for filename in _list_hub_files(config):
            cached = try_to_load_from_cache(config.hf_hub_id, filename)
            if isinstance(cached, str):
                return Path(cached)
        return None
    file = _get_torch_hub_file(config)
    return file if config.url and file.is_file() else None


def fetch_weights(name: str) -> Path:
    """The weights of a timm model: those on this machine, else downloaded with a progress bar on stderr.

    Where the publisher tells the file's SHA-256 (the hub does, and some file names hold its beginning) it is checked,
    also of a file downloaded earlier. Raises BackboneError that says which file to put where when nothing can be
    downloaded, and with both digests when they differ; nothing is deleted then.
    """
    config = _get_config(name)
    file, digest = find_weights(name), None
    try:
        if file is None and config.hf_hub_id:
            file, digest = _download_from_hub(config)
        elif file is None and config.url:
            file = _download_from_address(config)
    except BackboneError as error:
        raise BackboneError(f"The weights of {name} are not on this machine. {error} {_say_by_hand(name)}") from error
    except Exception as error:  # the client's own errors, those of its HTTP library and the system's
        raise BackboneError(
            f"The weights of {name} are not on this machine and cannot be downloaded: {_say_reason(config, error)} "
            + _say_by_hand(name)
        ) from error
    if file is None:
        raise BackboneError(f"No weights of {name} are published. Pass your own with --weights FILE.")
    _check_digest(file, digest or _get_published_digest(file))
    return file


def _get_config(name: str) -> Any:
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # the model is known, what stands after the dot is not
        config = None
    if config is None:
        nearest = suggest(name, timm.list_models(pretrained=True))
        raise BackboneError(f"timm knows no weights named '{name}'.{nearest}")
    return config


def _get_place(name: str, extension: str) -> Path:
    return get_cache_folder() / "weights" / f"{name}{extension}"


def _get_torch_hub_file(config: Any) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url or "none").name


def _list_hub_files(config: Any) -> tuple[str, ...]:
    return (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES


def _download_from_hub(config: Any) -> tuple[Path, str | None]:
    """The file in the hub's cache and its SHA-256 as the hub tells it: the ETag of files stored by LFS.

    The address is asked once before the client downloads: the client tries for half a minute when there is no network.
    """
    for filename in _list_hub_files(config):
        try:
            metadata = get_hf_file_metadata(hf_hub_url(config.hf_hub_id, filename), timeout=_TIMEOUT_S)
        except HfHubHTTPError as error:
            if error.response.status_code == 404:
                continue
            raise
        file = Path(hf_hub_download(config.hf_hub_id, filename))
        return file, metadata.etag if re.fullmatch("[0-9a-f]{64}", metadata.etag or "") else None
    names = " nor ".join(_list_hub_files(config))
    raise BackboneError(f"{constants.ENDPOINT}/{config.hf_hub_id} has no {names} (HTTP 404).")


def _download_from_address(config: Any) -> Path:
    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled
    try:
        urllib.request.urlopen(config.url, timeout=_TIMEOUT_S).close()  # torch.hub would wait without end
    except urllib.error.HTTPError as error:
        error.close()
        raise
    file = _get_torch_hub_file(config)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(config.url, str(file), _get_digest_in_name(file))
    return file


def _get_published_digest(file: Path) -> str | None:
    """The SHA-256, or its beginning, that the publisher gave a file of the hub's cache or of torch.hub's."""
    if file.is_symlink():  # the hub's cache: the link leads to a file named by its ETag
        target = file.readlink().name
        return target if re.fullmatch("[0-9a-f]{64}", target) else None
    in_torch_hub = file.parent == Path(torch.hub.get_dir()) / "checkpoints"
    return _get_digest_in_name(file) if in_torch_hub else None


def _get_digest_in_name(file: Path) -> str | None:
    match = _DIGEST_IN_NAME.search(file.name)
    return match[1] if match else None


def _check_digest(file: Path, expected: str | None) -> None:
    if expected and not (digest := compute_file_sha256(file)).startswith(expected):
        raise BackboneError(
            f"{show_path(str(file))} is not the published file: its SHA-256 is {digest}, expected {expected}. It was "
            f"damaged or changed on its way. Delete {show_path(str(file.resolve()))} and run the command again."
        )


def _say_reason(config: Any, error: Exception) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set."
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return (
            f"access is refused (HTTP {error.response.status_code}). If its licence has to be accepted, do so at "
            f"{constants.ENDPOINT}/{config.hf_hub_id}, make a token there, and set it with `hf auth login` or as "
            "HF_TOKEN."
        )
    text = (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip().splitlines()[0]
    return text if text.endswith(".") else f"{text}."


def _say_by_hand(name: str) -> str:
    config = _get_config(name)
    url = hf_hub_url(config.hf_hub_id, _list_hub_files(config)[0]) if config.hf_hub_id else config.url
    place = _get_place(name, ".safetensors" if url.endswith(".safetensors") else ".pth")
    return (
        f"Fetch {url} where there is a network and put it at {show_path(str(place))}, or pass it with --weights FILE."
    )
