"""ONNX nodes for preprocessing, pooling and heads, and the joining of graphs.

Every graph here takes `image`, one RGB picture as uint8 (H, W, 3) of any size, so that training, evaluation, the
command line and any other ONNX Runtime see the same pixels by construction.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18  # the first with Resize(antialias=1)
IR_VERSION = 9
IMAGE = "image"
FEATURES = "features"
PROBABILITIES = "probabilities"


@dataclass(frozen=True)
class PreprocessSpec:
    """A centred square, resized to `input_size_px`, then (x / 255 - mean) / std.

    The square's side is `crop_frac` of the short side, but never gives up pixels that the input has room for: up to an
    input's side nothing of the short side is cut off. (CIFAR-10 gains 1 to 2 points by that, photographs lose none.)
    With `crop` "after-resize" the square of a larger picture lies, to fractions of a pixel, where it lies in
    torchvision's order: the short side becomes S / crop_frac, rounded down, then S x S pixels are cut from the middle.
    With `crop` "squash" the whole picture is squeezed into a square of that side before the cut. `interpolation` is
    "cubic" or "linear".
    """

    input_size_px: int
    crop_frac: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "cubic"
    crop: str = "centre"

    def to_json(self) -> dict[str, Any]:
        """As the classifier file holds it; `crop` is left out where it is the centre, as the first files had it."""
        plain = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        return {name: value for name, value in plain.items() if (name, value) != ("crop", "centre")}


@dataclass(frozen=True, order=True)
class PooledLayer:
    """A layer's feature map averaged over the cells of a `grid` x `grid` raster; 1 is global average pooling."""

    layer: str
    grid: int

    def __str__(self) -> str:
        return f"{self.layer} {self.grid}x{self.grid}"


class GraphBuilder:
    """Collects nodes and constants; `add` returns the name of the node's output.

    `prefix` begins the names that are made up here, so that two builders' nodes can stand in one graph.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray, name: str | None = None) -> str:
        name = name or f"{self.prefix}c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def int_constant(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64))

    def add(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{self.prefix}{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def build(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        *,
        is_checked: bool = True,
    ) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "headstart", inputs, outputs, self.initializers)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="headstart"
        )
        if is_checked:
            onnx.checker.check_model(model)
        return model


IMAGE_INPUT = helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["H", "W", 3])


def add_preprocessing(builder: GraphBuilder, spec: PreprocessSpec) -> str:
    """Nodes from `image` to the network's input, float32 (1, 3, S, S).

    A centre square is cut from the bytes before anything is converted, so the cost does not grow with the picture. The
    resize is Pillow's, in its antialiasing and at the edges; like Pillow it clips what overshoots.
    """
    if spec.crop == "squash":
        resized = _add_squash(builder, spec)
    elif spec.crop == "after-resize":
        resized = _add_crop_as_after_resize(builder, spec)
    else:
        resized = _add_resize(builder, _add_centre_crop(builder, spec), spec.input_size_px, spec.interpolation)
    clipped = builder.add(
        "Clip", resized, builder.constant(np.array(0, np.float32)), builder.constant(np.array(255, np.float32))
    )
    std = np.array(spec.std, np.float64)
    scale = (1 / (255 * std)).astype(np.float32).reshape(1, 3, 1, 1)
    shift = (-np.array(spec.mean) / std).astype(np.float32).reshape(1, 3, 1, 1)
    return builder.add("Add", builder.add("Mul", clipped, builder.constant(scale)), builder.constant(shift))


def _add_resize(builder: GraphBuilder, pixels: str, side_px: int, interpolation: str, box: str = "") -> str:
    """From uint8 (h, w, 3) to float32 (1, 3, side, side). `box` is a part of it as Resize takes it, float32 (8,)."""
    planes = builder.add("Unsqueeze", builder.add("Transpose", pixels, perm=[2, 0, 1]), builder.int_constant(0))
    return builder.add(
        "Resize",
        builder.add("Cast", planes, to=TensorProto.FLOAT),
        box,
        "",
        builder.int_constant(1, 3, side_px, side_px),
        mode=interpolation,
        antialias=1,
        exclude_outside=1,  # at an edge the weights inside are scaled up; the default repeats the edge
        cubic_coeff_a=-0.5,  # the operator's default is -0.75
        **({"coordinate_transformation_mode": "tf_crop_and_resize"} if box else {}),
    )


def _add_squash(builder: GraphBuilder, spec: PreprocessSpec) -> str:
    side = spec.input_size_px
    larger = math.floor(side / spec.crop_frac)
    start = round((larger - side) / 2)
    planes = _add_resize(builder, IMAGE, larger, spec.interpolation)
    first, end = builder.int_constant(start, start), builder.int_constant(start + side, start + side)
    return builder.add("Slice", planes, first, end, builder.int_constant(2, 3))


def _add_crop_as_after_resize(builder: GraphBuilder, spec: PreprocessSpec) -> str:
    """To resize all and then cut would take tensors as large as the picture is long. So the pixels that matter are cut
    first, and Resize is told which part of them, in fractions of a pixel, it is to show."""

    def number(value: float) -> str:
        return builder.constant(np.array([value], np.float32))

    def as_float(values: str) -> str:
        return builder.add("Cast", values, to=TensorProto.FLOAT)

    def cut(start: str, end: str) -> str:
        start, end = (builder.add("Cast", each, to=TensorProto.INT64) for each in (start, end))
        return builder.add("Slice", IMAGE, start, end, builder.int_constant(0, 1))

    side = builder.int_constant(spec.input_size_px)
    most = builder.int_constant(math.floor(spec.input_size_px / spec.crop_frac))
    size = builder.add("Slice", builder.add("Shape", IMAGE), builder.int_constant(0), builder.int_constant(2))
    short = builder.add("ReduceMin", size, keepdims=1)
    resized = builder.add(
        "Div", builder.add("Mul", size, builder.add("Min", builder.add("Max", short, side), most)), short
    )
    offset = builder.add("Round", builder.add("Mul", as_float(builder.add("Sub", resized, side)), number(0.5)))
    ratio = builder.add("Div", as_float(size), as_float(resized))
    low = builder.add("Floor", builder.add("Mul", offset, ratio))
    end = builder.add("Mul", builder.add("Add", offset, number(spec.input_size_px)), ratio)
    high = builder.add("Min", builder.add("Ceil", end), as_float(size))
    span = builder.add("Max", builder.add("Sub", builder.add("Sub", high, low), number(1)), number(1))

    def locate(pixel: float) -> str:
        """Where the centre of the output's pixel lies, as a share of what was cut; what lies outside would be black."""
        position = builder.add("Mul", builder.add("Add", offset, number(pixel + 0.5)), ratio)
        from_low = builder.add("Sub", builder.add("Sub", position, number(0.5)), low)
        share = builder.add("Div", from_low, span)
        return builder.add("Max", builder.add("Min", share, number(1 - 1e-6)), number(1e-6))

    ends = builder.constant(np.zeros(2, np.float32)), builder.constant(np.ones(2, np.float32))
    box = builder.add("Concat", ends[0], locate(0), ends[1], locate(spec.input_size_px - 1), axis=0)
    large = _add_resize(builder, cut(low, high), spec.input_size_px, spec.interpolation, box)
    # Where nothing is made smaller, the centres of the outermost pixels lie outside.
    is_small = builder.add("Equal", builder.add("Min", short, side), short)
    square = builder.add("Where", is_small, short, builder.int_constant(1))
    start = builder.add("Div", builder.add("Sub", size, square), builder.int_constant(2))
    enlarged = cut(start, builder.add("Add", start, square))
    small = _add_resize(builder, enlarged, spec.input_size_px, spec.interpolation)
    return builder.add("Where", is_small, small, large)


def _add_centre_crop(builder: GraphBuilder, spec: PreprocessSpec) -> str:
    shape = builder.add("Shape", IMAGE)
    size = builder.add("Slice", shape, builder.int_constant(0), builder.int_constant(2))
    short_side = builder.add("ReduceMin", builder.add("Cast", size, to=TensorProto.FLOAT), keepdims=1)
    cropped = builder.add("Mul", short_side, builder.constant(np.array([spec.crop_frac], np.float32)))
    filled = builder.add("Min", short_side, builder.constant(np.array([spec.input_size_px], np.float32)))
    side = builder.add("Cast", builder.add("Round", builder.add("Max", cropped, filled)), to=TensorProto.INT64)
    start = builder.add("Div", builder.add("Sub", size, side), builder.int_constant(2))
    end = builder.add("Add", start, side)
    return builder.add("Slice", IMAGE, start, end, builder.int_constant(0, 1))


@functools.lru_cache
def compute_pooling_matrix(size: int, grid: int) -> np.ndarray:
    """float32 (size * size, grid * grid): column c averages a square map over cell c.

    Cells have equal areas; a position on an edge counts for each side by its share. So the mean over the cells of a
    raster is exactly the value of the coarser raster that it subdivides: 4x4 gives 2x2, and any raster gives 1x1.
    """
    edges = np.arange(grid + 1) * size / grid
    low, high = edges[:-1, None], edges[1:, None]
    position = np.arange(size)[None]
    share = np.clip(np.minimum(high, position + 1) - np.maximum(low, position), 0, None) / (size / grid)
    return np.ascontiguousarray(np.kron(share, share).T, dtype=np.float32)


def add_pooling(builder: GraphBuilder, pooled: Sequence[tuple[PooledLayer, int, int]]) -> str:
    """Nodes from feature maps (1, C, h, h) to one vector (1, D): per pooled layer, C x grid x grid, side by side.

    `pooled` holds (pooled layer, C, h); the map's tensor bears the layer's name.
    """
    vectors = []
    for block, channels, size in pooled:
        cells = block.layer  # as fine as the map: nothing to average
        if block.grid != size:
            rows = builder.add("Reshape", block.layer, builder.int_constant(channels, size * size))
            cells = builder.add("MatMul", rows, builder.constant(compute_pooling_matrix(size, block.grid)))
        vectors.append(builder.add("Reshape", cells, builder.int_constant(1, channels * block.grid**2)))
    return builder.add("Concat", *vectors, axis=1)


def extend_graph(
    model: onnx.ModelProto,
    layers: Sequence[str],
    builder: GraphBuilder,
    output: str,
    size: int | str,
    *,
    is_checked: bool = True,
) -> onnx.ModelProto:
    """The part of `model` that computes `layers`, followed by the builder's nodes, with one float32 (size,) output."""
    kept = onnx.utils.Extractor(model).extract_model([IMAGE], list(layers))
    joined = GraphBuilder()
    joined.nodes = [*kept.graph.node, *builder.nodes]
    joined.initializers = [*kept.graph.initializer, *builder.initializers]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [size])]
    return joined.build([IMAGE_INPUT], outputs, is_checked=is_checked)


def narrow_output(model: onnx.ModelProto, output: str, narrowed: str) -> onnx.ModelProto:
    """The same with one output `narrowed` in float16 for the float32 `output`; what is beyond 65,504 is cut there."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    builder = GraphBuilder(prefix="narrow_")
    limits = [builder.constant(np.array(limit, np.float32)) for limit in (-65504, 65504)]
    builder.add("Cast", builder.add("Clip", output, *limits), to=TensorProto.FLOAT16, output=narrowed)
    result.graph.node.extend(builder.nodes)
    result.graph.initializer.extend(builder.initializers)
    shape = [each.dim_value or each.dim_param for each in model.graph.output[0].type.tensor_type.shape.dim]
    del result.graph.output[:]
    result.graph.output.append(helper.make_tensor_value_info(narrowed, TensorProto.FLOAT16, shape))
    return result
