"""Bodies of infer requests of the Open Inference Protocol v2: what a client sends, checked and made tensors."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.serve.tensors import (
    DTYPES,
    BodyError,
    TensorSpec,
    WantedOutput,
    read_binary,
    read_values,
    say_type,
    show,
)

_MAX_DEPTH = 100
_MAX_ID_LENGTH = 1000
# While JSON is read, nothing else runs in this process; what is let through takes about 0.1 s. Strings cost nothing.
_MAX_VALUES = 1_000_000
_MAX_BRACKETS = 350_000
_MAX_QUOTES = 100_000
_MAX_REST_BYTES = 6 * 2**20  # besides strings
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


@dataclass(frozen=True, slots=True, eq=False)
class InferRequest:
    """`inputs` has a tensor for each of the model's inputs. Arrays are read-only views of the body."""

    inputs: dict[str, np.ndarray]
    outputs: tuple[WantedOutput, ...]
    id: str | None = None


def read_json_length(values: Sequence[str], body_length: int) -> int | None:
    """How many of a body's bytes are JSON, by the values of all its headers Inference-Header-Content-Length.

    None where there is no such header: then all are. Raises BodyError.
    """
    if not values:
        return None
    name = "Inference-Header-Content-Length"
    if len(values) > 1:
        raise BodyError(f"{name} is given {len(values)} times; expected once")
    # int() would take signs, spaces, underscores and the digits of all scripts, and thousands of them.
    if not re.fullmatch("[0-9]{1,18}", values[0]) or int(values[0]) > body_length:
        raise BodyError(f"{name} is {show(values[0])}; expected 0 to {body_length}, the length of the body")
    return int(values[0])


def parse_request(
    body: bytes,
    json_length: int | None,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    classified: str = "",
    max_elements: int = 32,
) -> InferRequest:
    """Read the body of an infer request for a model with these inputs and outputs.

    `json_length` is what `read_json_length` gave. `classified` is the output that may be asked for as classes,
    `max_elements` the most that a BYTES tensor may have. In JSON, BYTES are base64. Nothing is allocated by a size that
    the body claims. Raises BodyError.
    """
    if not body:
        raise BodyError("the body is empty; expected a JSON object with inputs")
    if json_length == 0:
        return _parse_raw(body, inputs, outputs)
    header = _parse_json(body if json_length is None else body[:json_length], is_whole=json_length is None)
    if not isinstance(header, dict):
        raise BodyError(f"the body is {say_type(header)}; expected an object with inputs")
    id = header.get("id")
    if id is not None and not isinstance(id, str):
        raise BodyError(f"id is {say_type(id)}; expected a string")
    if id is not None and len(id) > _MAX_ID_LENGTH:
        raise BodyError(f"id has {len(id)} characters; the maximum is {_MAX_ID_LENGTH}")
    return InferRequest(
        _parse_inputs(header, body, len(body) if json_length is None else json_length, inputs, max_elements),
        _parse_outputs(header, outputs, classified),
        id,
    )


def _parse_raw(body: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> InferRequest:
    if len(inputs) != 1:
        raise BodyError(f"the model has {len(inputs)} inputs; a body without JSON can be the input of a model with one")
    spec = inputs[0]
    if spec.datatype == "BYTES":
        tensor = np.array([body], object)
    else:
        if spec.shape.count(-1) > 1:
            raise BodyError(f"the shape of {spec.name} has more than one -1, so it must be given in JSON")
        dtype, known = DTYPES[spec.datatype], math.prod(size for size in spec.shape if size != -1)
        if len(body) % (known * dtype.itemsize) or (-1 not in spec.shape and len(body) != known * dtype.itemsize):
            raise BodyError(f"the body has {len(body)} bytes, which does not fit the shape {list(spec.shape)}")
        tensor = np.frombuffer(body, dtype).reshape(spec.shape)
    return InferRequest({spec.name: tensor}, tuple(WantedOutput(output.name, is_binary=True) for output in outputs))


def _parse_json(text: bytes, is_whole: bool) -> Any:
    _check_cost(text)
    advice = "; a body that is not all JSON needs the header Inference-Header-Content-Length" if is_whole else ""
    try:
        return json.loads(text.decode(), object_pairs_hook=_make_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise BodyError(f"the JSON is damaged: {error.msg} at character {error.pos}{advice}") from None
    except UnicodeDecodeError as error:
        raise BodyError(f"the JSON is not UTF-8 at byte {error.start}{advice}") from None
    except BodyError:
        raise
    except ValueError:  # Python refuses to read whole numbers of thousands of digits
        raise BodyError("the JSON is damaged: a number has too many digits") from None


def _check_cost(text: bytes) -> None:
    """Refuse JSON that takes too long to read, or a recursion that is too deep."""
    rest = _STRING.sub(b"", text) if text.count(b'"') <= _MAX_QUOTES else None
    if rest is None or len(rest) > _MAX_REST_BYTES or rest.count(b",") > _MAX_VALUES:
        most = f"{_MAX_VALUES} values or {_MAX_REST_BYTES // 2**20} MB besides strings"
        raise BodyError(f"the JSON holds more than {most}; send the tensor as binary data")
    if rest.count(b"[") + rest.count(b"{") > _MAX_BRACKETS:
        raise BodyError(f"the JSON holds more than {_MAX_BRACKETS} lists and objects; send the data as one flat list")
    brackets = np.frombuffer(re.sub(rb"[^\[\]{}]+", b"", rest), np.uint8)
    steps = np.where((brackets == ord("[")) | (brackets == ord("{")), 1, -1)
    if steps.cumsum().max(initial=0) > _MAX_DEPTH:
        raise BodyError(f"the JSON is nested deeper than {_MAX_DEPTH}")


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise BodyError(f"an object in the JSON has the key {show(twice)} twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise BodyError(f"the JSON holds {name}, which is not a number")


def _parse_inputs(
    header: dict[str, Any], body: bytes, start: int, specs: Sequence[TensorSpec], max_elements: int
) -> dict[str, np.ndarray]:
    by_name = {spec.name: spec for spec in specs}
    given = _take_tensors(header, "inputs", by_name)
    if not given:
        raise BodyError("inputs is missing or empty; expected a list of tensors")
    if missing := by_name.keys() - given.keys():
        raise BodyError(f"the input {min(missing)} is missing")
    shapes = {name: _check_shape(tensor, by_name[name], max_elements) for name, tensor in given.items()}
    sizes = {name: _find_binary_size(tensor) for name, tensor in given.items()}
    if sum(size or 0 for size in sizes.values()) != len(body) - start:
        raise BodyError(
            f"{len(body) - start} bytes follow the JSON, but the binary_data_size of all inputs add up to "
            f"{show(sum(size or 0 for size in sizes.values()))}"
        )
    found: dict[str, np.ndarray] = {}
    for name, tensor in given.items():
        spec, shape, size = by_name[name], shapes[name], sizes[name]
        if size is None:
            found[name] = read_values(tensor["data"], spec, shape)
        else:
            found[name] = read_binary(body, start, size, spec, shape)
            start += size
    return found


def _take_tensors(header: dict[str, Any], key: str, known: Mapping[str, TensorSpec]) -> dict[str, dict[str, Any]]:
    """The objects in `header[key]` by their names, which must be known and different."""
    listed = header.get(key)
    if listed is None:
        return {}
    if not isinstance(listed, list):
        raise BodyError(f"{key} is {say_type(listed)}; expected a list of tensors")
    found: dict[str, dict[str, Any]] = {}
    for index, tensor in enumerate(listed):
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            raise BodyError(f"{key}[{index}] is not an object with a name")
        name = tensor["name"]
        if name not in known:
            raise BodyError(f"the model has no {key[:-1]} {show(name)}; expected {', '.join(known)}")
        if name in found:
            raise BodyError(f"the {key[:-1]} {name} is given twice")
        if any(parameter.startswith("shared_memory") for parameter in _take_parameters(tensor, name)):
            raise BodyError(f"shared memory is not served; send and ask for the data of {name} in the body")
        found[name] = tensor
    return found


def _take_parameters(holder: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = holder.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise BodyError(f"parameters of {where} is {say_type(parameters)}; expected an object")
    return parameters or {}


def _check_shape(tensor: dict[str, Any], spec: TensorSpec, max_elements: int) -> tuple[int, ...]:
    datatype, shape = tensor.get("datatype"), tensor.get("shape")
    if isinstance(shape, list):
        shape = [_make_whole(size) for size in shape]
    if datatype != spec.datatype:
        raise BodyError(f"the datatype of {spec.name} is {show(datatype)}; expected {spec.datatype}")
    if not isinstance(shape, list) or any(type(size) is not int for size in shape):
        raise BodyError(f"the shape of {spec.name} is not a list of whole numbers")
    if len(shape) != len(spec.shape) or any(
        size < 1 or expected not in (-1, size) for size, expected in zip(shape, spec.shape, strict=True)
    ):
        raise BodyError(
            f"the shape of {spec.name} is {show(shape)}; expected {list(spec.shape)}, where -1 is any number from 1"
        )
    if spec.datatype == "BYTES" and math.prod(shape) > max_elements:
        raise BodyError(f"{spec.name} has {show(math.prod(shape))} elements; the maximum is {max_elements} a request")
    return tuple(shape)


def _make_whole(value: Any) -> Any:
    """2 for 2.0: to JSON they are the same number. Anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _find_binary_size(tensor: dict[str, Any]) -> int | None:
    """The input's binary_data_size; None where its data are in the JSON."""
    name = tensor["name"]
    size = _make_whole(_take_parameters(tensor, name).get("binary_data_size"))
    if (size is None) == (tensor.get("data") is None):
        there = "neither data nor" if size is None else "both data and"
        raise BodyError(f"{name} has {there} the parameter binary_data_size; expected one of them")
    if size is not None and (type(size) is not int or size < 0):
        raise BodyError(f"the binary_data_size of {name} is {show(size)}; expected a whole number of bytes")
    return size


def _parse_outputs(header: dict[str, Any], specs: Sequence[TensorSpec], classified: str) -> tuple[WantedOutput, ...]:
    is_binary = _take_flag(_take_parameters(header, "the request"), "binary_data_output", False)
    wanted = []
    for name, output in _take_tensors(header, "outputs", {spec.name: spec for spec in specs}).items():
        parameters = _take_parameters(output, name)
        num_classes = _make_whole(parameters.get("classification", 0))
        if "classification" in parameters and (type(num_classes) is not int or num_classes < 1 or name != classified):
            expected = "a whole number from 1" if name == classified else f"it on {classified or 'no output'} only"
            raise BodyError(f"classification of {name} is {show(num_classes)}; expected {expected}")
        wanted.append(WantedOutput(name, _take_flag(parameters, "binary_data", is_binary), num_classes))
    return tuple(wanted) or tuple(WantedOutput(spec.name, is_binary) for spec in specs)


def _take_flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BodyError(f"{name} is {say_type(value)}; expected true or false")
    return value
