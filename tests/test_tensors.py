"""Bodies of the Open Inference Protocol: what is read is what was sent, and what cannot be meant is refused."""

from __future__ import annotations

import base64
import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headstart.serve.infer_request import InferRequest, parse_request, read_json_length
from headstart.serve.tensors import DTYPES, BodyError, TensorSpec, WantedOutput, classify, write_response

IMAGE = TensorSpec("image", "BYTES", (-1,))
PIXELS = TensorSpec("image", "UINT8", (-1, -1, 3))
GRID = TensorSpec("grid", "FP32", (4, 4))
OUTPUTS = [TensorSpec("probabilities", "FP32", (-1, 3)), TensorSpec("label", "BYTES", (-1,))]
FILES = [b"\xff\xd8", b"", b"a" * 300]


def parse(body: bytes | dict[str, Any], inputs: list[TensorSpec] | None = None, *lengths: str) -> InferRequest:
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = read_json_length(lengths, len(body))
    return parse_request(body, length, inputs or [IMAGE], OUTPUTS, classified="probabilities")


def make_input(**changes: Any) -> dict[str, Any]:
    """Two files as base64; a change to None leaves the entry out."""
    data = [base64.b64encode(file).decode() for file in FILES[:2]]
    entries = {"name": "image", "datatype": "BYTES", "shape": [2], "data": data, **changes}
    return {name: value for name, value in entries.items() if value is not None}


def make_binary(tensors: list[dict[str, Any]], *parts: bytes, **more: Any) -> tuple[bytes, str]:
    text = json.dumps({"inputs": tensors, **more}).encode()
    return b"".join([text, *parts]), str(len(text))


def pack(elements: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def describe(tensor: np.ndarray, **more: Any) -> dict[str, Any]:
    datatype = "BYTES" if tensor.dtype == object else next(n for n, dtype in DTYPES.items() if dtype == tensor.dtype)
    return {"name": "image", "datatype": datatype, "shape": list(tensor.shape), **more}


SHAPES = hnp.array_shapes(max_dims=3, max_side=5)
NUMBERS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: hnp.arrays(
        DTYPES[name], SHAPES, elements={"allow_nan": False, "allow_infinity": False} if name[0] == "F" else None
    )
)
ELEMENTS = hnp.arrays(object, SHAPES, elements=st.binary(max_size=9))


@given(NUMBERS | ELEMENTS, st.booleans())
def test_binary_comes_as_it_was_sent(tensor: np.ndarray, is_any_shape: bool) -> None:
    data = pack(tensor.ravel().tolist()) if tensor.dtype == object else tensor.tobytes()
    about = describe(tensor, parameters={"binary_data_size": len(data)})
    body, length = make_binary([about], data)
    spec = TensorSpec("image", about["datatype"], (-1,) * tensor.ndim if is_any_shape else tensor.shape)
    found = parse_request(body, int(length), [spec], OUTPUTS, max_elements=125).inputs["image"]
    assert found.dtype == tensor.dtype
    assert found.shape == tensor.shape
    assert (found == tensor).all()


@given(NUMBERS | ELEMENTS, st.booleans())
def test_json_comes_as_it_was_sent(tensor: np.ndarray, is_nested: bool) -> None:
    is_bytes = tensor.dtype == object
    values = np.vectorize(lambda data: base64.b64encode(data).decode(), otypes=[object])(tensor) if is_bytes else tensor
    about = describe(tensor, data=(values if is_nested else values.ravel()).tolist())
    body = json.dumps({"inputs": [about]}).encode()
    spec = TensorSpec("image", about["datatype"], tensor.shape)
    if tensor.dtype == np.float16:
        with pytest.raises(BodyError, match="FP16 has no JSON form"):
            parse_request(body, None, [spec], OUTPUTS)
        return
    found = parse_request(body, None, [spec], OUTPUTS, max_elements=125).inputs["image"]
    assert found.dtype == tensor.dtype
    assert found.shape == tensor.shape
    assert (found == tensor).all()


@given(
    st.lists(NUMBERS | hnp.arrays(object, SHAPES, elements=st.text(max_size=9).map(str.encode)), max_size=3), st.data()
)
def test_an_answer_holds_the_values_exactly(tensors: list[np.ndarray], draw: st.DataObject) -> None:
    outputs = [(WantedOutput(str(i), draw.draw(st.booleans())), tensor) for i, tensor in enumerate(tensors)]
    body, length = write_response({"model_name": "m"}, outputs)
    assert (length is None) == (not any(wanted.is_binary for wanted, _ in outputs))
    about = json.loads(body[:length])
    assert about["model_name"] == "m"
    start = len(body) if length is None else length
    for (wanted, tensor), found in zip(outputs, about["outputs"], strict=True):
        assert found["shape"] == list(tensor.shape)
        if wanted.is_binary:
            size = found["parameters"]["binary_data_size"]
            data = pack(tensor.ravel().tolist()) if tensor.dtype == object else tensor.tobytes()
            assert body[start : start + size] == data
            start += size
        elif tensor.dtype == object:
            assert [text.encode() for text in found["data"]] == tensor.ravel().tolist()
        else:
            assert np.array(found["data"], tensor.dtype).tobytes() == tensor.tobytes()
    assert start == len(body)


@given(st.binary(max_size=200), st.sampled_from(["", "0", "1", "40", "200"]))
@example(b"[" * 250_000, "")
@example(b'{"a":' * 200_000, "")
@example(b'"\\', "")
def test_any_bytes_are_read_or_refused(body: bytes, length: str) -> None:
    try:
        parse(body, None, *([length] if length else []))
    except BodyError:
        return
    assert length == "0"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(["name", "datatype", "shape", "data", "parameters", "inputs", "outputs", "id"]), JSON_VALUES)
def test_any_json_in_any_place_is_read_or_refused(place: str, value: Any) -> None:
    request: dict[str, Any] = {"inputs": [make_input()]}
    target = request if place in ("inputs", "outputs", "id", "parameters") else request["inputs"][0]
    target[place] = value
    said = ""
    try:
        assert parse(request).inputs["image"].tolist() == FILES[:2]
    except BodyError as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) < 400


def test_the_whole_request() -> None:
    found = parse({"id": "4\udc00", "parameters": {"priority": 1}, "inputs": [make_input()], "more": None})
    assert found.id == "4\udc00"
    assert found.outputs == (WantedOutput("probabilities"), WantedOutput("label"))
    assert parse({"inputs": [make_input()], "outputs": []}).outputs == found.outputs


@pytest.mark.parametrize(
    ("parameters", "outputs", "expected"),
    [
        ({}, [], [("probabilities", False, 0), ("label", False, 0)]),
        ({"binary_data_output": True}, [], [("probabilities", True, 0), ("label", True, 0)]),
        ({"binary_data_output": False}, [], [("probabilities", False, 0), ("label", False, 0)]),
        ({}, [{"name": "label"}], [("label", False, 0)]),
        (
            {"binary_data_output": True},
            [{"name": "label", "parameters": {"binary_data": False}}],
            [("label", False, 0)],
        ),
        ({"binary_data_output": False}, [{"name": "label", "parameters": {"binary_data": True}}], [("label", True, 0)]),
        ({}, [{"name": "probabilities", "parameters": {"classification": 3}}], [("probabilities", False, 3)]),
    ],
)
def test_which_outputs_come_back_binary(parameters: Any, outputs: Any, expected: Any) -> None:
    found = parse({"inputs": [make_input()], "parameters": parameters, "outputs": outputs}).outputs
    assert [(wanted.name, wanted.is_binary, wanted.num_classes) for wanted in found] == expected


def test_a_mixed_request_takes_the_binary_parts_in_the_order_of_the_inputs() -> None:
    grid = np.arange(16, dtype=np.float32).reshape(4, 4)
    flags = {"name": "flags", "datatype": "BOOL", "shape": [2], "data": [True, False]}
    size = {"parameters": {"binary_data_size": 64}}
    files = pack(FILES)
    image = make_input(shape=[3], data=None, parameters={"binary_data_size": len(files)})
    tensors = [{"name": "grid", "datatype": "FP32", "shape": [4, 4], **size}, flags, image]
    body, length = make_binary(tensors, grid.tobytes(), files)
    found = parse(body, [IMAGE, TensorSpec("flags", "BOOL", (-1,)), GRID], length).inputs
    assert found["image"].tolist() == FILES
    assert found["flags"].tolist() == [True, False]
    assert (found["grid"] == grid).all()


def test_a_body_without_json_is_the_input() -> None:
    found = parse(b"\xff\xd8 any bytes", None, "0")
    assert found.inputs["image"].tolist() == [b"\xff\xd8 any bytes"]
    assert found.outputs == (WantedOutput("probabilities", True), WantedOutput("label", True))
    values = parse(bytes(range(12)), [TensorSpec("rows", "UINT8", (-1, 3))], "0").inputs["rows"]
    assert values.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_classes_as_text() -> None:
    probs = np.array([[0.25, 0.25, 0.5], [0.9, 0.1, 1e-9]], np.float32)
    found = classify(probs, ["cat", "a:b", "\u00fc"], 2)
    assert [[text.decode() for text in row] for row in found] == [
        ["0.500000:2:\u00fc", "0.250000:0:cat"],
        ["0.900000:0:cat", "0.100000:1:a:b"],
    ]
    assert classify(probs, ["cat", "a:b", "c"], 10**40).shape == (2, 3)


# Of the numbers, only the shape is looked at before it is refused.
HUGE = [2] * 4 + [2**60 + 2]


def grid(**changes: Any) -> dict[str, Any]:
    return {"name": "grid", "datatype": "FP32", "shape": [4, 4], "data": [0.5] * 16, **changes}


def pixels(**changes: Any) -> dict[str, Any]:
    return {"name": "image", "datatype": "UINT8", "shape": [1, 2, 3], "data": [0, 1, 2, 3, 4, 255], **changes}


@pytest.mark.parametrize(
    ("body", "inputs", "said"),
    [
        (b"", [IMAGE], "the body is empty"),
        (b"hello", [IMAGE], "the JSON is damaged: Expecting value at character 0"),
        (b"\xff\xd8\xff", [IMAGE], "the JSON is not UTF-8 at byte 0; a body that is not all JSON needs the header"),
        (b"[1]", [IMAGE], "the body is a list; expected an object with inputs"),
        (b"null", [IMAGE], "the body is null"),
        (b"{}", [IMAGE], "inputs is missing or empty"),
        ({"inputs": []}, [IMAGE], "inputs is missing or empty"),
        ({"inputs": {}}, [IMAGE], "inputs is an object; expected a list"),
        ({"inputs": [[]]}, [IMAGE], "inputs[0] is not an object with a name"),
        ({"inputs": [make_input(name=7)]}, [IMAGE], "inputs[0] is not an object with a name"),
        (json.dumps({"inputs": [make_input()]}).encode() + b"abc", [IMAGE], "Extra data"),
        (b'{"inputs": [], "inputs": []}', [IMAGE], "has the key inputs twice"),
        (b'{"inputs": [{"name": "image", "name": "image"}]}', [IMAGE], "has the key name twice"),
        (b"[" * 101 + b"]" * 101, [IMAGE], "nested deeper than 100"),
        (b"[" * 250_000, [IMAGE], "nested deeper than 100"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, [IMAGE], "nested deeper than 100"),
        (b"[" * 350_001, [IMAGE], "more than 350000 lists and objects; send the data as one flat list"),
        (b"1," * 1_000_001, [IMAGE], "more than 1000000 values"),
        (b'"' * 100_001, [IMAGE], "more than 1000000 values"),
        (b"1" * (6 * 2**20 + 1), [IMAGE], "6 MB besides strings; send the tensor as binary data"),
        ({"inputs": [make_input(shape=[1], data=["A" * 2**23 + "!"])]}, [IMAGE], "element 0 of image is not base64"),
        (b"[" * 99 + b'"' + b"[" * 99 + b'"' + b"]" * 99, [IMAGE], "the body is a list"),
        (b"1" * 5000, [IMAGE], "a number has too many digits"),
        (b'{"inputs": NaN}', [IMAGE], "holds NaN"),
        ({"inputs": [make_input()], "id": 7}, [IMAGE], "id is a number; expected a string"),
        ({"inputs": [make_input()], "id": "7" * 1001}, [IMAGE], "id has 1001 characters; the maximum is 1000"),
        ({"inputs": [make_input()], "parameters": 7}, [IMAGE], "parameters of the request is a number"),
        ({"inputs": [make_input()], "parameters": {"binary_data_output": 1}}, [IMAGE], "binary_data_output is a number"),
        ({"inputs": [make_input(name="picture")]}, [IMAGE], "the model has no input picture; expected image"),
        ({"inputs": [make_input(name="\u202ex" * 99)]}, [IMAGE], "the model has no input \\u202ex"),
        ({"inputs": [make_input(), make_input()]}, [IMAGE], "the input image is given twice"),
        ({"inputs": [make_input()]}, [IMAGE, GRID], "the input grid is missing"),
        ({"inputs": [make_input()], "outputs": [{"name": "label"}] * 2}, [IMAGE], "the output label is given twice"),
        ({"inputs": [make_input()], "outputs": [{"name": "logits"}]}, [IMAGE], "the model has no output logits"),
        ({"inputs": [make_input()], "outputs": 1}, [IMAGE], "outputs is a number"),
        ({"inputs": [make_input(datatype="BF16")]}, [IMAGE], "the datatype of image is BF16; expected BYTES"),
        ({"inputs": [make_input(datatype=["BYTES"])]}, [IMAGE], "the datatype of image is"),
        ({"inputs": [make_input(datatype=None)]}, [IMAGE], "the datatype of image is null"),
        ({"inputs": [pixels(datatype="INT8")]}, [PIXELS], "the datatype of image is INT8; expected UINT8"),
        ({"inputs": [make_input(shape=None)]}, [IMAGE], "is not a list of whole numbers"),
        ({"inputs": [make_input(shape=[1.5])]}, [IMAGE], "is not a list of whole numbers"),
        ({"inputs": [make_input(shape=[True])]}, [IMAGE], "is not a list of whole numbers"),
        ({"inputs": [make_input(shape=["2"])]}, [IMAGE], "is not a list of whole numbers"),
        ({"inputs": [make_input(shape=[-1])]}, [IMAGE], "the shape of image is [-1]"),
        ({"inputs": [make_input(shape=[0], data=[])]}, [IMAGE], "the shape of image is [0]"),
        ({"inputs": [make_input(shape=[1, 2])]}, [IMAGE], "the shape of image is [1, 2]; expected [-1]"),
        ({"inputs": [make_input(shape=HUGE)]}, [IMAGE], "the shape of image is [2, 2, 2, 2, 1152921504606846978]"),
        ({"inputs": [make_input(shape=HUGE)]}, [TensorSpec("image", "BYTES", (-1,) * 5)], "has 18446744073709551648 elements"),
        ({"inputs": [make_input(shape=[10**4000])]}, [IMAGE], "has a number of more than 30 digits elements"),
        ({"inputs": [grid(shape=HUGE)]}, [TensorSpec("grid", "FP32", (-1,) * 5)], "are 16 values; its shape needs 18446744073709551648"),
        ({"inputs": [grid(shape=[2, 2, 2**60 + 2])]}, [TensorSpec("grid", "FP32", (-1,) * 3)], "are 16 values; its shape needs"),
        ({"inputs": [grid(data=[0.5] * 15)]}, [GRID], "are 15 values; its shape needs 16"),
        ({"inputs": [grid(data=[0.5] * 18)]}, [GRID], "are 18 values; its shape needs 16"),
        ({"inputs": [grid(data=[[0.5] * 4] * 3 + [[0.5] * 3])]}, [GRID], "not nested as its shape says"),
        ({"inputs": [grid(data=[[0.5] * 4] * 3 + [0.5] * 4)]}, [GRID], "not nested as its shape says"),
        ({"inputs": [grid(data=[[0.5] * 8] * 2)]}, [GRID], "not nested as its shape says"),
        ({"inputs": [grid(data=[[[0.5]] * 4] * 4)]}, [GRID], "hold a list"),
        ({"inputs": [grid(data=[None] * 16)]}, [GRID], "hold null"),
        ({"inputs": [grid(data=["1"] * 16)]}, [GRID], "hold a string"),
        ({"inputs": [grid(data=[True] * 16)]}, [GRID], "hold true or false"),
        ({"inputs": [grid(data=[{}] * 16)]}, [GRID], "hold an object"),
        ({"inputs": [grid(data=[1e39] * 16)]}, [GRID], "out of the range of FP32"),
        ({"inputs": [grid(data=[10**400] * 16)]}, [GRID], "out of the range of FP32"),
        (json.dumps({"inputs": [grid()]}).replace("0.5", "1e999").encode(), [GRID], "out of the range of FP32"),
        (json.dumps({"inputs": [grid(data=[float("nan")] * 16)]}).encode(), [GRID], "holds NaN"),
        ({"inputs": [pixels(data=[0, 1, 2, 3, 4, 256])]}, [PIXELS], "out of the range of UINT8"),
        ({"inputs": [pixels(data=[0, 1, 2, 3, 4, -1])]}, [PIXELS], "out of the range of UINT8"),
        ({"inputs": [pixels(data=[0, 1, 2, 3, 4, 5.0])]}, [PIXELS], "hold a number with a fraction"),
        ({"inputs": [pixels(data=[0, 1, 2, 3, 4, True])]}, [PIXELS], "hold true or false"),
        ({"inputs": [pixels(data="AAAA")]}, [PIXELS], "the data of image are a string; expected a list"),
        ({"inputs": [pixels(shape=[1, 2, 4])]}, [PIXELS], "the shape of image is [1, 2, 4]; expected [-1, -1, 3]"),
        ({"inputs": [make_input(data=None)]}, [IMAGE], "image has neither data nor"),
        ({"inputs": [make_input(parameters={"binary_data_size": 0})]}, [IMAGE], "image has both data and"),
        ({"inputs": [make_input(parameters=[])]}, [IMAGE], "parameters of image is a list"),
        ({"inputs": [make_input(parameters={"shared_memory_region": "r"})]}, [IMAGE], "shared memory is not served"),
        ({"inputs": [make_input(data=["AA", "AAA="])]}, [IMAGE], "element 0 of image is not base64"),
        ({"inputs": [make_input(data=["AAA=", "\u00fc"])]}, [IMAGE], "element 1 of image is not base64"),
        ({"inputs": [make_input(data=["AAA=", 7])]}, [IMAGE], "element 1 of image is a number; expected base64"),
        ({"inputs": [make_input(data=["AAA="])]}, [IMAGE], "are 1 values; its shape needs 2"),
        ({"inputs": [make_input(shape=[33], data=[""] * 33)]}, [IMAGE], "has 33 elements; the maximum is 32"),
    ],
)  # fmt: skip
def test_json_that_is_refused(body: bytes | dict[str, Any], inputs: list[TensorSpec], said: str) -> None:
    with pytest.raises(BodyError) as caught:
        parse(body, inputs)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_whole_number_may_be_written_as_a_fraction() -> None:
    outputs = [{"name": "probabilities", "parameters": {"classification": 3.0}}]
    request = parse({"inputs": [make_input(shape=[2.0])], "outputs": outputs})
    assert request.inputs["image"].shape == (2,)
    assert request.outputs[0].num_classes == 3
    about = pixels(shape=[1.0, 2.0, 3], data=None, parameters={"binary_data_size": 6.0})
    body, length = make_binary([about], bytes(range(6)))
    assert parse(body, [PIXELS], length).inputs["image"].tolist() == [[[0, 1, 2], [3, 4, 5]]]


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "3", None])
def test_classification_that_is_refused(value: object) -> None:
    for name in ("probabilities", "label"):
        outputs = [{"name": name, "parameters": {"classification": value}}]
        with pytest.raises(BodyError, match=f"classification of {name}"):
            parse({"inputs": [make_input()], "outputs": outputs})
    with pytest.raises(BodyError, match="classification of label is 3; expected it on probabilities only"):
        parse({"inputs": [make_input()], "outputs": [{"name": "label", "parameters": {"classification": 3}}]})


@pytest.mark.parametrize(
    "values", [["99999999999"], ["-1"], ["+1"], ["abc"], [""], ["1_0"], ["\u0661"], ["1.0"], ["3", "3"], ["9" * 5000]]
)
def test_lengths_of_the_json_that_are_refused(values: list[str]) -> None:
    with pytest.raises(BodyError, match="Inference-Header-Content-Length is"):
        read_json_length(values, 100)


@pytest.mark.parametrize(
    ("size", "data", "said"),
    [
        (-1, b"", "the binary_data_size of image is -1"),
        (9.5, pack([b"", b"x"]), "is 9.5; expected a whole number"),
        (True, b"x", "the binary_data_size of image is true"),
        ("9", pack([b"", b"x"]), "expected a whole number"),
        (10, pack([b"", b"x"]), "9 bytes follow the JSON, but the binary_data_size of all inputs add up to 10"),
        (10**4299, pack([b"", b"x"]), "add up to a number of more than 30 digits"),
        (8, pack([b"", b"x"]), "9 bytes follow the JSON"),
        (9, b"\0\0\0\0\2\0\0\0x", "element 1 of image runs past the end"),
        (9, b"\0\0\0\0\xff\xff\xff\xffx", "element 1 of image runs past the end"),
        (6, b"\0\0\0\0\1\0", "element 1 of image runs past the end"),
        (10, pack([b"", b"x"]) + b"y", "1 bytes follow the last element"),
    ],
)
def test_binary_data_that_are_refused(size: Any, data: bytes, said: str) -> None:
    body, length = make_binary([make_input(data=None, parameters={"binary_data_size": size})], data)
    with pytest.raises(BodyError) as caught:
        parse(body, None, length)
    assert said in str(caught.value)


def test_binary_numbers_that_are_refused() -> None:
    about = pixels(data=None, parameters={"binary_data_size": 5})
    body, length = make_binary([about], b"12345")
    with pytest.raises(BodyError, match="is 5; expected 6 for the shape"):
        parse(body, [PIXELS], length)
    body, length = make_binary(
        [pixels(shape=[2**40, 2**40, 3], data=None, parameters={"binary_data_size": 5})], b"12345"
    )
    with pytest.raises(BodyError, match="expected 3626777458843887524118528 for the shape"):
        parse(body, [PIXELS], length)
    about = {"name": "flag", "datatype": "BOOL", "shape": [1], "parameters": {"binary_data_size": 1}}
    body, length = make_binary([about], b"\2")
    with pytest.raises(BodyError, match="neither 0 nor 1"):
        parse(body, [TensorSpec("flag", "BOOL", (1,))], length)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([IMAGE, GRID], "the model has 2 inputs"),
        ([PIXELS], "has more than one -1"),
        ([GRID], "does not fit the shape"),
        ([TensorSpec("rows", "UINT8", (-1, 7))], "has 3 bytes, which does not fit the shape"),
    ],
)
def test_bodies_without_json_that_are_refused(inputs: list[TensorSpec], said: str) -> None:
    with pytest.raises(BodyError, match=said):
        parse(b"abc", inputs, "0")


def test_a_picture_of_a_million_values_fits_into_json() -> None:
    shape = [577, 577, 3]
    for data in ([255] * (577 * 577 * 3), [[[255] * 3] * 577] * 577):
        assert parse({"inputs": [pixels(shape=shape, data=data)]}, [PIXELS]).inputs["image"].shape == (577, 577, 3)


def test_nothing_is_allocated_by_a_claim() -> None:
    claims = [
        (make_input(shape=[2**40]), b"", IMAGE),
        (pixels(shape=[2**20, 2**20, 3], data=None, parameters={"binary_data_size": 2**40 * 3}), b"abc", PIXELS),
        (make_input(data=None, parameters={"binary_data_size": 8}), b"\xff\xff\xff\x7f" * 2, IMAGE),
    ]
    tracemalloc.start()
    try:
        for about, data, spec in claims:
            body, length = make_binary([about], data)
            with pytest.raises(BodyError):
                parse(body, [spec], length)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
