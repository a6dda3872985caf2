"""A linear head: pooled features to probabilities, as arrays and as ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx

from headstart.graph import PROBABILITIES, GraphBuilder, PooledLayer, add_pooling, extend_graph

if TYPE_CHECKING:
    from headstart.backbones.catalog import Backbone
    from headstart.familiarity import Familiarity
    from headstart.features import FeatureLayout
    from headstart.heads.dense import DenseHead


@dataclass(frozen=True, eq=False)
class LinearHead:
    """logits = features @ coef + intercept, probabilities = softmax(logits / temperature).

    `coef` float32 (D, K) and `intercept` float32 (K,) act on the pooled layers as the backbone gives them, side by
    side in the order of `layers`: standardisation and projection are multiplied in.
    """

    layers: tuple[PooledLayer, ...]
    coef: np.ndarray
    intercept: np.ndarray
    penalty: float
    temperature: float
    kind: Literal["linear", "svm"] = "linear"

    @property
    def num_classes(self) -> int:
        return len(self.intercept)

    def compute_logits(self, rows: np.ndarray, layout: FeatureLayout) -> np.ndarray:
        """float32 (N, K), before temperature, from cached rows float16 (N, layout.num_features)."""
        logits = np.tile(self.intercept, (len(rows), 1))
        start = 0
        for pooled in self.layers:
            block = layout.read_block(rows, pooled)
            logits += block @ self.coef[start : start + block.shape[1]]
            start += block.shape[1]
        return logits

    def add_nodes(self, builder: GraphBuilder, maps: Sequence[tuple[PooledLayer, int, int]]) -> str:
        """Nodes from feature maps, as `add_pooling` takes them, to logits / temperature, (1, K)."""
        coef, intercept = (
            builder.constant((values.astype(np.float64) / self.temperature).astype(np.float32), name)
            for values, name in ((self.coef, "head.coef"), (self.intercept, "head.intercept"))
        )
        return builder.add("Gemm", add_pooling(builder, maps), coef, intercept)

    def to_json(self) -> dict[str, Any]:
        """What the classifier file says under `headstart.head`."""
        return {
            "kind": self.kind,
            "layers": [[pooled.layer, pooled.grid] for pooled in self.layers],
            "penalty": self.penalty,
            "temperature": self.temperature,
        }


def build_classifier(
    backbone: Backbone, head: LinearHead | DenseHead, familiarity: Familiarity | None = None
) -> onnx.ModelProto:
    """Picture uint8 (H, W, 3) to `probabilities` float32 (K,): backbone up to the head's layers, pooling, head.

    With `familiarity` to `familiarity` float32 (1,) as well.
    """
    builder = GraphBuilder(prefix="head_")
    maps = [(pooled, backbone.get_layer(pooled.layer)) for pooled in head.layers]
    logits = head.add_nodes(builder, [(pooled, layer.channels, layer.size) for pooled, layer in maps])
    probs = builder.add("Softmax", logits, axis=1)
    builder.add("Squeeze", probs, builder.int_constant(0), output=PROBABILITIES)
    layers = [pooled.layer for pooled in head.layers]
    if familiarity:
        pooled = familiarity.layer
        layers.append(pooled.layer)
        layer = backbone.get_layer(pooled.layer)
        name = familiarity.add_nodes(builder, add_pooling(builder, [(pooled, layer.channels, layer.size)]))
    model = extend_graph(backbone.model, list(dict.fromkeys(layers)), builder, PROBABILITIES, head.num_classes)
    if familiarity:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]))
    return model


def describe_layers(layers: Sequence[PooledLayer]) -> str:
    """`head 1x1 + stage7 2x2`"""
    return " + ".join(str(pooled) for pooled in layers)
