"""What is trained: the network above the cut with a head on it, as one torch module over rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from headstart.backbones.catalog import Layer
from headstart.finetuning.cut import WHOLE, CutNetwork, pool_map
from headstart.graph import PooledLayer
from headstart.heads.dense import DenseHead
from headstart.heads.from_file import Head


class TopModel(torch.nn.Module):
    """Rows (B, cut.row_size) to logits (B, K), before temperature; K = 1 for a sigmoid.

    `cut` is None for a head on frozen features: rows are then the features themselves.
    """

    def __init__(self, cut: CutNetwork | None, head: HeadModule) -> None:
        super().__init__()
        self.above = cut.above if cut else None
        self.head = head
        self.cut = cut

    def train(self, mode: bool = True) -> TopModel:
        """Dropout of the head on or off; the network's batch norm keeps its statistics, unless it began at random."""
        self.training = mode
        self.head.train(mode)
        if self.cut is not None and self.cut.entry == WHOLE:  # a part that was traced has no modes
            self.cut.above.train(mode and self.cut.is_random)
        return self

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.head(self.compute_features(*self.split_rows(rows)))

    def split_rows(self, rows: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The tensor at the cut (B, *cut_shape), and what else the rows hold (B, D)."""
        if self.cut is None:
            return None, rows
        size = math.prod(self.cut.cut_shape)
        values = rows[:, :size].unflatten(1, self.cut.cut_shape)
        if values.ndim == 4:
            values = values.contiguous(memory_format=torch.channels_last)
        return values, rows[:, size:]

    def compute_features(self, values: torch.Tensor | None, rest: torch.Tensor) -> torch.Tensor:
        """The head's pooled layers side by side (B, D)."""
        if self.cut is None or self.above is None or values is None:
            return rest
        maps = dict(zip(self._list_above(), self.above(values), strict=True))
        parts, start = [], 0
        for pooled in self.cut.head_layers:
            if pooled.layer in maps:
                parts.append(pool_map(maps[pooled.layer], self._get_layer(pooled).size, pooled.grid))
            else:
                size = self.cut.count_features(pooled)
                parts.append(rest[:, start : start + size])
                start += size
        return torch.cat(parts, dim=1)

    def _list_above(self) -> list[str]:
        assert self.cut is not None
        below = {pooled.layer for pooled in self.cut.below}
        return list(dict.fromkeys(p.layer for p in self.cut.head_layers if p.layer not in below))

    def _get_layer(self, pooled: PooledLayer) -> Layer:
        assert self.cut is not None
        return self.cut.network.get_layer(pooled.layer).layer


class HeadModule(torch.nn.Module):
    """A head in torch: features times `scale`, then dense layers with ReLU and dropout between.

    `source` is the head that it began as: it says which layers, pooling and dropout there are.
    """

    def __init__(self, source: Head, scale: np.ndarray | None = None) -> None:
        super().__init__()
        self.source = source
        weights = source.weights if isinstance(source, DenseHead) else ((source.coef, source.intercept),)
        scales = [np.ones(1, np.float32) if scale is None else scale, *(np.ones(1, np.float32) for _ in weights[1:])]
        self.layers = torch.nn.ModuleList(
            _make_linear(coef / factor.reshape(-1, 1), bias)
            for (coef, bias), factor in zip(weights, scales, strict=True)
        )
        self.register_buffer("scale", torch.from_numpy(scales[0].astype(np.float32)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        source = self.source
        dropout = source.dropout if isinstance(source, DenseHead) else ()
        if isinstance(source, DenseHead) and source.pooling == "max":
            features = features.unflatten(1, (-1, source.layers[0].grid ** 2)).amax(dim=2)
        features = features * self.scale
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            if index == last == 0 and dropout:  # nothing is hidden: it stands before the output
                features = torch.nn.functional.dropout(features, dropout[0], self.training)
            features = layer(features)
            if index < last:
                features = torch.relu(features)
                if index < len(dropout):
                    features = torch.nn.functional.dropout(features, dropout[index], self.training)
        return features

    def to_head(self, temperature: float = 1.0) -> Head:
        """The weights as they are now, as arrays."""
        arrays = [
            (layer.weight.detach().cpu().numpy().T.copy(), layer.bias.detach().cpu().numpy().copy())
            for layer in self.layers
        ]
        arrays[0] = (arrays[0][0] * self.scale.cpu().numpy().reshape(-1, 1), arrays[0][1])
        if isinstance(self.source, DenseHead):
            return replace(self.source, weights=tuple(arrays), temperature=temperature)
        [(coef, intercept)] = arrays
        return replace(self.source, coef=coef, intercept=intercept, temperature=temperature)


def _make_linear(coef: np.ndarray, bias: np.ndarray) -> torch.nn.Linear:
    layer = torch.nn.Linear(*coef.shape)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(coef.T, np.float32)))
        layer.bias.copy_(torch.from_numpy(bias.astype(np.float32)))
    return layer


def draw_dense_head(
    layers: tuple[PooledLayer, ...],
    channels: int,
    pooling: str,
    hidden: Sequence[int],
    dropout: Sequence[float],
    activation: str,
    num_classes: int,
    rng: np.random.Generator,
) -> DenseHead:
    """A head with random weights, as Keras draws them: uniform after Glorot and Bengio (2010), biases 0."""
    num_inputs = channels * layers[0].grid ** 2 if pooling != "max" else channels
    sizes = [num_inputs, *hidden, 1 if activation == "sigmoid" else num_classes]
    weights = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        limit = math.sqrt(6 / (fan_in + fan_out))
        coef = rng.uniform(-limit, limit, (fan_in, fan_out)).astype(np.float32)
        weights.append((coef, np.zeros(fan_out, np.float32)))
    return DenseHead(layers, pooling, tuple(weights), activation, 1.0, tuple(dropout))  # type: ignore[arg-type]
