"""The own reader against the onnx package, an independent reader of the same bytes, and against broken encodings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from google.protobuf.descriptor import FieldDescriptor
from onnx import TensorProto, helper
from tiny_models import make_tiny_classifier

from headstart.errors import ArtifactError
from headstart.onnx_reader import MAX_FIELDS, read_model

DATA = Path(__file__).parent / "data"


def make_rich_model() -> onnx.ModelProto:
    """Every kind of field that the reader knows: all attribute kinds, typed lists, negative and large numbers."""
    tensors = [
        helper.make_tensor("floats", TensorProto.FLOAT, [2], [1.5, -2.0]),
        helper.make_tensor("int64s", TensorProto.INT64, [3], [-1, 2**40, 0]),
        helper.make_tensor("int8s", TensorProto.INT8, [2], [-1, 7]),
        helper.make_tensor("scalar", TensorProto.FLOAT, [], [3.0]),
        helper.make_tensor("none", TensorProto.FLOAT, [0], []),
    ]
    tensors[0].doc_string = "größe"
    tensors[0].metadata_props.add(key="k", value="v")
    node = helper.make_node(
        "Op", ["a", "", "b"], ["c"], name="n", doc_string="d", domain="x", f=0.1, i=-5, s="text", floats=[1.0, 2.5]
    )
    node.attribute.append(helper.make_attribute("ints", [-(2**63), 2**63 - 1]))
    node.attribute.append(helper.make_attribute("strings", ["p", "q"]))
    node.attribute.append(helper.make_attribute("t", tensors[1]))
    node.metadata_props.add(key="k", value="")
    shaped = helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, "N", None])
    unshaped = helper.make_tensor_value_info("w", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [shaped], [unshaped], tensors, "doc", [shaped])
    model = helper.make_model(graph, producer_name="p", producer_version="1", doc_string="m", model_version=-3)
    helper.set_model_props(model, {"a": "1", "b": ""})
    return model


MODELS = {
    "rich": make_rich_model(),
    "empty": onnx.ModelProto(),
    "tiny": make_tiny_classifier(["cat", "dog"]),
    "format-1": onnx.load_model_from_string((DATA / "format-1.onnx").read_bytes()),
}


def assert_same(found: SimpleNamespace, expected: Any) -> int:
    """Every field of the message and of the messages in it; returns how many fields are set."""
    num_fields = 0
    for field in expected.DESCRIPTOR.fields:
        theirs = getattr(expected, field.name)
        if field.name in ("float_data", "int32_data", "int64_data"):  # the reader leaves these encoded
            assert bool(getattr(found, field.name)) == bool(theirs)
            continue
        if field.is_repeated:
            theirs, ours = list(theirs), list(getattr(found, field.name, ()) or ())
        else:
            theirs = [theirs] if expected.HasField(field.name) else []
            ours = [value for value in [getattr(found, field.name, None)] if value is not None]
        assert len(ours) == len(theirs), field.full_name
        for our_value, their_value in zip(ours, theirs, strict=True):
            num_fields += 1
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                num_fields += assert_same(our_value, their_value)
            elif isinstance(our_value, memoryview):
                assert bytes(our_value) == their_value
            else:
                assert our_value == their_value, field.full_name
    return num_fields


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_the_onnx_package(name: str) -> None:
    num_fields = assert_same(read_model(MODELS[name].SerializeToString()), MODELS[name])
    assert num_fields > 60 or name == "empty"


def test_the_tables_hold_every_field_of_onnx() -> None:
    """A field that a later onnx adds must be decided upon: until then it counts as damage."""
    from headstart import onnx_reader

    for table, message in (
        (onnx_reader._MODEL, onnx.ModelProto),
        (onnx_reader._GRAPH, onnx.GraphProto),
        (onnx_reader._NODE, onnx.NodeProto),
        (onnx_reader._ATTRIBUTE, onnx.AttributeProto),
        (onnx_reader._TENSOR, onnx.TensorProto),
        (onnx_reader._VALUE, onnx.ValueInfoProto),
        (onnx_reader._TYPE, onnx.TypeProto),
        (onnx_reader._DIMENSION, onnx.TensorShapeProto.Dimension),
        (onnx_reader._OPSET, onnx.OperatorSetIdProto),
        (onnx_reader._ENTRY, onnx.StringStringEntryProto),
    ):
        theirs = {field.number: field for field in message.DESCRIPTOR.fields}
        assert set(table.fields) <= set(theirs)
        for number, field in table.fields.items():
            if not isinstance(field, str):
                assert (field.name, field.many) == (
                    theirs[number].name,
                    theirs[number].is_repeated and not theirs[number].is_packed,
                )


BROKEN = {
    "an unknown field, number 31": b"\xfa\x01\x00",
    "an unknown field, number 0": b"\x00\x00",
    "it ends early": b"\x08",
    "producer_name has the wrong wire type": b"\x10\x01",
    "ir_version has the wrong wire type": b"\x0a\x00",
    "graph has the wrong wire type": b"\x3b\x3c",  # a group
    "ir_version is given twice": b"\x08\x09\x08\x09",
    "graph is given twice": b"\x3a\x00\x3a\x00",
    "a number is longer than 64 bits": b"\x08" + b"\xff" * 10 + b"\x01",
    "producer_name is not UTF-8": b"\x12\x02\xff\xfe",
}


@pytest.mark.parametrize("detail", BROKEN)
def test_broken_encodings_are_damage(detail: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        read_model(BROKEN[detail])
    assert str(caught.value) == (
        f"The file is damaged, or is not an ONNX file ({detail}). "
        "Copy it again from where it was saved, or train again."
    )


def test_a_number_of_65_bits_is_damage() -> None:
    with pytest.raises(ArtifactError, match="a number is longer than 64 bits"):
        read_model(b"\x08" + b"\xff" * 9 + b"\x02")
    assert read_model(b"\x08" + b"\xff" * 9 + b"\x01").ir_version == -1


def test_a_length_beyond_the_message_does_not_reach_into_the_next() -> None:
    graph = b"\x3a\x02\x12\x05"  # the graph has 2 bytes, its name claims 5
    with pytest.raises(ArtifactError, match="it ends early"):
        read_model(graph + b"\x12\x05hello")


def test_deep_nesting_is_refused_without_recursion() -> None:
    attribute = b""
    for _ in range(3_000):
        attribute = b"\x0a\x00" + attribute  # a node, as far as the encoding goes
        attribute = b"\x32" + encode_length(len(attribute)) + attribute
    node = b"\x2a" + encode_length(len(attribute)) + attribute
    graph = b"\x0a" + encode_length(len(node)) + node
    with pytest.raises(ArtifactError, match="A node holds a graph of its own"):
        read_model(b"\x3a" + encode_length(len(graph)) + graph)


def test_the_number_of_parts_is_limited() -> None:
    nodes = b"\x0a\x00" * MAX_FIELDS
    with pytest.raises(ArtifactError, match=r"^It has more than 200,000 parts\."):
        read_model(b"\x3a" + encode_length(len(nodes)) + nodes)


def encode_length(length: int) -> bytes:
    encoded = b""
    while length >= 0x80:
        encoded += bytes([length & 0x7F | 0x80])
        length >>= 7
    return encoded + bytes([length])
