"""The head inside a classifier file."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from headstart.artifact import ArtifactMetadata
from headstart.graph import PooledLayer
from headstart.heads.dense import DenseHead
from headstart.heads.linear import LinearHead

Head = LinearHead | DenseHead


def read_head(metadata: ArtifactMetadata, data: bytes) -> Head:
    """From the constants in the graph of a classifier that headstart saved."""
    facts = metadata.head
    model = onnx.load_model_from_string(data)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name.startswith("head.")}
    layers = tuple(PooledLayer(name, grid) for name, grid in facts["layers"])
    temperature = facts["temperature"]
    if facts.get("kind") != "dense":
        coef, intercept = arrays["head.coef"] * temperature, arrays["head.intercept"] * temperature
        return LinearHead(layers, coef, intercept, facts["penalty"] or 0.0, temperature, facts.get("kind", "linear"))
    weights = [(arrays[f"head.{i}.coef"], arrays[f"head.{i}.intercept"]) for i in range(len(facts["hidden"]))]
    coef, bias = arrays["head.output.coef"] * temperature, arrays["head.output.intercept"] * temperature
    if facts["activation"] == "sigmoid":
        coef, bias = coef[:, 1:], bias[1:]
    dropout = tuple(facts.get("dropout", ()))
    return DenseHead(layers, facts["pooling"], (*weights, (coef, bias)), facts["activation"], temperature, dropout)
