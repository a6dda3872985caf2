"""Layers without positions, such as a class token: the rest of the network above the last tensor that has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

from headstart.artifact import create_session
from headstart.errors import ConfigError
from headstart.execution import open_session
from headstart.graph import IMAGE

if TYPE_CHECKING:
    import onnxruntime

# Of a position's values, up and down: wide enough for single precision, the error falls with its square.
_STEP = 0.1
# The tensors of a whole network would take much memory; the one that is sought stands near its end.
_MAX_CUTS = 40


def add_outputs(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """The model with more outputs. It keeps those that are added."""
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return bytes(model.SerializeToString())


@dataclass(frozen=True, eq=False)
class Tail:
    """Vector layers as a function of `tensor`, the last on which they depend that has positions."""

    tensor: str
    session: onnxruntime.InferenceSession

    def share_out(self, tensor: np.ndarray, vectors: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
        """float64 (h * h,): each position's values times the gradient of the sum of vector @ weights over `vectors`."""

        def compute(position: int, factor: float) -> float:
            scaled = tensor.copy()
            _list_positions(scaled)[position] *= factor
            found = self.session.run([name for name, _ in vectors], {self.tensor: scaled})
            return sum(
                float(each.ravel().astype(np.float64) @ weights)
                for each, (_, weights) in zip(found, vectors, strict=True)
            )

        count = len(_list_positions(tensor))
        return np.array([compute(i, 1 + _STEP) - compute(i, 1 - _STEP) for i in range(count)]) / (2 * _STEP)


def _list_positions(tensor: np.ndarray) -> np.ndarray:
    """A view (h * h, C) of a map (1, C, h, h) or (1, h, h, C), or of tokens (1, prefix + h * h, C); else empty."""
    if tensor.ndim == 4 and len(tensor) == 1 and tensor.shape[2] == tensor.shape[3]:
        return tensor[0].reshape(tensor.shape[1], -1).T
    if tensor.ndim == 4 and len(tensor) == 1 and tensor.shape[1] == tensor.shape[2]:
        return tensor[0].reshape(-1, tensor.shape[3])
    if tensor.ndim == 3 and len(tensor) == 1:  # class and register tokens stand before the others
        return tensor[0, tensor.shape[1] - math.isqrt(tensor.shape[1]) ** 2 :]
    return np.zeros((0, 0), np.float32)


def cut_tail(model: onnx.ModelProto, vectors: Sequence[str], picture: np.ndarray) -> Tail:
    """Cut at the last tensor with positions, more than one of which matter, that everything above depends on."""
    candidates = _find_cuts(model, vectors)[-_MAX_CUTS:]
    plain = type(model)()
    plain.CopyFrom(model)
    tensors = create_session(add_outputs(plain, candidates)).run(candidates, {IMAGE: picture})
    for name, tensor in zip(reversed(candidates), reversed(tensors), strict=True):
        if tensor.dtype != np.float32 or len(_list_positions(tensor)) < 4:
            continue
        tail = _make_tail(model, name, tensor.shape, vectors)
        changed = tensor.copy()
        _list_positions(changed)[:] *= 1.5
        runs = [tail.session.run(list(vectors), {name: each}) for each in (tensor, changed)]
        # Of the last map of a transformer its class token reads nothing; before the last attention it reads all.
        if any(not np.array_equal(before, after) for before, after in zip(*runs, strict=True)):
            return tail
    raise ConfigError(
        f"The head takes {', '.join(vectors)}, and nothing that has positions in the picture comes before it."
    )


def _find_cuts(model: onnx.ModelProto, targets: Sequence[str]) -> list[str]:
    """Every tensor through which all goes that leads from the picture to the targets, in order."""
    needed = set(targets)
    nodes: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.insert(0, node)
            needed.update(node.input)
    last_use = {tensor: index for index, node in enumerate(nodes) for tensor in node.input}
    last_use.update(dict.fromkeys(targets, len(nodes)))
    dependent, live = {IMAGE}, {IMAGE}
    cuts: list[str] = []
    for index, node in enumerate(nodes):
        if not dependent.intersection(node.input):
            continue
        made = needed.intersection(node.output)
        dependent |= made
        live = {tensor for tensor in live | made if last_use[tensor] > index}
        if len(live) == 1 and live <= made:
            cuts += live
    return cuts


def _make_tail(model: onnx.ModelProto, tensor: str, shape: Sequence[int], vectors: Sequence[str]) -> Tail:
    extractor = onnx.utils.Extractor(model)
    extractor.value_infos[tensor] = helper.make_tensor_value_info(tensor, TensorProto.FLOAT, shape)
    data = extractor.extract_model([tensor], list(vectors)).SerializeToString()
    return Tail(tensor, open_session(data))
