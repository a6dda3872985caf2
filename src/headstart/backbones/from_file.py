"""The network inside a classifier file, as a backbone: what a fine-tuned one needs, for it is nowhere else."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from headstart.artifact import ArtifactMetadata
from headstart.backbones.catalog import Backbone, Layer
from headstart.errors import BackboneError
from headstart.execution import open_session
from headstart.graph import IMAGE, PreprocessSpec


def read_backbone(metadata: ArtifactMetadata, data: bytes) -> Backbone:
    """From the bytes of a classifier that headstart saved; its layers are those that the head uses.

    Raises BackboneError for a foreign file, whose layers are not known.
    """
    if not metadata.format_version:
        raise BackboneError("The classifier is a foreign ONNX file: it does not say where its features are.")
    names = list(dict.fromkeys(layer for layer, _ in metadata.head["layers"]))
    model = onnx.load_model_from_string(data)
    del model.metadata_props[:]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    maps = open_session(model.SerializeToString()).run(names, {IMAGE: np.zeros((64, 64, 3), np.uint8)})
    layers = tuple(Layer(name, each.shape[1], each.shape[2]) for name, each in zip(names, maps, strict=True))
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(layer.name, TensorProto.FLOAT, [1, layer.channels, layer.size, layer.size])
        for layer in layers
    )
    spec = metadata.preprocess
    known = {name: spec[name] for name in ("input_size_px", "crop_frac", "interpolation", "crop") if name in spec}
    preprocess = PreprocessSpec(mean=tuple(spec["mean"]), std=tuple(spec["std"]), **known)
    facts = metadata.backbone
    return Backbone(facts["name"], facts["sha256"], facts["licence"], facts["source"], preprocess, layers, model)
