"""A graph for pictures of any size in two: the picture made the network's input, and the rest with fixed shapes.

Also whether a device computes the rest as the processor does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from headstart.graph import IMAGE

# Half precision differs from single by some 0.001; a device that computes something else by far more.
_MAX_RELATIVE_ERROR = 0.01


def split_graph(data: bytes, input_size_px: int) -> tuple[bytes, bytes, list[tuple[int, ...]]]:
    """The graph before and after the network's input, and the shapes of its outputs for one picture.

    The network's input is the last float32 (1, 3, S, S) on which all the rest depends. Raises RuntimeError for a graph
    that has none.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data))
    del model.metadata_props[:]
    shapes = {info.name: _read_shape(info) for info in (*model.graph.value_info, *model.graph.output)}
    outputs = [output.name for output in model.graph.output]
    cutter = onnx.utils.Extractor(model)
    for node in reversed(model.graph.node):
        for tensor in node.output:
            if shapes.get(tensor) != (1, 3, input_size_px, input_size_px):
                continue
            before = cutter.extract_model([IMAGE], [tensor])
            after = cutter.extract_model([tensor], outputs)
            if not any(IMAGE in each.input for each in after.graph.node):
                found = [tuple(shapes[name]) for name in outputs]
                return before.SerializeToString(), after.SerializeToString(), found
    raise RuntimeError("the graph has no place where the picture has become the network's input")


def _read_shape(info: onnx.ValueInfoProto) -> tuple[int, ...]:
    """0 stands for a side that is not known."""
    return tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)


def widen_graph(data: bytes, batch_size: int) -> bytes:
    """The graph for that many pictures: the first side of its inputs, outputs and constant reshapes times as long.

    As the picture is the outermost side of every tensor, that is right wherever pictures do not meet; what it is not
    right for shows in the comparison with the processor.
    """
    if batch_size == 1:
        return data
    model = onnx.load_model_from_string(data)
    graph = model.graph
    del graph.value_info[:]
    for info in (*graph.input, *graph.output):
        first = info.type.tensor_type.shape.dim[0]
        first.dim_value *= batch_size
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for number, node in enumerate(graph.node):
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = onnx.numpy_helper.to_array(constants[node.input[1]]).copy()
        if shape[0] > 0:
            shape[0] *= batch_size
            node.input[1] = f"shape_of_{batch_size}_{number}"
            graph.initializer.append(onnx.numpy_helper.from_array(shape, node.input[1]))
    return bytes(model.SerializeToString())


def draw_probe(seed: int) -> np.ndarray:
    """A picture of structure and noise, uint8 (96, 128, 3)."""
    rows, columns = np.mgrid[:96, :128]
    waves = 128 + 80 * np.sin(rows / (5 + seed)) * np.cos(columns / (9 - seed))
    noise = np.random.default_rng(seed).normal(0, 20, (96, 128, 3))
    return np.clip(waves[..., None] + noise, 0, 255).astype(np.uint8)


def compare_outputs(found: Sequence[Sequence[np.ndarray]], expected: Sequence[Sequence[np.ndarray]]) -> None:
    """Raises RuntimeError where what a device gives for some pictures is not what the processor gives."""
    for ours, theirs in zip(found, expected, strict=False):
        for device, processor in zip(ours, theirs, strict=True):
            right = processor.astype(np.float64)  # half precision would overflow
            error = float(np.linalg.norm(device - right) / max(float(np.linalg.norm(right)), 1e-12))
            if not error <= _MAX_RELATIVE_ERROR:
                raise RuntimeError(f"its results differ by {error:.2g} of their size from those of the processor")
