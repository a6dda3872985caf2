"""The convolutions of a classifier in 8 bits, fitted to pictures: weights have a scale for each channel, maps one each.

Written as QuantizeLinear and DequantizeLinear around plain operations (Jacob et al. 2018, arXiv:1712.05877), which any
ONNX Runtime can run as they stand and which its optimiser turns into integer arithmetic. Names of tensors stay;
preprocessing, sums of maps, pooling, head and familiarity stay in floats.

Measured against onnxruntime.quantization's static one, whose speed and size it has: half its mean difference of a
probability, because what rounding the weights adds to every picture alike goes into the biases, and the same results on
processors whose 8-bit arithmetic overflows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headstart.backbones.efficientnet_lite_int8 import find_scales
from headstart.errors import ConfigError
from headstart.execution import open_session
from headstart.graph import IMAGE

_MIN_CONV_SHARE = 0.5
_VALUES_PER_MAP = 400
_CLIP_SHARES = np.linspace(0.2, 1, 41)
_ACTIVATIONS = ("Relu", "Clip")


@dataclass(frozen=True, eq=False)
class MapRange:
    """How a map is written in bytes, value = (byte - zero) * scale; `means` float64 (C,) are those of its channels."""

    scale: float
    zero: int
    means: np.ndarray


def check_quantizable(model: onnx.ModelProto) -> None:
    """Raises ConfigError for a network that is in 8 bits already, or of whose weights less than half are convolutions'.

    Those of transformers are in matrix products, which are left as they are.
    """
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise ConfigError("The network is in 8 bits already. Export the classifier in another form, or as it is.")
    sizes = {t.name: math.prod(t.dims) for t in model.graph.initializer if not t.name.startswith(("head.", "famil"))}
    in_convs = sum(sizes[name] for name in {node.input[1] for node in _find_convs(model)})
    if in_convs < _MIN_CONV_SHARE * sum(sizes.values()):
        raise ConfigError(
            f"Only {in_convs / max(1, sum(sizes.values())):.0%} of the network's weights are in convolutions, the part "
            "that is put in 8 bits. Use --to onnx or openvino, or train with a network of convolutions, such as "
            "efficientnet-lite0."
        )


def measure_maps(
    model: onnx.ModelProto, pictures: Iterable[np.ndarray], rng: np.random.Generator
) -> dict[str, MapRange]:
    """The ranges of all maps that convolutions take or give, on pictures uint8 (H, W, 3).

    A range is cut where that makes the squared rounding error least, judged by `_VALUES_PER_MAP` values a picture.
    """
    names = list(dict.fromkeys(name for conv in _find_convs(model) for name in _name_maps(_Links(model), conv)))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = open_session(copy.SerializeToString())
    found: dict[str, list[tuple[float, float, np.ndarray, np.ndarray]]] = {name: [] for name in names}
    for pixels in pictures:
        for name, values in zip(names, session.run(names, {IMAGE: pixels}), strict=True):
            sampled = values.reshape(-1)[rng.integers(0, values.size, _VALUES_PER_MAP)]
            means = values.mean(axis=(0, 2, 3), dtype=np.float64)
            found[name].append((float(values.min()), float(values.max()), sampled, means))
    return {name: _fit_range(seen) for name, seen in found.items()}


def _fit_range(seen: Sequence[tuple[float, float, np.ndarray, np.ndarray]]) -> MapRange:
    lows, highs, sampled, means = zip(*seen, strict=True)
    low, high = min(0.0, *lows), max(0.0, *highs)
    values = np.concatenate(sampled).astype(np.float64)
    best, error = (1.0, 0), math.inf
    for share in _CLIP_SHARES:
        scale = max((high - low) * share / 255, 1e-9)
        zero = round(-low * share / scale)
        rounded = (np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale
        if (current := float(((rounded - values) ** 2).mean())) < error:
            best, error = (scale, zero), current
    return MapRange(float(np.float32(best[0])), best[1], np.mean(means, axis=0))


def quantize(model: onnx.ModelProto, ranges: Mapping[str, MapRange], num_exact: int) -> onnx.ModelProto:
    """The same with all convolutions but the first `num_exact` in 8 bits; `ranges` are those of `measure_maps`.

    What the first ones round goes through all the rest, and on few channels integer arithmetic is not faster.
    """
    return _Rewriter(model, ranges, num_exact).rewrite()


def count_convs(model: onnx.ModelProto) -> int:
    return len(_find_convs(model))


def _find_convs(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Convolutions of pictures with constant weights, in the order of the graph."""
    weights = {t.name for t in model.graph.initializer if len(t.dims) == 4}
    constants = {t.name for t in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1] in weights and all(name in constants for name in node.input[2:])
    ]


class _Links:
    """Who made a tensor and who takes it; copies by Identity count as the tensor itself."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._copies = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    def find_root(self, name: str) -> str:
        while name in self._copies:
            name = self._copies[name]
        return name


def _name_maps(links: _Links, conv: onnx.NodeProto) -> tuple[str, str]:
    """The convolution's input, and its output or what an activation makes of it before anybody else takes it."""
    output = conv.output[0]
    users = links.users.get(output, [])
    if len(users) == 1 and users[0].op_type in _ACTIVATIONS:
        output = users[0].output[0]
    return links.find_root(conv.input[0]), output


class _Rewriter:
    def __init__(self, model: onnx.ModelProto, ranges: Mapping[str, MapRange], num_exact: int) -> None:
        self.result = onnx.ModelProto()
        self.result.CopyFrom(model)
        self.ranges = ranges
        self.links = _Links(self.result)
        self.convs = _find_convs(self.result)[num_exact:]
        self.nodes: list[onnx.NodeProto] = []
        self.bytes_of: dict[str, list[str]] = {}  # map: its bytes, their scale and zero
        self.constants: list[onnx.TensorProto] = []

    def rewrite(self) -> onnx.ModelProto:
        graph = self.result.graph
        weights = {tensor.name: tensor for tensor in graph.initializer}
        inputs, outputs = (set(names) for names in zip(*(_name_maps(self.links, c) for c in self.convs), strict=True))
        chosen = {conv.output[0] for conv in self.convs}
        for node in graph.node:
            if node.op_type == "Conv" and node.output[0] in chosen:
                self.rewrite_conv(node, weights)
            else:
                for place, name in enumerate(node.input):
                    if name in outputs:  # whose floats integer arithmetic does not keep
                        node.input[place] = self.dequantize(name)
            self.nodes.append(node)
            for name in node.output:
                if name in inputs | outputs:
                    self.quantize(name)
        self.finish(graph)
        return self.result

    def rewrite_conv(self, conv: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> None:
        source = self.links.find_root(conv.input[0])
        span = self.ranges[source]
        kernel, *biases = (numpy_helper.to_array(weights[name]).astype(np.float64) for name in conv.input[1:])
        bias = biases[0] if biases else np.zeros(len(kernel))
        # A bias is a whole number of 32 bits in steps of both scales.
        scales = np.maximum(find_scales(kernel), np.abs(bias) / (span.scale * 2.0**30))
        rounded = np.round(kernel / scales.reshape(-1, 1, 1, 1))
        error = (rounded * scales.reshape(-1, 1, 1, 1) - kernel).sum(axis=(2, 3))  # (O, C / groups)
        num_groups = next((each.i for each in conv.attribute if each.name == "group"), 1)
        means = np.repeat(span.means.reshape(num_groups, -1), len(kernel) // num_groups, axis=0)
        bias = bias - (error * means).sum(axis=1)
        scales = scales.astype(np.float32)
        bias_scales = scales * np.float32(span.scale)
        names = [
            self.dequantize(source),
            self.add_constant_bytes(rounded.astype(np.int8), scales),
            self.add_constant_bytes(np.round(bias / bias_scales).astype(np.int32), bias_scales),
        ]
        del conv.input[:]
        conv.input.extend(names)

    def quantize(self, name: str) -> None:
        span = self.ranges[name]
        facts = [self.add_constant(np.float32(span.scale)), self.add_constant(np.uint8(span.zero))]
        self.bytes_of[name] = [self.add("QuantizeLinear", name, *facts), *facts]

    def dequantize(self, name: str) -> str:
        """A copy for one user: what is shared the optimiser would have to part."""
        return self.add("DequantizeLinear", *self.bytes_of[name])

    def add_constant_bytes(self, values: np.ndarray, scales: np.ndarray) -> str:
        zeros = np.zeros(len(scales), values.dtype)
        return self.add("DequantizeLinear", *map(self.add_constant, (values, scales, zeros)), axis=0)

    def add_constant(self, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), f"int8_c{len(self.constants)}"))
        return self.constants[-1].name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        output = f"int8_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def finish(self, graph: onnx.GraphProto) -> None:
        """Without the constants that nobody takes any more."""
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        del graph.node[:]
        graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input}
        kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name in used]
        del graph.initializer[:], graph.value_info[:]
        graph.initializer.extend([*kept, *self.constants])
