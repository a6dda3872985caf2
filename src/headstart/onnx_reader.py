"""A strict reader of ONNX files that copies no weights and imports nothing heavy.

It knows the fields a classifier file may use. A field that ONNX has and a classifier file must not have is refused with
its reason before anything inside it is read, so nesting is never deeper than the tables below; everything else that is
not exactly as protobuf's encoding says counts as damage.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

from headstart.errors import ArtifactError

MAX_NAME_BYTES = 1024
MAX_TEXT_BYTES = 4 * 2**20  # one metadata value or comment
MAX_FIELDS = 200_000  # a network of 5,000 nodes has about 100,000; the bound is on time, under a second

# int: varint, signed 64 bit. name and text: UTF-8 of limited length. bytes: a view into the file.
Kind = Literal["int", "float", "name", "text", "bytes"]


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    kind: Kind | _Message
    many: bool = False


class _Message:
    """The fields of one kind of message by number. A string instead of a field is the reason why it is refused."""

    def __init__(self, fields: dict[int, _Field | str]) -> None:
        self.fields = fields
        self.absent = {f.name: () if f.many else None for f in fields.values() if isinstance(f, _Field)}


_EXTERNAL = "A tensor keeps its values outside the file (external data). A classifier file holds all its weights."
_SUBGRAPH = "A node holds a graph of its own (as Loop, If and Scan do). A classifier file is one plain graph."
_TRAINING = "It holds training_info. A classifier file holds nothing that only training uses."
_FUNCTIONS = "It defines functions of its own. A classifier file uses standard operations only."
_SPARSE = "It holds a sparse tensor. A classifier file stores its weights as plain tensors."
_QUANTIZATION = "It holds quantization_annotation entries. A classifier file holds none."
_DEVICES = "It holds device configurations. A classifier file runs on any machine and holds none."
_TENSOR_KIND = (
    "A tensor stores its values in a way that a classifier file does not use (text, double, uint64, segment)."
)
_VALUE_KIND = "An input, output or value is not a plain tensor. A classifier file has tensors only."
_ATTRIBUTE_KIND = (
    "A node attribute holds a type, a reference or a list of tensors. A classifier file has none of these."
)

# Field numbers are those of onnx-ml.proto.
_ENTRY = _Message({1: _Field("key", "name"), 2: _Field("value", "text")})
_OPSET = _Message({1: _Field("domain", "name"), 2: _Field("version", "int")})
_TENSOR = _Message(
    {
        1: _Field("dims", "int", many=True),
        2: _Field("data_type", "int"),
        3: _TENSOR_KIND,
        4: _Field("float_data", "bytes"),
        5: _Field("int32_data", "bytes"),
        6: _TENSOR_KIND,
        7: _Field("int64_data", "bytes"),
        8: _Field("name", "name"),
        9: _Field("raw_data", "bytes"),
        10: _TENSOR_KIND,
        11: _TENSOR_KIND,
        12: _Field("doc_string", "text"),
        13: _EXTERNAL,
        14: _Field("data_location", "int"),
        16: _Field("metadata_props", _ENTRY, many=True),
    }
)
_DIMENSION = _Message(
    {
        1: _Field("dim_value", "int"),
        2: _Field("dim_param", "name"),
        3: _Field("denotation", "name"),
    }
)
_SHAPE = _Message({1: _Field("dim", _DIMENSION, many=True)})
_TENSOR_TYPE = _Message({1: _Field("elem_type", "int"), 2: _Field("shape", _SHAPE)})
_TYPE = _Message(
    {
        1: _Field("tensor_type", _TENSOR_TYPE),
        4: _VALUE_KIND,
        5: _VALUE_KIND,
        6: _Field("denotation", "name"),
        7: _VALUE_KIND,
        8: _VALUE_KIND,
        9: _VALUE_KIND,
    }
)
_VALUE = _Message(
    {
        1: _Field("name", "name"),
        2: _Field("type", _TYPE),
        3: _Field("doc_string", "text"),
        4: _Field("metadata_props", _ENTRY, many=True),
    }
)
_ATTRIBUTE = _Message(
    {
        1: _Field("name", "name"),
        2: _Field("f", "float"),
        3: _Field("i", "int"),
        4: _Field("s", "bytes"),
        5: _Field("t", _TENSOR),
        6: _SUBGRAPH,
        7: _Field("floats", "float", many=True),
        8: _Field("ints", "int", many=True),
        9: _Field("strings", "bytes", many=True),
        10: _ATTRIBUTE_KIND,
        11: _SUBGRAPH,
        13: _Field("doc_string", "text"),
        14: _ATTRIBUTE_KIND,
        15: _ATTRIBUTE_KIND,
        20: _Field("type", "int"),
        21: _ATTRIBUTE_KIND,
        22: _SPARSE,
        23: _SPARSE,
    }
)
_NODE = _Message(
    {
        1: _Field("input", "name", many=True),
        2: _Field("output", "name", many=True),
        3: _Field("name", "name"),
        4: _Field("op_type", "name"),
        5: _Field("attribute", _ATTRIBUTE, many=True),
        6: _Field("doc_string", "text"),
        7: _Field("domain", "name"),
        8: _FUNCTIONS,
        9: _Field("metadata_props", _ENTRY, many=True),
        10: _DEVICES,
    }
)
_GRAPH = _Message(
    {
        1: _Field("node", _NODE, many=True),
        2: _Field("name", "name"),
        5: _Field("initializer", _TENSOR, many=True),
        10: _Field("doc_string", "text"),
        11: _Field("input", _VALUE, many=True),
        12: _Field("output", _VALUE, many=True),
        13: _Field("value_info", _VALUE, many=True),
        14: _QUANTIZATION,
        15: _SPARSE,
        16: _Field("metadata_props", _ENTRY, many=True),
    }
)
_MODEL = _Message(
    {
        1: _Field("ir_version", "int"),
        2: _Field("producer_name", "name"),
        3: _Field("producer_version", "name"),
        4: _Field("domain", "name"),
        5: _Field("model_version", "int"),
        6: _Field("doc_string", "text"),
        7: _Field("graph", _GRAPH),
        8: _Field("opset_import", _OPSET, many=True),
        14: _Field("metadata_props", _ENTRY, many=True),
        20: _TRAINING,
        25: _FUNCTIONS,
        26: _DEVICES,
    }
)


def read_model(data: bytes) -> SimpleNamespace:
    """The model's fields under their names in onnx-ml.proto; a field that is absent is None, or () when it repeats.

    Tensor values are memoryviews into `data`. Raises ArtifactError for damage and for refused fields.
    """
    return _Reader().read(memoryview(data), _MODEL)


class _Reader:
    """Counts the fields of one file, so that millions of empty ones end in an error and not in a long wait."""

    def __init__(self) -> None:
        self.fields_left = MAX_FIELDS

    def read(self, data: memoryview, message: _Message) -> SimpleNamespace:
        values: dict[str, Any] = dict(message.absent)
        at, end = 0, len(data)
        while at < end:
            self.fields_left -= 1
            if self.fields_left < 0:
                raise ArtifactError(f"It has more than {MAX_FIELDS:,} parts. A classifier file has fewer.")
            tag, at = read_varint(data, at)
            field = message.fields.get(tag >> 3)
            if isinstance(field, str):
                raise ArtifactError(field)
            if field is None:
                raise _damaged(f"an unknown field, number {tag >> 3}")
            value, at = self._read_value(data, at, tag & 7, field)
            if field.many:
                values[field.name] = values[field.name] or []
                values[field.name].append(value)
            elif values[field.name] is None:
                values[field.name] = value
            else:
                # Parsers differ in how they merge the two.
                raise _damaged(f"{field.name} is given twice")
        return SimpleNamespace(**values)

    def _read_value(self, data: memoryview, at: int, wire_type: int, field: _Field) -> tuple[Any, int]:
        kind = field.kind
        expected_type = 0 if kind == "int" else 5 if kind == "float" else 2
        if wire_type != expected_type:
            raise _damaged(f"{field.name} has the wrong wire type")
        if kind == "int":
            number, at = read_varint(data, at)
            return as_signed(number), at
        if kind == "float":
            size = 4
        else:
            size, at = read_varint(data, at)
        stop = at + size
        if stop > len(data):
            raise _damaged("it ends early")
        chunk = data[at:stop]
        if isinstance(kind, _Message):
            return self.read(chunk, kind), stop
        if kind == "float":
            return struct.unpack("<f", chunk)[0], stop
        if kind == "bytes":
            return chunk, stop
        limit = MAX_NAME_BYTES if kind == "name" else MAX_TEXT_BYTES
        if size > limit:
            raise ArtifactError(f"A {field.name} is {size:,} bytes long. The limit is {limit:,}.")
        try:
            return str(chunk, "utf-8"), stop
        except UnicodeDecodeError:
            raise _damaged(f"{field.name} is not UTF-8") from None


def as_signed(number: int) -> int:
    """The signed 64-bit number with the same bits."""
    return number - (1 << 64) if number >= 1 << 63 else number


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """The unsigned number that starts at `at`, and where it ends. Raises ArtifactError for damage."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _damaged("it ends early")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if number >= 1 << 64:
                break
            return number, at
    raise _damaged("a number is longer than 64 bits")


def _damaged(detail: str) -> ArtifactError:
    return ArtifactError(
        f"The file is damaged, or is not an ONNX file ({detail}). "
        "Copy it again from where it was saved, or train again."
    )
