"""Networks that come from torch: exported to ONNX once, then kept, so that torch is not needed again."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import asdict
from pathlib import Path

import onnx

from headstart._files import compute_file_sha256, get_cache_folder, show_path, write_atomic
from headstart.backbones.catalog import RANDOM_WEIGHTS, Backbone, Layer
from headstart.errors import BackboneError, require_torch
from headstart.graph import PreprocessSpec

logger = logging.getLogger(__name__)

EXPORT_VERSION = 2
"""Counts changes of what is exported (layers, preprocessing), so that graphs kept from before are not used."""

_KEY = "headstart.backbone"


def load_exported(name: str, input_size_px: int | None = None, weights: str | None = None) -> Backbone:
    """The backbone as a graph, from the cache folder or by torch. `name` and the rest are those of `load_backbone`.

    Raises BackboneError, MissingDependencyError where torch is needed and absent.
    """
    file = _name_file(name, input_size_px, weights)
    if file.is_file():
        try:
            return _read(file)
        except Exception as error:  # whatever is wrong with it, it can be made again
            logger.warning("%s is damaged (%s); it is made again.", show_path(str(file)), error)
    require_torch(f"The backbone {name}")
    from headstart.backbones.onnx_export import export_backbone
    from headstart.backbones.torch_network import load_network

    backbone = export_backbone(load_network(name, input_size_px, weights))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, _serialize(backbone))
    return _read(file)


def list_kept() -> list[str]:
    """Names of the networks whose graph, with the published weights at their own size, is kept."""
    names = set()
    for file in (get_cache_folder() / "backbones").glob("*.onnx"):
        stem = file.stem.rpartition("-")[0]
        for name in (stem, stem.replace("-", ":", 1)):
            if _name_file(name, None, None) == file:
                names.add(name)
    return sorted(names)


def _name_file(name: str, input_size_px: int | None, weights: str | None) -> Path:
    if weights is None or weights == RANDOM_WEIGHTS:
        content = weights or "published"
    else:
        try:
            content = compute_file_sha256(weights)
        except OSError as error:
            raise BackboneError(
                f"The weights {show_path(weights)} cannot be read: {error.strerror}. Give a .safetensors or .pth file."
            ) from error
    key = hashlib.sha256(json.dumps([EXPORT_VERSION, name, input_size_px, content]).encode()).hexdigest()[:16]
    return get_cache_folder() / "backbones" / f"{re.sub('[^A-Za-z0-9._-]', '-', name)}-{key}.onnx"


def _serialize(backbone: Backbone) -> bytes:
    facts = {
        "name": backbone.name,
        "sha256": backbone.sha256,
        "licence": backbone.licence,
        "source": backbone.source,
        "preprocess": asdict(backbone.preprocess),
        "layers": [asdict(layer) for layer in backbone.layers],
    }
    model = onnx.ModelProto()
    model.CopyFrom(backbone.model)
    model.metadata_props.add(key=_KEY, value=json.dumps(facts))
    return model.SerializeToString(deterministic=True)


def _read(file: Path) -> Backbone:
    model = onnx.load_model_from_string(file.read_bytes())
    facts = json.loads(next(entry.value for entry in model.metadata_props if entry.key == _KEY))
    del model.metadata_props[:]
    spec = facts.pop("preprocess")
    preprocess = PreprocessSpec(**{**spec, "mean": tuple(spec["mean"]), "std": tuple(spec["std"])})
    layers = tuple(Layer(**layer) for layer in facts.pop("layers"))
    return Backbone(**facts, preprocess=preprocess, layers=layers, model=model)
