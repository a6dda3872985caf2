"""A dense head: one pooled layer through fully connected layers to probabilities, as arrays and as ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from headstart.graph import GraphBuilder, PooledLayer, add_pooling

if TYPE_CHECKING:
    from headstart.features import FeatureLayout


@dataclass(frozen=True, eq=False)
class DenseHead:
    """Pooling, then `values @ coef + bias` for each (coef, bias) of `weights` with ReLU in between, then probabilities.

    `layers` holds one layer. "average" pooling takes the values of its raster (grid 1: one a channel). "flatten" is the
    same on a raster as fine as the map (grid = its size), in the order of torch.nn.Flatten on (B, C, h, w). "max" takes
    the largest value of a channel over the cells of its raster, which is that of the map when the raster is as fine.

    `weights` are float32: coef (D_in, D_out), bias (D_out,), the first D_in the number of pooled values. Probabilities
    are softmax(logits / temperature) of K logits. With "sigmoid" the last D_out is 1 and the logits are [0, z]: their
    softmax is [1 - s, s] with s = sigmoid(z / temperature). `dropout` says what the training did: a rate after each
    hidden layer, or before the output layer where none is hidden; it has no part in predicting.
    """

    layers: tuple[PooledLayer, ...]
    pooling: Literal["average", "max", "flatten"]
    weights: tuple[tuple[np.ndarray, np.ndarray], ...]
    activation: Literal["softmax", "sigmoid"]
    temperature: float
    dropout: tuple[float, ...] = ()

    @property
    def num_classes(self) -> int:
        return 2 if self.activation == "sigmoid" else len(self.weights[-1][1])

    @property
    def num_params(self) -> int:
        return sum(coef.size + bias.size for coef, bias in self.weights)

    @property
    def hidden(self) -> tuple[int, ...]:
        """Units of the hidden layers."""
        return tuple(len(bias) for _, bias in self.weights[:-1])

    def compute_logits(self, rows: np.ndarray, layout: FeatureLayout) -> np.ndarray:
        """float32 (N, K), before temperature, from cached rows float16 (N, layout.num_features)."""
        [pooled] = self.layers
        values = layout.read_block(rows, pooled)
        if self.pooling == "max":
            values = values.reshape(len(rows), -1, pooled.grid**2).max(axis=2)
        for coef, bias in self.weights[:-1]:
            values = np.maximum(values @ coef + bias, 0)
        coef, bias = self._get_output_layer()
        return values @ coef + bias

    def _get_output_layer(self) -> tuple[np.ndarray, np.ndarray]:
        """coef (D_in, K) and bias (K,); for a sigmoid with zeros for the logit 0 of the first class."""
        coef, bias = self.weights[-1]
        if self.activation == "sigmoid":
            return np.pad(coef, ((0, 0), (1, 0))), np.pad(bias, (1, 0))
        return coef, bias

    def add_nodes(self, builder: GraphBuilder, maps: Sequence[tuple[PooledLayer, int, int]]) -> str:
        """Nodes from the feature map, as `add_pooling` takes it, to logits / temperature, (1, K)."""
        [(pooled, channels, _)] = maps
        values = add_pooling(builder, maps)
        if self.pooling == "max":
            cells = builder.add("Reshape", values, builder.int_constant(1, channels, pooled.grid**2))
            values = builder.add("ReduceMax", cells, builder.int_constant(2), keepdims=0)
        for index, (coef, bias) in enumerate(self.weights[:-1]):
            values = builder.add("Relu", _add_dense(builder, values, coef, bias, f"head.{index}"))
        coef, bias = (
            (each.astype(np.float64) / self.temperature).astype(np.float32) for each in self._get_output_layer()
        )
        return _add_dense(builder, values, coef, bias, "head.output")

    def to_json(self) -> dict[str, Any]:
        """What the classifier file says under `headstart.head`."""
        return {
            "kind": "dense",
            "layers": [[pooled.layer, pooled.grid] for pooled in self.layers],
            "pooling": self.pooling,
            "hidden": list(self.hidden),
            "dropout": list(self.dropout),
            "activation": self.activation,
            "penalty": None,
            "temperature": self.temperature,
        }


def _add_dense(builder: GraphBuilder, values: str, coef: np.ndarray, bias: np.ndarray, name: str) -> str:
    # A backbone's tensors may bear the names that torch gives, such as head.0.bias; these do not.
    inputs = builder.constant(coef, f"{name}.coef"), builder.constant(bias, f"{name}.intercept")
    return builder.add("Gemm", values, *inputs)
