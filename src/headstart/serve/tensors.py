"""Tensors of the Open Inference Protocol v2, read and written: as JSON, as binary data, and as classes.

https://github.com/kserve/open-inference-protocol, with Triton's extensions for binary tensors and for classification.
"""

from __future__ import annotations

import binascii
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from headstart._files import show_path

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
"""The protocol's datatypes with elements of one size. The thirteenth, BYTES, is an array of objects of type bytes."""

_JSON_TYPES: dict[str, set[type]] = {"b": {bool}, "u": {int}, "i": {int}, "f": {int, float}}


class BodyError(ValueError):
    """What is wrong with a body, in a sentence for its sender."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that a model takes or gives; -1 in `shape` stands for any number from 1."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output as it is to be answered; `num_classes` from 1 asks for that many classes as text, 0 for the values."""

    name: str
    is_binary: bool = False
    num_classes: int = 0


def read_binary(body: bytes, start: int, size: int, spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor in body[start : start + size], of numbers a read-only view. Raises BodyError unless it fits."""
    count = math.prod(shape)
    if spec.datatype == "BYTES":
        elements = _split_elements(memoryview(body)[start : start + size], count, spec.name)
        return np.array(elements, object).reshape(shape)
    dtype = DTYPES[spec.datatype]
    if size != count * dtype.itemsize:
        expected = f"{show(count * dtype.itemsize)} for the shape {show(list(shape))}"
        raise BodyError(f"the binary_data_size of {spec.name} is {size}; expected {expected}")
    values = np.frombuffer(body, dtype, count, start).reshape(shape)
    if dtype.kind == "b" and values.view(np.uint8).max() > 1:
        raise BodyError(f"{spec.name} has a byte that is neither 0 nor 1")
    return values


def _split_elements(data: memoryview, count: int, name: str) -> list[bytes]:
    elements, at = [], 0
    for index in range(count):
        length = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + length > len(data):
            raise BodyError(f"element {index} of {name} runs past the end of its data")
        elements.append(bytes(data[at + 4 : at + 4 + length]))
        at += 4 + length
    if at != len(data):
        raise BodyError(f"{len(data) - at} bytes follow the last element of {name}")
    return elements


def read_values(data: Any, spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor from what JSON holds: flat or nested as its shape says, BYTES in base64. Raises BodyError."""
    values = _flatten(data, shape, spec.name)
    if spec.datatype == "BYTES":
        elements = [_decode_base64(value, f"element {index} of {spec.name}") for index, value in enumerate(values)]
        return np.array(elements, object).reshape(shape)
    dtype = DTYPES[spec.datatype]
    if dtype == np.float16:
        raise BodyError(f"FP16 has no JSON form; send {spec.name} as binary data")
    if others := set(map(type, values)) - _JSON_TYPES[dtype.kind]:
        name = min(_TYPE_NAMES.get(kind, kind.__name__) for kind in others)
        raise BodyError(f"the data of {spec.name} hold {name}; expected values of {spec.datatype}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype)
    except OverflowError:
        array = None
    if array is None or (dtype.kind == "f" and not np.isfinite(array).all()):
        raise BodyError(f"the data of {spec.name} hold a number out of the range of {spec.datatype}")
    return array.reshape(shape)


def _flatten(data: Any, shape: tuple[int, ...], name: str) -> list[Any]:
    """The values in row-major order; `data` is a list of all, or lists in lists of this very shape."""
    if not isinstance(data, list):
        raise BodyError(f"the data of {name} are {say_type(data)}; expected a list")
    values = data
    if any(type(value) is list for value in values):
        for size in shape[1:]:
            if any(type(value) is not list or len(value) != size for value in values):
                raise BodyError(f"the data of {name} are not nested as its shape says")
            values = list(chain.from_iterable(values))
    if len(values) != math.prod(shape):
        raise BodyError(f"the data of {name} are {len(values)} values; its shape needs {show(math.prod(shape))}")
    return values


def _decode_base64(text: Any, where: str) -> bytes:
    if not isinstance(text, str):
        raise BodyError(f"{where} is {say_type(text)}; expected base64 in a string")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise BodyError(f"{where} is not base64: {str(error).lower()}") from None


def write_response(
    facts: Mapping[str, str], outputs: Sequence[tuple[WantedOutput, np.ndarray]]
) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON where binary data follow.

    `facts` are its other entries, such as model_name. Elements of BYTES are written to JSON as text, numbers exactly.
    """
    described: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for wanted, tensor in outputs:
        is_bytes = tensor.dtype == object
        datatype = "BYTES" if is_bytes else next(name for name, dtype in DTYPES.items() if dtype == tensor.dtype)
        about: dict[str, Any] = {"name": wanted.name, "datatype": datatype, "shape": list(tensor.shape)}
        elements = tensor.ravel().tolist() if is_bytes or not wanted.is_binary else []
        if wanted.is_binary:
            whole = b"".join(struct.pack("<I", len(element)) + element for element in elements)
            parts.append(whole if is_bytes else tensor.astype(DTYPES[datatype]).tobytes())
            about["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            about["data"] = [element.decode() for element in elements] if is_bytes else elements
        described.append(about)
    text = json.dumps({**facts, "outputs": described}).encode()
    return b"".join([text, *parts]), len(text) if parts else None


def classify(probs: np.ndarray, classes: Sequence[str], num_classes: int) -> np.ndarray:
    """The `num_classes` most probable classes, or all where there are fewer, for each row of probs (N, K).

    BYTES (N, num_classes) of `value:index:label`, the most probable first, as Triton's classification extension has it.
    """
    best = np.argsort(-probs, axis=1, kind="stable")[:, :num_classes]
    rows = [
        [f"{row[index]:.6f}:{index}:{classes[index]}".encode() for index in order]
        for row, order in zip(probs, best.tolist(), strict=True)
    ]
    return np.array(rows, object).reshape(best.shape)


_TYPE_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number"}
_TYPE_NAMES |= {float: "a number with a fraction", type(None): "null"}


def say_type(value: Any) -> str:
    """What JSON calls the type of a value, for a sentence."""
    return _TYPE_NAMES[type(value)]


def show(value: Any) -> str:
    """What the sender wrote, made safe to repeat and cut to a length for a sentence."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    text = value if isinstance(value, str) else json.dumps(value)
    return show_path(text[:80]) + ("..." if len(text) > 80 else "")
