"""What the graph of a classifier file may hold: versions, operations, constants, inputs and outputs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from types import SimpleNamespace

import numpy as np

from headstart._files import show_path
from headstart.onnx_reader import as_signed, read_varint

OPSET = 18
IR_VERSION = 9

MAX_NODES = 5_000
MAX_TENSOR_VALUES = 2**26
MAX_NODE_CONSTANT_VALUES = 4_096
MAX_PADDING = 4_096
MAX_CLASSES = 100_000

# Nothing here runs code, opens files, loops, or makes a large tensor out of a few bytes (Expand, Tile, Range, ...).
ALLOWED_OPS = frozenset(
    "Add AveragePool BatchNormalization Cast Ceil Clip Concat Constant Conv DequantizeLinear Div Equal Erf Flatten "  # noqa: SIM905
    "Floor Gather Gelu Gemm GlobalAveragePool HardSigmoid HardSwish Identity LayerNormalization MatMul Max MaxPool "
    "Min Mul Neg Pad Pow QuantizeLinear ReduceMax ReduceMean ReduceMin Relu Reshape Resize Round Shape Sigmoid Slice "
    "Softmax Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze Where".split()
)

# TensorProto.DataType: name and size of one value.
_DATA_TYPES = {
    1: ("float32", 4),
    2: ("uint8", 1),
    3: ("int8", 1),
    6: ("int32", 4),
    7: ("int64", 8),
    9: ("bool", 1),
    10: ("float16", 2),
}


def check_model(model: SimpleNamespace) -> list[str]:
    """Every broken rule about versions, nodes and constants."""
    problems: list[str] = []
    opsets = [(entry.domain or "ai.onnx", entry.version) for entry in model.opset_import]
    if opsets != [("ai.onnx", OPSET)]:
        found = ", ".join(f"{quote(domain)} {version}" for domain, version in opsets[:5]) or "none"
        problems.append(f"It imports the operator sets {found}; expected 'ai.onnx' {OPSET} alone.")
    if model.ir_version != IR_VERSION:
        problems.append(f"Its ir_version is {model.ir_version}; expected {IR_VERSION}.")
    if model.graph is None:
        return [*problems, "It holds no graph."]
    nodes = model.graph.node
    if len(nodes) > MAX_NODES:
        return [*problems, f"It has {len(nodes):,} nodes; expected at most {MAX_NODES:,}."]
    constants = {tensor.name or "": tensor for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        problems += _check_tensor(tensor, f"constant {quote(tensor.name)}", MAX_TENSOR_VALUES)
    for node in nodes:
        problems += _check_node(node)
        if node.op_type == "Constant" and len(node.output) == 1 and len(node.attribute) == 1 and node.attribute[0].t:
            constants[node.output[0]] = node.attribute[0].t
    if not problems:  # sizes are looked up in constants that are known to be sound
        for node in nodes:
            problems += _check_growth(node, constants)
    return [*problems, *_check_names(model.graph)]


def _check_node(node: SimpleNamespace) -> Iterator[str]:
    where = f"node {quote(node.name or (node.output[0] if node.output else ''))}"
    if node.domain not in (None, "", "ai.onnx"):
        yield f"The operation {quote(node.op_type)} of {where} has the domain {quote(node.domain)}; expected none."
    elif node.op_type not in ALLOWED_OPS:
        yield f"The operation {quote(node.op_type)} of {where} is not one that a classifier file may use."
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) < len(names):
        yield f"An attribute of {where} is given twice."
    for attribute in node.attribute:
        if attribute.t is not None:
            yield from _check_tensor(attribute.t, f"tensor of {where}", MAX_NODE_CONSTANT_VALUES)


def _check_tensor(tensor: SimpleNamespace, where: str, max_values: int) -> Iterator[str]:
    if tensor.data_location not in (None, 0):
        yield f"The {where} keeps its values outside the file (external data); expected them inside."
        return
    if tensor.data_type not in _DATA_TYPES:
        known = ", ".join(name for name, _ in _DATA_TYPES.values())
        yield f"The {where} has the data type {tensor.data_type}; expected one of {known}."
        return
    num_values = math.prod(tensor.dims[:16])
    if (
        len(tensor.dims) > 16
        or any(not 0 <= size <= MAX_TENSOR_VALUES for size in tensor.dims)
        or num_values > max_values
    ):
        yield f"The {where} has the shape {_show_shape(tensor.dims)}; expected at most {max_values:,} values."
        return
    if sum(each is not None for each in (tensor.raw_data, tensor.float_data, tensor.int32_data, tensor.int64_data)) > 1:
        yield f"The {where} stores its values twice; expected one list of them."
        return
    stored = _count_stored_values(tensor)
    if stored != num_values:
        yield f"The {where} stores {stored:,.9g} values; its shape {_show_shape(tensor.dims)} needs {num_values:,}."
    elif not _is_finite(tensor):
        yield f"The {where} holds NaN or infinity; expected finite numbers."


def _count_stored_values(tensor: SimpleNamespace) -> float:
    """A fraction when the last value is cut."""
    if tensor.raw_data:
        return len(tensor.raw_data) / _DATA_TYPES[tensor.data_type][1]
    if tensor.float_data:
        return len(tensor.float_data) / 4
    varints = tensor.int32_data or tensor.int64_data or b""
    return int(np.count_nonzero(np.frombuffer(varints, np.uint8) < 0x80))


def _is_finite(tensor: SimpleNamespace) -> bool:
    if tensor.data_type == 1:
        return bool(np.isfinite(np.frombuffer(tensor.raw_data or tensor.float_data or b"", "<f4")).all())
    if tensor.data_type == 10:
        return bool(np.isfinite(np.frombuffer(tensor.raw_data or b"", "<f2")).all())
    return True


def _check_growth(node: SimpleNamespace, constants: Mapping[str, SimpleNamespace]) -> Iterator[str]:
    """Resize and Pad could make a huge tensor out of a small one: their sizes must be constants within bounds."""
    where = f"node {quote(node.name or (node.output[0] if node.output else ''))}"
    inputs = [*node.input, "", "", "", ""]
    if node.op_type == "Resize":
        sizes = _read_int64(constants.get(inputs[3]))
        scales = constants.get(inputs[2])
        if sizes is None or not sizes or min(sizes) < 1 or math.prod(sizes) > MAX_TENSOR_VALUES:
            yield f"The Resize of {where} has no int64 constant as sizes, at most {MAX_TENSOR_VALUES:,} values in all."
        if inputs[2] and (scales is None or math.prod(scales.dims) > 0):
            yield f"The Resize of {where} has scales; expected sizes alone."
        if any(a.name == "keep_aspect_ratio_policy" and bytes(a.s or b"") != b"stretch" for a in node.attribute):
            yield f"The Resize of {where} keeps the aspect ratio, so its sizes are not known; expected 'stretch'."
    if node.op_type == "Pad":
        pads = _read_int64(constants.get(inputs[1]))
        if pads is None or any(abs(pad) > MAX_PADDING for pad in pads):
            yield f"The Pad of {where} has no int64 constant as pads, at most {MAX_PADDING:,} each."


def _read_int64(tensor: SimpleNamespace | None) -> list[int] | None:
    """The values of a small, checked int64 constant, else None."""
    if tensor is None or tensor.data_type != 7 or math.prod(tensor.dims) > 64:
        return None
    if not tensor.int64_data:
        return [int(value) for value in np.frombuffer(tensor.raw_data or b"", "<i8")]
    values, at = [], 0
    while at < len(tensor.int64_data):
        value, at = read_varint(tensor.int64_data, at)
        values.append(as_signed(value))
    return values


def _check_names(graph: SimpleNamespace) -> Iterator[str]:
    """Every value has one origin; what a constant says about sizes cannot be overruled by a node of the same name."""
    seen: set[str] = set()
    origins = [value.name for value in graph.input] + [tensor.name for tensor in graph.initializer]
    for name in origins + [output for node in graph.node for output in node.output if output]:
        if name in seen:
            yield f"The value {quote(name)} has two origins; expected one input, constant or node output of that name."
        seen.add(name)


def check_signature(model: SimpleNamespace, problems: list[str]) -> tuple[int | None, bool]:
    """Add what is wrong with inputs and outputs; return the number of classes K when it is known, and whether the
    second output is there."""
    if model.graph is None:
        return None, False
    inputs = [_describe_value(value) for value in model.graph.input]
    outputs = [_describe_value(value) for value in model.graph.output]
    if inputs != ["image uint8 [any, any, 3]"]:
        problems.append(f"Its inputs are {_list_few(inputs)}; expected image uint8 [any, any, 3] alone.")
    has_familiarity = outputs[1:] == ["familiarity float32 [1]"]
    found = re.fullmatch(r"probabilities float32 \[(\d{1,6})\]", outputs[0]) if outputs else None
    if found and 2 <= int(found[1]) <= MAX_CLASSES and (has_familiarity or len(outputs) == 1):
        return int(found[1]), has_familiarity
    problems.append(
        f"Its outputs are {_list_few(outputs)}; expected probabilities float32 [K], K from 2 to {MAX_CLASSES}, alone "
        "or before familiarity float32 [1]."
    )
    return None, False


def _describe_value(value: SimpleNamespace) -> str:
    tensor_type = value.type.tensor_type if value.type else None
    if tensor_type is None:
        return f"{shorten(value.name)} of unknown type"
    data_type, _ = _DATA_TYPES.get(tensor_type.elem_type, (f"type {tensor_type.elem_type}", 0))
    if tensor_type.shape is None:
        return f"{shorten(value.name)} {data_type} of unknown shape"
    # A size and a name at once: readers of the file would differ.
    sizes = [
        "any" if size.dim_value is None else f"{size.dim_value}" if size.dim_param is None else "unclear"
        for size in tensor_type.shape.dim
    ]
    return f"{shorten(value.name)} {data_type} [{', '.join(sizes[:8])}{', ...' if len(sizes) > 8 else ''}]"


def shorten(text: str | None) -> str:
    shown = show_path((text or "")[:80])
    return shown if len(shown) <= 60 else shown[:57] + "..."


def quote(text: str | None) -> str:
    return f"'{shorten(text)}'"


def _list_few(texts: list[str]) -> str:
    return ", ".join(texts[:4] + (["..."] if len(texts) > 4 else [])) or "none"


def _show_shape(dims: list[int]) -> str:
    return f"[{', '.join(map(str, dims[:8]))}{', ...' if len(dims) > 8 else ''}]"
